// Jobs: a list with filters, which are in the address, and one job with all that went wrong.

import {
  ago, api, confirm, duration, h, keyed, moment, row, say, setAttribute, setLink, setText, table,
} from "./dom.js";
import { complain } from "./overview.js";

const STATES = ["available", "running", "scheduled", "retrying", "completed", "discarded", "cancelled"];
const SIGNS = {
  available: "○", running: "▶", scheduled: "◷", retrying: "↻", completed: "✓", discarded: "✗", cancelled: "⊘",
};
const ASKED = ["database", "queue", "task", "state", "before"];
const LIST = 5000, ONE = 2000; // milliseconds between two looks

const since = (text, now) => Math.max(0, now - Date.parse(text) / 1000);
const jobLink = (id, database) => `#/job/${id}${database ? `?${new URLSearchParams({ database })}` : ""}`;

function setState(node, job) {
  setText(node, `${SIGNS[job.state] ?? ""} ${job.state}${job.held ? ", held" : ""}`);
  setAttribute(node, "class", `state ${job.state}`);
}

function timing(job, now) {
  const until = Date.parse(job.run_at) / 1000 - now;
  const asked = job.cancel_asked_at === null ? "" : ", asked to stop";
  if (job.state === "running") return `for ${duration(since(job.claimed_at, now))}${asked}`;
  if (job.state === "available") return `waits for ${duration(since(job.run_at, now))}`;
  if (job.ended_at === null) return until > 0 ? `in ${duration(until)}` : "due";
  const when = ago(since(job.ended_at, now));
  if (job.claimed_at === null) return when;
  return `${when}, ran ${duration(since(job.claimed_at, Date.parse(job.ended_at) / 1000))}`;
}

// Asks again and again while the page is seen. An answer to what is not asked any more is dropped.
function repeated(every, ask, take, fail) {
  let timer = 0, number = 0;
  async function again() {
    clearTimeout(timer);
    const mine = ++number;
    if (!document.hidden) {
      try {
        const answer = await ask();
        if (mine === number) take(answer);
      } catch (error) {
        if (mine === number) fail(error);
      }
    }
    if (mine === number) timer = setTimeout(again, every);
  }
  const seen = () => document.hidden || again();
  document.addEventListener("visibilitychange", seen);
  return {
    again,
    stop() {
      number++;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}

export function jobList(asked) {
  let now = Date.now() / 1000, shown = null, waiting = null, known = [];
  const database = h("select", { name: "database" });
  const withDatabase = h("label", { hidden: true }, "Database ", database);
  const [queue, queues] = choice("queue");
  const [task, tasks] = choice("task");
  const boxes = STATES.map((state) => h("input", { type: "checkbox", name: "state", value: state }));
  const labels = boxes.map((box) => h("label", {}, box, `${SIGNS[box.value]} ${box.value}`));
  const filters = h("form", { class: "filters", "aria-label": "Filters", onchange: filter, onsubmit: filter },
    withDatabase, h("label", {}, "Queue ", queue, queues), h("label", {}, "Task ", task, tasks),
    h("fieldset", {}, h("legend", {}, "State"), ...labels), h("a", { href: "#/jobs" }, "All jobs"));
  const of = table("Jobs, the newest first", [
    ["Job", "number"], ["Task"], ["State"], ["Queue"], ["Attempt", "number"], ["When"], ["Created"],
    ["What went wrong last", "error"],
  ]);
  const note = h("p", { class: "note", role: "status" });
  const change = h("button", { hidden: true, onclick: renew }, "Show the new list");
  const newest = h("a", {}, "Newest"), older = h("a", {}, "Older");
  const pages = h("nav", { "aria-label": "Pages", class: "pages" }, newest, older);
  const heading = h("h2", { tabindex: -1 }, "Jobs"), line = h("p", { class: "line" }, note, change);
  const node = h("div", {}, heading, filters, line, of.box, pages);

  function choice(name) {
    const list = h("datalist", { id: `some-${name}` });
    const plain = { autocomplete: "off", autocapitalize: "off", spellcheck: "false" };
    return [h("input", { name, list: list.id, placeholder: "any", ...plain }), list];
  }

  function address(more) {
    const to = new URLSearchParams(asked);
    to.delete("before");
    for (const [name, value] of Object.entries(more)) to.set(name, value);
    return `#/jobs${to.size ? `?${to}` : ""}`;
  }

  function filter(event) {
    event.preventDefault();
    const to = new URLSearchParams();
    for (const [name, value] of new FormData(filters)) {
      if (value && (name !== "database" || known.length > 1)) to.append(name, value);
    }
    location.hash = `#/jobs${to.size ? `?${to}` : ""}`;
  }

  function show(parameters) {
    asked = parameters;
    shown = waiting = null;
    queue.value = asked.get("queue") ?? "";
    task.value = asked.get("task") ?? "";
    if (known.length) database.value = asked.get("database") ?? known[0];
    for (const box of boxes) box.checked = asked.getAll("state").includes(box.value);
    setAttribute(of.box, "aria-busy", "true");
    questions.again();
  }

  // Nothing jumps under the eyes, the pointer or the fingers of somebody who reads the list.
  function reading() {
    const selection = getSelection();
    return of.body.matches(":hover, :focus-within") || of.box.getBoundingClientRect().top < 0 ||
      (!selection.isCollapsed && of.box.contains(selection.anchorNode));
  }

  function take(answer, wanted = false) {
    const ids = (list) => list.jobs.map((job) => job.id).join();
    const held = shown !== null && !wanted && ids(answer) !== ids(shown) && reading();
    waiting = held ? answer : null;
    change.hidden = !held;
    setAttribute(of.box, "aria-busy", null);
    if (held) return;
    shown = answer;
    setText(note, shown.jobs.length ? "" : "No job is like this.");
    setAttribute(note, "class", "note");
    of.box.hidden = !shown.jobs.length;
    keyed(of.body, shown.jobs, (job) => job.id, jobRow);
    setAttribute(newest, "href", asked.has("before") ? address({}) : null);
    setAttribute(older, "href", shown.before !== null ? address({ before: shown.before }) : null);
  }

  function renew() {
    take(waiting, true);
    of.box.focus();
  }

  function jobRow() {
    const { node, cells } = row(of);
    const state = cells[2].appendChild(h("span"));
    node.update = (job) => {
      setLink(cells[0], job.id, jobLink(job.id, asked.get("database")));
      setText(cells[1], job.task);
      setState(state, job);
      setText(cells[3], job.queue);
      setText(cells[4], `${job.attempt}/${job.max_attempts}`);
      setText(cells[5], timing(job, now));
      setText(cells[6], moment(job.created_at));
      setText(cells[7], job.error ?? "");
    };
    return node;
  }

  const ask = () => api("/api/jobs", Object.fromEntries(ASKED.map((name) => [name, asked.getAll(name)])));
  const questions = repeated(LIST, ask, take, (error) => {
    setAttribute(of.box, "aria-busy", null);
    setText(note, `The jobs cannot be looked at: ${error.message}`);
    setAttribute(note, "class", "note bad");
  });
  show(asked);
  return {
    title: "Jobs",
    node,
    show,
    stop: questions.stop,
    update(status) {
      now = status.now;
      known = status.jobs.map((one) => one.database);
      options(database, known);
      withDatabase.hidden = known.length < 2;
      if (document.activeElement !== database) database.value = asked.get("database") ?? known[0] ?? "";
      const seen = status.jobs.flatMap((one) => [...one.tasks, ...one.ended]);
      options(queues, [...status.jobs.flatMap((one) => one.queues), ...seen.map((one) => one.queue)]);
      options(tasks, seen.map((one) => one.task));
    },
  };
}

function options(list, values) {
  const option = (value) => Object.assign(h("option", { value }, value), { update() {} });
  keyed(list, [...new Set(values)].sort(), (value) => value, option);
}

const FACTS = [
  ["Queue", (job) => job.queue],
  ["Priority", (job) => job.priority],
  ["Attempt", (job) => `${job.attempt} of ${job.max_attempts}`],
  ["Created", (job) => moment(job.created_at)],
  ["May run from", (job) => moment(job.run_at)],
  ["Last begun", (job) => moment(job.claimed_at)],
  ["Ended", (job) => moment(job.ended_at)],
  ["Asked to stop", (job) => moment(job.cancel_asked_at)],
  ["Unique key", (job) => job.unique_key],
  ["Limit", (job) => (job.limit_max === null ? null : `${job.limit_max} at a time with the key ${job.limit_key}`)],
  ["Progress", (job) => job.progress],
];

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

// A number that JavaScript cannot hold stays as it was written.
const readable = (json) => (/\d{16}/.test(json) ? json : indented(json));

export function jobPage(id, asked) {
  let job = null, now = Date.now() / 1000;
  const database = asked.get("database");
  const heading = h("h2", { tabindex: -1 }, `Job ${id}`), note = h("p", { class: "note", role: "status" });
  const state = h("span"), when = h("span");
  const buttons = {
    retry: h("button", { hidden: true, onclick: () => press("retry") }, `Retry job ${id}`),
    cancel: h("button", { hidden: true, onclick: () => press("cancel") }, `Cancel job ${id}`),
  };
  const facts = h("dl", { class: "facts" });
  const args = block("Arguments"), result = block("Result");
  const attempts = h("div"), wrong = h("h3", {}, "What went wrong");
  const line = h("p", { class: "line" }, state, when, buttons.retry, buttons.cancel);
  const whole = h("div", { hidden: true }, line, facts, args.node, result.node, wrong, attempts);
  const node = h("div", {}, heading, note, whole);

  function block(title) {
    const text = h("pre", { tabindex: 0, role: "region", "aria-label": `${title} of job ${id}` });
    return { node: h("div", {}, h("h3", {}, title), text), text };
  }

  async function press(verb) {
    const runs = job.state === "running";
    const title = `${verb === "retry" ? "Retry" : "Cancel"} job ${id}?`;
    const then = verb === "retry" ? `It is ${job.state}, and runs once more, now.`
      : runs ? "It is running, and is asked to stop." : `It is ${job.state}, and will not run.`;
    if (!(await confirm(title, `${job.task} in queue ${job.queue}. ${then}`, title.slice(0, -1)))) return;
    try {
      const { done, asked: told, reason } = await api(`/api/jobs/${id}/${verb}`, { database }, "POST");
      if (!done && !told) complain(`Job ${id} was not changed: it ${reason ?? "is as it was"}`);
      else say(`Job ${id} ${verb === "retry" ? "runs once more" : told ? "was asked to stop" : "is cancelled"}.`);
    } catch (error) {
      complain(`Job ${id} was not changed: ${error.message}`);
    }
    await questions.again();
    if (document.activeElement === document.body || document.activeElement.hidden) heading.focus();
  }

  function take(answer) {
    job = answer;
    whole.hidden = false;
    setText(note, "");
    setText(heading, `Job ${id}: ${job.task}`);
    for (const [verb, button] of Object.entries(buttons)) button.hidden = !job.may.includes(verb);
    const known = FACTS.map(([name, of]) => [name, of(job)]).filter(([, value]) => value !== null && value !== "");
    keyed(facts, known, ([name]) => name, ([name]) => {
      const value = h("dd");
      const pair = h("div", {}, h("dt", {}, name), value);
      pair.update = ([, text]) => setText(value, text);
      return pair;
    });
    setText(args.text, readable(job.args));
    result.node.hidden = job.result === null;
    setText(result.text, job.result === null ? "" : readable(job.result));
    wrong.hidden = !job.errors.length;
    keyed(attempts, job.errors.map((error, at) => ({ ...error, number: at + 1 })), (one) => one.number, attempt);
    tell();
  }

  function tell() {
    if (job === null) return;
    setState(state, job);
    setText(when, timing(job, now));
  }

  function attempt(one) {
    const where = h("p", { class: "note" }, `${moment(one.at)}, ${one.worker}`);
    const error = h("p", { class: "error" }, one.error);
    const node = h("section", { class: "attempt" }, h("h4", {}, `Attempt ${one.attempt}`), where, error);
    const label = `Traceback of attempt ${one.attempt}, error ${one.number}`;
    if (one.traceback) node.append(h("pre", { tabindex: 0, role: "region", "aria-label": label }, one.traceback));
    return Object.assign(node, { update() {} });
  }

  const questions = repeated(ONE, () => api(`/api/jobs/${id}`, { database }), take, (error) => {
    const gone = error.status === 404;
    setText(note, gone ? "There is no such job (any more)." : `The job cannot be looked at: ${error.message}`);
    setAttribute(note, "class", "note bad");
    if (gone) whole.hidden = true;
  });
  questions.again();
  return {
    title: `Job ${id}`,
    node,
    stop: questions.stop,
    update(status) {
      now = status.now;
      tell();
    },
  };
}
