// Who held the budget over the last hour, as bars of ten seconds: leases on top, waiters below.

import { brief, clock, duration, h, keyed, row, setAttribute, setText, table } from "./dom.js";

const SPANS = [300, 900, 1800, 3600]; // seconds: a young run is not shown as a sliver of an hour
const STEP = 10;
const COLOURS = 12;
const LEFT = 34, RIGHT = 4, TOP = 10, HEIGHT = 140, GAP = 22, STRIP = 40, AXIS = 18;
const WHOLE = TOP + HEIGHT + GAP + STRIP + AXIS;
const SVG = "http://www.w3.org/2000/svg";

const others = new Map(); // processes that are no workers, in the order in which they were seen

// The class that gives a process its colour, here and in the table of processes.
export function colour(holder) {
  if (holder === "others") return "others";
  const worker = /^worker (\d+)$/.exec(holder);
  if (worker) return `c${worker[1] % COLOURS}`;
  if (!others.has(holder)) others.set(holder, others.size);
  return `c${COLOURS - 1 - (others.get(holder) % COLOURS)}`;
}

const USES = [
  ["in use", "in-use", (point) => point.in_use],
  ["idle", "idle", (point) => point.idle],
  ["opening, closing", "moving", (point) => Math.max(0, point.leased - point.in_use - point.idle)],
];

function holdersOf(points) {
  const names = [...new Set(points.flatMap((point) => Object.keys(point.holders)))];
  const rank = (name) => (name === "others" ? 2 : name.startsWith("worker ") ? 0 : 1);
  names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true }));
  return names.map((name) => [name, colour(name), (point) => point.holders[name] ?? 0]);
}

function svg(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export function chart(database) {
  let points = [], kind = "process", chosen = null, current = null, x = () => 0;
  const drawing = svg("svg", { "aria-hidden": "true", height: WHOLE });
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: TOP + HEIGHT + GAP + STRIP });
  // A slider: arrows go from moment to moment, and what it says is what a pointer would show.
  const frame = h("div", {
    class: "chart", tabindex: 0, role: "slider", "aria-label": `Moment of the last hour of ${database}`,
    "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0,
  });
  frame.append(drawing);
  const reading = h("p", { class: "reading" });
  const legend = h("ul", { class: "legend" });
  const kinds = h("fieldset", { class: "kinds" }, h("legend", { class: "hidden" }, "The chart shows leases by"));
  for (const [value, text] of [["process", "by process"], ["use", "by use"]]) {
    const name = `kind of ${database}`;
    const onchange = () => stackBy(value);
    const radio = h("input", { type: "radio", name, value, checked: value === kind, onchange });
    kinds.append(h("label", {}, radio, text));
  }
  const rows = table(`The last hour of ${database}, the newest first`, [
    ["Until"], ["Size", "number"], ["Leased", "number"], ["In use", "number"], ["Idle", "number"],
    ["Waiting", "number"], ["At most", "number"], ["Wait p90", "number"], ["Timed out", "number"],
    ["Leases by process"],
  ]);
  rows.box.classList.add("tall");
  const details = h("details", { ontoggle: list }, h("summary", {}, "The same as a table"), rows.box);
  const node = h("div", { hidden: true }, kinds, frame, reading, legend, details);

  function stackBy(value) {
    kind = value;
    draw();
  }

  const series = () => (kind === "use" ? USES : holdersOf(points));

  function draw() {
    node.hidden = !points.length;
    const width = frame.clientWidth;
    if (!points.length || !width) return;
    const end = points.at(-1).at;
    const age = end - points[0].at + STEP;
    const span = SPANS.find((one) => one >= age) ?? SPANS.at(-1);
    const scale = (width - LEFT - RIGHT) / span;
    x = (at) => LEFT + Math.max(0, at - (end - span)) * scale;
    const most = Math.max(1, ...points.map((point) => Math.max(point.size, point.most_leased)));
    const waiting = Math.max(...points.map((point) => point.most_waiting));
    const y = (leases) => TOP + HEIGHT - (leases / most) * HEIGHT;
    const floor = TOP + HEIGHT + GAP + STRIP;
    const z = (waiters) => floor - (waiters / Math.max(1, waiting)) * STRIP;
    const shown = points.filter((point) => point.at > end - span);
    // From the end of the one before, if that is not long ago: looks are not exactly so many seconds apart.
    const begins = new Map(shown.map((point, index) => {
      const before = shown[index - 1]?.at ?? 0;
      return [point, x(point.at - before < 2 * STEP ? before : point.at - STEP)];
    }));
    const bar = (point, low, high) => `M${begins.get(point)} ${low}H${x(point.at)}V${high}H${begins.get(point)}Z`;

    const parts = [];
    const heights = new Map(shown.map((point) => [point, 0]));
    for (const [, name, of] of series()) {
      let layer = "", edge = "";
      for (const point of shown) {
        const below = heights.get(point), above = below + of(point);
        layer += bar(point, y(below), y(above));
        edge += `M${begins.get(point)} ${y(above)}H${x(point.at)}`;
        heights.set(point, above);
      }
      parts.push(svg("path", { class: name, d: layer }), svg("path", { class: "edge", d: edge }));
    }
    let size = "", waiters = "";
    for (const point of shown) {
      size += `${size ? "L" : "M"}${begins.get(point)} ${y(point.size)}H${x(point.at)}`;
      waiters += bar(point, floor, z(point.most_waiting));
    }
    parts.push(svg("path", { class: "size", d: size }), svg("path", { class: "waiting", d: waiters }));
    const last = points.at(-1).size;
    for (const [at, text] of [[y(last), last], [y(0), 0], [floor - STRIP, waiting], [floor, ""]]) {
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      parts.push(svg("text", { class: "end", x: LEFT - 6, y: at + 4 }, text));
    }
    parts.push(svg("text", { x: LEFT, y: TOP + HEIGHT + GAP - 6 }, "waiting"));
    const ticks = width > 700 ? 5 : 3;
    for (let tick = 0; tick <= ticks; tick++) {
      const anchor = tick === 0 ? "start" : tick === ticks ? "end" : "middle";
      const at = end - span + (span * tick) / ticks;
      parts.push(svg("text", { class: anchor, x: x(at), y: WHOLE - 4 }, clock(at)));
    }
    drawing.setAttribute("width", width);
    drawing.replaceChildren(...parts, cursor);
    read();
  }

  // Says what was at the chosen moment, or is at the last one.
  function read() {
    if (!points.length) return;
    const at = chosen === null ? points.length - 1 : Math.max(0, points.findIndex((point) => point.at >= chosen));
    const point = points[at];
    const says =
      `${clock(point.at, true)}: ${brief(point.leased)} of ${point.size} leased, ${brief(point.in_use)} in use, ` +
      `${brief(point.waiting)} waiting (at most ${point.most_waiting}), ` +
      (point.wait ? `nine of ten waited ${duration(point.wait)} at most, ` : "") + `${point.timeouts} timed out`;
    setText(reading, says);
    const held = Object.entries(point.holders).map(([name, leases]) => `${name} ${brief(leases)}`);
    setAttribute(frame, "aria-valuemax", points.length - 1);
    setAttribute(frame, "aria-valuenow", at);
    setAttribute(frame, "aria-valuetext", [says, ...held].join(", "));
    cursor.setAttribute("visibility", chosen === null ? "hidden" : "visible");
    cursor.setAttribute("x1", x(point.at - STEP / 2));
    cursor.setAttribute("x2", x(point.at - STEP / 2));
    current = point;
    keyed(legend, series(), ([name]) => name, ([name, kind]) => {
      const value = h("b");
      const item = h("li", {}, h("i", { class: `swatch ${kind}` }), `${name} `, value);
      item.update = ([, , of]) => setText(value, brief(of(current)));
      return item;
    });
  }

  function list() {
    if (!details.open) return;
    keyed(rows.body, points.toReversed(), (point) => point.at, () => {
      const { node, cells } = row(rows);
      node.update = (point) => {
        const held = Object.entries(point.holders).map(([name, leases]) => `${name}: ${brief(leases)}`);
        const values = [
          clock(point.at, true), point.size, brief(point.leased), brief(point.in_use), brief(point.idle),
          brief(point.waiting), point.most_waiting, duration(point.wait), point.timeouts, held.join(", "),
        ];
        values.forEach((value, at) => setText(cells[at], value));
      };
      return node;
    });
  }

  function choose(at) {
    chosen = at;
    read();
  }

  frame.addEventListener("pointermove", (event) => {
    const at = event.clientX - frame.getBoundingClientRect().left;
    const nearest = points.find((point) => x(point.at) >= at) ?? points.at(-1);
    choose(nearest.at);
  });
  frame.addEventListener("pointerleave", () => choose(null));
  frame.addEventListener("blur", () => choose(null));
  frame.addEventListener("keydown", (event) => {
    const now = chosen === null ? points.length - 1 : points.findIndex((point) => point.at >= chosen);
    const last = points.length - 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -6, PageUp: 6, Home: -last, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    choose(points[Math.min(last, Math.max(0, now + steps[event.key]))].at);
  });
  new ResizeObserver(draw).observe(frame);

  return {
    node,
    // What has come since the last time. The points before stay, also when the observer was started anew.
    add(more) {
      for (const point of more) {
        while (points.length && points.at(-1).at >= point.at) points.pop(); // the clock was set back
        points.push(point);
      }
      points = points.filter((point) => point.at > points.at(-1).at - SPANS.at(-1));
      draw();
      list();
    },
    last: () => points.at(-1)?.number ?? 0,
  };
}
