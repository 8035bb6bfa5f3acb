// The page: which view is shown, one look a second at how the run stands, and what is said when nobody answers.

import { api, duration, h, plural, say, setAttribute, setText } from "./dom.js";
import { jobList, jobPage } from "./jobs.js";
import { overview } from "./overview.js";

const EVERY = 1000;
const SILENCE = 3; // ticks without an answer, before that is said: a machine that slept has not been silent
const SILENT = "the observer of the run does not answer";

const main = document.getElementById("main");
let view = null, shown = null;
let status = null; // the last answer; what a run says no more is kept from the one before
let answered = performance.now(), ticks = 0, failure = null, asking = false, trouble = "", health = "";

// -- views ------------------------------------------------------------------------------------------------------------

function route() {
  const [path, query] = location.hash.replace(/^#?\/?/, "").split("?");
  const parameters = new URLSearchParams(query);
  const job = /^job\/(\d+)$/.exec(path);
  const name = job ? location.hash : path === "jobs" ? "jobs" : "overview";
  if (name === shown) view.show?.(parameters); // the same list with other filters: the focus stays in them
  else {
    const first = view === null;
    view?.stop?.();
    view = job ? jobPage(job[1], parameters) : name === "jobs" ? jobList(parameters) : overview();
    shown = name;
    main.replaceChildren(view.node);
    if (!first) (main.querySelector("h2[tabindex]") ?? main).focus();
    window.scrollTo(0, 0);
  }
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const here = link.dataset.view === (job ? "jobs" : name);
    setAttribute(link, "aria-current", here ? "page" : null);
  }
  render();
}

function render() {
  if (status !== null) view.update(status);
  tellHealth();
}

function tellHealth() {
  const run = status?.run ?? "pysqlx-run";
  const now = status?.status;
  setText(document.getElementById("run"), run);
  const line = document.getElementById("health");
  if (!now) return setText(line, "");
  const { ready, workers, up, coordinator, supervisor } = now.health;
  const missing = [];
  if (workers !== null && up < workers) missing.push(`${up} of ${plural(workers, "worker is", "workers are")} up`);
  if (!supervisor) missing.push("the supervisor does not answer");
  if (!coordinator) missing.push("the coordinator is not there");
  const all = workers === null ? "" : `: ${plural(workers, "worker", "workers")}`;
  const text = ready ? `✓ ready${all}` : `✗ not ready: ${missing.join(", ") || "something is missing"}`;
  setText(line, text);
  setAttribute(line, "class", ready ? "good" : "bad");
  if (health && health !== text) say(text);
  health = text;
  const waiting = now.budgets.reduce((sum, budget) => sum + budget.waiting, 0);
  const title = `${ready ? "" : "✗ "}${waiting ? `(${waiting} waiting) ` : ""}${view.title} · ${run}`;
  if (document.title !== title) document.title = title;
}

// -- looking ----------------------------------------------------------------------------------------------------------

async function look() {
  if (asking) return;
  asking = true;
  try {
    const answer = await api("/api/status");
    failure = answer.failure;
    ticks = 0;
    if (failure === null) answered = performance.now();
    status = failure === null ? answer : { ...answer, status: status?.status ?? null, recent: status?.recent ?? {} };
    render();
  } catch (error) {
    failure = error.status ? error.message : SILENT;
  } finally {
    asking = false;
  }
}

// What is shown is as old as the last answer; whoever looks has to see that.
function tellSilence() {
  const silent = performance.now() - answered;
  const since = `no answer since ${duration(silent / 1000)}`;
  const line = document.getElementById("trouble");
  const now = failure !== null ? failure : ticks > SILENCE ? SILENT : "";
  setText(line, now && `✗ ${since}: ${now}. ${status?.status ? "What is shown is as old." : ""}`);
  line.hidden = !now;
  document.body.classList.toggle("old", Boolean(now));
  if (Boolean(now) !== Boolean(trouble)) say(now ? `No answer: ${now}` : "The run answers again.");
  trouble = now;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  [answered, ticks] = [performance.now(), 0]; // nobody has asked meanwhile
  look();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part of the address behind # is the view's
  main.focus();
});
window.addEventListener("hashchange", route);
route();
look();
setInterval(() => {
  if (document.hidden) return;
  ticks++;
  look();
  tellSilence();
}, EVERY);
