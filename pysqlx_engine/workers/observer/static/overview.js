// The overview: each budget with its last hour, the processes, the queues.

import { chart, colour } from "./chart.js";
import {
  ago, api, brief, confirm, duration, h, keyed, plural, row, say, setAttribute, setLink, setText, table,
} from "./dom.js";

const SLOW = 3; // seconds that a verdict has to last before a screen reader says it

// What somebody who was called at night has to know of a budget, in one sentence, and whether it is bad.
function verdict(budget, recent, processes) {
  const { size, leased, waiting, idle, quarantined, reserved } = budget;
  const usable = size - reserved; // the rest is for nothing but ending the sessions of lost hosts
  const waits = waiting ? plural(waiting, "waits", "wait") : "nobody waits";
  const used = waiting > 0 && leased >= usable && !idle; // what is idle is on its way to who waits
  const left = `${Math.max(0, usable - leased)} of ${size} are free, ${idle} idle`;
  const kept = reserved ? `, ${reserved} kept back` : "";
  const parts = [used ? `used up: all ${usable} are leased${kept}, ${waits}` : `${waits}, ${left}`];
  const [most, count] = processes.map((process) => [process, waitingAt(process, budget.database)])
    .reduce((one, other) => (other[1] > one[1] ? other : one), [null, 0]);
  if (count > 1 && count > waiting / 2) parts[0] += `, ${count === waiting ? "all" : `${count} of them`} in ${nameOf(most)}`;
  if (leased > size) parts.push(`${leased - size} more than the budget, which was made smaller`);
  if (quarantined) parts.push(`${plural(quarantined, "session", "sessions")} of dead processes still at the server`);
  if (recent?.timeouts) parts.push(`${recent.timeouts} timed out within the last minute`);
  return [parts.join("; "), used || parts.length > 1];
}

const waitingAt = (process, database) =>
  process.pools.reduce((sum, pool) => sum + (pool.database === database ? pool.waiting : 0), 0);

function budgetSection({ budget: { database } }) {
  const words = h("p", { class: "verdict" });
  const bar = h("div", { class: "bar", "aria-hidden": "true" });
  const legend = h("ul", { class: "legend" });
  const facts = h("dl", { class: "facts" });
  const hour = chart(database);
  const heading = h("h2", {}, "Budget of ", h("span", { class: "name" }, database));
  const node = h("section", { class: "budget" }, heading, words, bar, legend, facts, hour.node);
  let said = false, since = 0, asking = false;

  async function catchUp() {
    if (asking) return;
    asking = true;
    try {
      const { points } = await api("/api/history", { database, after: hour.last() });
      if (points.length) hour.add(points);
    } catch {
      // The next look asks again, and says it when nobody answers.
    } finally {
      asking = false;
    }
  }

  node.update = ({ budget, recent, processes, now }) => {
    const [text, bad] = verdict(budget, recent, processes);
    setText(words, text);
    setAttribute(words, "class", bad ? "verdict bad" : "verdict good");
    if (bad === said) since = now;
    else if (now - since >= SLOW) {
      say(`${database}: ${text}`);
      said = bad;
    }
    const moving = Math.max(0, budget.leased - budget.in_use - budget.idle - budget.quarantined);
    const parts = [
      ["in use", "in-use", budget.in_use], ["idle", "idle", budget.idle], ["opening, closing", "moving", moving],
      ["quarantined", "quarantined", budget.quarantined], ["kept back", "reserved", budget.reserved],
      ["free", "free", Math.max(0, budget.size - budget.leased - budget.reserved)],
    ].filter(([name, , count]) => count || name !== "kept back");
    keyed(bar, parts, ([name]) => name, ([, kind]) => {
      const part = h("i", { class: kind });
      part.update = ([, , count]) => (part.style.flexGrow = count);
      return part;
    });
    keyed(legend, [...parts, ["budget", null, budget.size]], ([name]) => name, ([name, kind]) => {
      const value = h("b");
      const item = h("li", {}, ...(kind ? [h("i", { class: `swatch ${kind}` })] : []), `${name} `, value);
      item.update = ([, , count]) => setText(value, count);
      return item;
    });
    const minute = recent ?? { seconds: 0, requests: 0, waited: 0, timeouts: 0, wait: 0, hold: 0 };
    keyed(facts, [
      ["waiting now", budget.waiting, bad && budget.waiting > 0],
      ["wait p90, 1 min", duration(minute.wait), minute.wait >= 1],
      ["held p90, 1 min", duration(minute.hold)],
      ["check-outs/s", minute.seconds ? brief(minute.requests / minute.seconds) : "0"],
      ["had to wait, 1 min", minute.requests ? `${Math.round((100 * minute.waited) / minute.requests)} %` : "0 %"],
      ["timed out, 1 min", minute.timeouts, minute.timeouts > 0],
    ], ([name]) => name, ([name]) => {
      const value = h("dd");
      const pair = h("div", {}, h("dt", {}, name), value);
      pair.update = ([, text, bad]) => {
        setText(value, text);
        setAttribute(value, "class", bad ? "bad" : null);
      };
      return pair;
    });
    if (now - hour.last() >= 10) catchUp();
  };
  return node;
}

// As `WorkerStatus.called` has it: the chart names them so.
const nameOf = ({ name, worker, pid }) => name ?? (worker === null ? `pid ${pid}` : `worker ${worker}`);

// "requests of worker 2" is "requests" where the worker has a row of its own; the database where there are several.
function poolsOf(process, several) {
  const name = (pool) => pool.name.replace(` of ${nameOf(process)}`, "") + (several ? ` at ${pool.database}` : "");
  return process.pools.map((pool) => `${name(pool)}: ${pool.leases}`).join(", ");
}

function processRow(of) {
  const { node, cells } = row(of);
  const swatch = h("i", { class: "swatch" }), name = h("span");
  cells[0].append(swatch, name);
  const parts = ["in-use", "idle", "moving"].map((kind) => h("i", { class: kind }));
  const meter = h("span", { class: "meter", "aria-hidden": "true" }, ...parts);
  const leases = h("span");
  cells[1].append(leases, meter);
  node.update = ({ process, size, several }) => {
    setAttribute(swatch, "class", `swatch ${colour(nameOf(process))}`);
    setText(name, nameOf(process));
    setText(leases, process.leases);
    const moving = Math.max(0, process.leases - process.in_use - process.idle);
    [process.in_use, process.idle, moving].forEach((count, at) => (parts[at].style.width = `${(100 * count) / size}%`));
    const state = process.state ?? "joined";
    const values = [
      process.waiting, process.in_use, process.idle, state, process.pid ?? "", duration(process.uptime),
      process.restarts, poolsOf(process, several),
    ];
    values.forEach((value, at) => setText(cells[at + 2], value));
    cells[2].classList.toggle("bad", process.waiting > 0);
    cells[5].classList.toggle("bad", state === "restarting");
    cells[8].classList.toggle("bad", process.restarts > 0);
  };
  return node;
}

const STATES = ["available", "running", "scheduled", "retrying"];

function queuesSection({ database, several }) {
  const of = table(`Queues of ${database}`, [
    ["Queue, task"], ...STATES.map((state) => [state, "number"]), ["held", "number"], ["oldest waits", "number"],
    ["done/min", "number"], ["failed/min", "number"], ["runs for", "number"], [""],
  ]);
  of.box.querySelector("thead th:last-child").append(h("span", { class: "hidden" }, "Actions"));
  const note = h("p", { class: "note" });
  const heading = h("h2", {}, "Queues", ...(several ? [" of ", h("span", { class: "name" }, database)] : []));
  const node = h("section", {}, heading, note, of.box);
  node.update = ({ jobs, now }) => {
    const known = jobs.error === null;
    const dispatchers = plural(jobs.dispatchers, "dispatcher", "dispatchers");
    const seen = ago(Math.floor(now - jobs.at));
    setText(note, known ? `${dispatchers} at work; seen ${seen}` : `Not known: ${jobs.error}`);
    setAttribute(note, "class", known && (jobs.dispatchers || !jobs.tasks.length) ? "note" : "note bad");
    of.box.hidden = !known && !of.body.children.length;
    if (known) keyed(of.body, queueRows(jobs), (one) => one.key, (one) => queueRow(of, one, database));
  };
  return node;
}

// Each queue with the sums of its tasks, and then these.
function queueRows(jobs) {
  const tasks = new Map();
  const part = (queue, task) => {
    const key = JSON.stringify([queue, task]);
    const none = { key, queue, task, states: {}, held: 0, oldest: null, done: 0, failed: 0, ran: 0, ended: 0 };
    if (!tasks.has(key)) tasks.set(key, none);
    return tasks.get(key);
  };
  const minutes = Math.max(jobs.recent_seconds, 1) / 60;
  const both = (queue, task) => [part(queue, null), part(queue, task)];
  for (const queue of jobs.queues) part(queue, null);
  for (const { name, paused_at } of jobs.paused) part(name, null).paused = paused_at;
  for (const one of jobs.tasks) for (const to of both(one.queue, one.task)) {
    for (const [state, count] of Object.entries(one.states)) to.states[state] = (to.states[state] ?? 0) + count;
    to.held += one.held;
    if (one.oldest_waits !== null) to.oldest = Math.max(to.oldest ?? 0, one.oldest_waits);
  }
  for (const one of jobs.ended) both(one.queue, one.task);
  for (const one of jobs.recent) for (const to of both(one.queue, one.task)) {
    if (one.state === "completed") to.done += one.count / minutes;
    if (one.state === "discarded") to.failed += one.count / minutes;
    if (one.state !== "cancelled") [to.ran, to.ended] = [to.ran + one.ran, to.ended + one.count];
  }
  const order = (one) => `${one.queue}\0${one.task ?? ""}`;
  return [...tasks.values()].sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

function queueRow(of, { queue, task }, database) {
  const { node, cells } = row(of);
  const link = h("a"), mark = h("span", { class: "mark" });
  cells[0].append(link, " ", mark);
  node.className = task === null ? "queue" : "task";
  const button = h("button", { onclick: press });
  if (task === null) cells.at(-1).append(button);
  let paused = false;

  async function press() {
    const [verb, text] = paused
      ? ["Resume", "Its jobs are begun again."]
      : ["Pause", "Nothing more of it is begun, here or elsewhere, until it is resumed. What runs goes on."];
    if (!(await confirm(`${verb} queue ${queue}?`, text, `${verb} ${queue}`))) return;
    try {
      await api(`/api/queues/${encodeURIComponent(queue)}/${verb.toLowerCase()}`, { database }, "POST");
      say(`Queue ${queue} is ${paused ? "resumed" : "paused"}.`);
    } catch (error) {
      complain(`Queue ${queue} was not changed: ${error.message}`);
    }
  }

  node.update = (one) => {
    paused = Boolean(one.paused);
    const to = (more) => `#/jobs?${new URLSearchParams({ database, queue, ...(task !== null && { task }), ...more })}`;
    setText(link, task ?? queue);
    setAttribute(link, "href", to({}));
    setText(mark, paused ? "paused" : "");
    STATES.forEach((state, at) => {
      const count = one.states[state] ?? 0;
      setLink(cells[at + 1], count, count ? to({ state }) : null);
    });
    setText(cells[5], one.held);
    setText(cells[6], one.oldest === null ? "" : duration(one.oldest));
    setText(cells[7], brief(one.done));
    setLink(cells[8], brief(one.failed), one.failed ? to({ state: "discarded" }) : null);
    cells[8].classList.toggle("bad", one.failed > 0);
    setText(cells[9], one.ended ? duration(one.ran / one.ended) : "");
    if (task === null) {
      setText(button, paused ? "Resume" : "Pause");
      setAttribute(button, "aria-label", `${paused ? "Resume" : "Pause"} queue ${queue}`);
    }
  };
  return node;
}

// An error that a button has led to: seen, and said.
export function complain(text) {
  const list = document.getElementById("main");
  const close = () => { message.remove(); list.focus(); };
  const message = h("p", { class: "trouble", role: "alert" }, `${text} `, h("button", { onclick: close }, "Dismiss"));
  list.prepend(message);
}

export function overview() {
  const budgets = h("div");
  const of = table("Processes", [
    ["Process"], ["Leases"], ["Waiting", "number"], ["In use", "number"], ["Idle", "number"], ["State"],
    ["Pid", "number"], ["Up for", "number"], ["Restarts", "number"], ["Pools, and their leases"],
  ]);
  const crew = h("section", {}, h("h2", {}, "Processes"), of.box);
  const queues = h("div");
  return {
    title: "Overview",
    node: h("div", {}, budgets, crew, queues),
    update({ now, status, recent, jobs }) {
      if (status) {
        const processes = status.workers;
        const sections = status.budgets.map((budget) => ({ budget, recent: recent[budget.database], processes, now }));
        // Without the coordinator nobody knows how they stand now: what was known stays, and looks old.
        const known = status.health.coordinator || sections.length > 0;
        if (known) keyed(budgets, sections, (one) => one.budget.database, budgetSection);
        budgets.classList.toggle("old", !known);
        const size = Math.max(1, ...status.budgets.map((budget) => budget.size));
        const several = budgets.children.length > 1;
        const rows = processes.map((process) => ({ process, size, several }));
        keyed(of.body, rows, ({ process }) => `${process.worker} ${process.pid}`, () => processRow(of));
      }
      const some = jobs.filter((one) => one.error === null || one.queues.length);
      const sections = some.map((one) => ({ jobs: one, database: one.database, several: some.length > 1, now }));
      keyed(queues, sections, (one) => one.database, queuesSection);
    },
  };
}
