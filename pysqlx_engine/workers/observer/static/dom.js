// The page's few tools. Text goes in as text alone: names, arguments and tracebacks are other people's.
// What is there is changed in place, and only where it differs: focus, selection and scroll stay where they are.

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function setText(node, text) {
  text = String(text);
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// The children of `parent` become those of `items`, in this order. `make` gives a node with a method `update`.
export function keyed(parent, items, key, make) {
  const wanted = new Map(items.map((item) => [String(key(item)), item]));
  const there = new Map();
  for (const node of [...parent.children]) {
    if (wanted.has(node.dataset.key)) there.set(node.dataset.key, node);
    else node.remove();
  }
  let next = parent.firstElementChild;
  for (const [name, item] of wanted) {
    const node = there.get(name) ?? make(item);
    node.dataset.key = name;
    node.update(item);
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
}

// A table in a box of its own that scrolls sideways. Columns are [heading, class].
export function table(caption, columns) {
  const body = h("tbody");
  const headings = columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
  const head = h("thead", {}, h("tr", {}, ...headings));
  const whole = h("table", {}, h("caption", { class: "hidden" }, caption), head, body);
  const box = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, whole);
  return { box, body, columns };
}

// A row of `table`: its first cell is its heading.
export function row(of) {
  const cells = of.columns.map(([, kind], at) => h(at ? "td" : "th", { class: kind, scope: at ? null : "row" }));
  return { node: h("tr", {}, ...cells), cells };
}

// A link in `cell`; without `href` a text.
export function setLink(cell, text, href) {
  const link = cell.firstElementChild ?? cell.appendChild(h("a"));
  setText(link, text);
  setAttribute(link, "href", href);
}

// What a screen reader says when it has nothing else to say.
export function say(text) {
  document.getElementById("said").textContent = text;
}

// Resolves to whether it was confirmed. The browser keeps the focus within, closes on Escape and gives the focus back.
export function confirm(title, text, yes) {
  const dialog = document.getElementById("confirm");
  setText(document.getElementById("confirm-title"), title);
  setText(document.getElementById("confirm-text"), text);
  setText(document.getElementById("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

const PATIENCE = 20_000; // milliseconds: the observer itself waits up to 15 s for a connection, and then says why

export async function api(path, parameters = {}, method = "GET") {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one != null && one !== "") query.append(name, one);
  }
  const address = query.size ? `${path}?${query}` : path;
  const answer = await fetch(address, { method, signal: AbortSignal.timeout(PATIENCE) });
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  let reason = text.trim();
  if (answer.headers.get("Content-Type")?.startsWith("application/json")) reason = JSON.parse(text).error;
  throw Object.assign(new Error(reason || `HTTP status ${answer.status}`), { status: answer.status });
}

export const plural = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds < 0.001) return seconds > 0 ? "< 1 ms" : "0";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

export const ago = (seconds) => (seconds < 1 ? "just now" : `${duration(seconds)} ago`);

// `number` as briefly as a table needs it.
export const brief = (number) => (number >= 100 ? Math.round(number) : Number(number.toFixed(1)));

export const clock = (at, seconds = false) => new Date(at * 1000).toLocaleTimeString("en-GB").slice(0, seconds ? 8 : 5);

export function moment(text) {
  if (text == null) return "";
  const at = new Date(text);
  return `${at.toLocaleDateString("sv-SE")} ${at.toLocaleTimeString("en-GB")}`;
}
