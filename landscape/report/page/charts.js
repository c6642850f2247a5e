"use strict";
// Charts as SVG: axes, ticks, and what is drawn between them. Every text is written as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 760, height: 400 };
const ROOM = { left: 78, right: 16, top: 16, bottom: 52 };
const COLOURS = 8; // of the style sheet, --series-0 and so on
const DASHES = ["", "7 3", "2 2", "9 3 2 3"];
const SIGNS = [
  (x, y) => `M${x - 4.5},${y}a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0`,
  (x, y) => `M${x - 4},${y - 4}h8v8h-8z`,
  (x, y) => `M${x},${y - 5.5}l5,9h-10z`,
  (x, y) => `M${x},${y - 5.5}l5.5,5.5l-5.5,5.5l-5.5,-5.5z`,
];

function add(parent, name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

const colour = (i) => `var(--series-${i % COLOURS})`;

/** Write a number short, with a true minus; powers of ten as such where that is shorter. */
function short(value) {
  const text = String(Number(value.toPrecision(4)));
  const plain = Math.abs(value) < 1e5 && Math.abs(value) >= 1e-3;
  if (value === 0 || plain) return text.replace("-", "\u2212");
  const power = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
  const factor = Number((value / 10 ** power).toPrecision(3));
  const raised = String(power).replace(/[-\d]/g, (c) => (c === "-" ? "\u207b" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  const sign = value < 0 ? "\u2212" : "";
  return `${sign}${Math.abs(factor) === 1 ? "" : `${Math.abs(factor)}·`}10${raised}`;
}

// An axis has `place`, from a value to where it is along the axis, and there its ends `low` and `high`; ticks are values.

function linearAxis(low, high, name) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return { place: (x) => x, low, high: low + span, ticks, name };
}

function logAxis(low, high, name) {
  const ends = [Math.log10(low), Math.log10(high)];
  const every = Math.max(1, Math.ceil((ends[1] - ends[0]) / 8));
  const factors = ends[1] - ends[0] < 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let k = Math.floor(ends[0]); k <= ends[1]; k += 1) {
    if (k % every === 0) ticks.push(...factors.map((m) => Number(`${m}e${k}`)));
  }
  return { place: Math.log10, low: ends[0], high: ends[1], ticks: ticks.filter((t) => t >= low && t <= high), name };
}

function symlogAxis(low, high, linear, name) {
  const end = symlogInverse(Math.max(-low, high), linear);
  const powers = [0];
  for (let tick = linear; tick <= end; tick *= 10) powers.push(tick, -tick);
  const place = (x) => symlog(x, linear);
  const ticks = powers.filter((t) => place(t) >= low && place(t) <= high);
  if (ticks.length < 3) {
    const even = linearAxis(symlogInverse(low, linear), symlogInverse(high, linear), name);
    return { ...even, place, low, high };
  }
  return { place, low, high, ticks, name };
}

/** Draw an empty chart and return where values are in it, and the group that is cut off at its borders. */
function chart(holder, x, y, words) {
  const root = document.createElementNS(SVG, "svg");
  root.setAttribute("viewBox", `0 0 ${SIZE.width} ${SIZE.height}`);
  root.setAttribute("role", "img");
  root.setAttribute("aria-label", words);
  const [left, right, top, bottom] = [ROOM.left, SIZE.width - ROOM.right, ROOM.top, SIZE.height - ROOM.bottom];
  const px = (value) => left + ((x.place(value) - x.low) / (x.high - x.low)) * (right - left);
  const py = (value) => bottom - ((y.place(value) - y.low) / (y.high - y.low)) * (bottom - top);
  const rounded = (place) => Number(place.toFixed(2));
  let last = -Infinity;
  for (const tick of [...x.ticks].sort((a, b) => a - b)) {
    const at = rounded(px(tick));
    add(root, "line", { class: "grid", x1: at, x2: at, y1: top, y2: bottom });
    if (at - last < 36) continue;
    add(root, "text", { x: at, y: bottom + 18, "text-anchor": "middle" }, short(tick));
    last = at;
  }
  for (const tick of y.ticks) {
    const at = rounded(py(tick));
    add(root, "line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
    add(root, "text", { x: left - 8, y: at + 4, "text-anchor": "end" }, short(tick));
  }
  add(root, "rect", { class: "frame", x: left, y: top, width: right - left, height: bottom - top });
  add(root, "text", { x: (left + right) / 2, y: SIZE.height - 10, "text-anchor": "middle" }, x.name);
  const middle = (top + bottom) / 2;
  add(root, "text", { x: 16, y: middle, "text-anchor": "middle", transform: `rotate(-90 16 ${middle})` }, y.name);
  const clip = add(root, "clipPath", { id: `${holder.id}-inside` });
  add(clip, "rect", { x: left, y: top, width: right - left, height: bottom - top });
  const inside = add(root, "g", { "clip-path": `url(#${holder.id}-inside)` });
  holder.replaceChildren(root);
  return { root, inside, px: (v) => rounded(px(v)), py: (v) => rounded(py(v)) };
}

/** Write which colour and line or sign stands for what. */
function legend(holder, entries, signs) {
  const items = entries.map(({ name, series }) => {
    const item = document.createElement("li");
    const swatch = document.createElementNS(SVG, "svg");
    swatch.setAttribute("viewBox", "0 0 30 12");
    swatch.setAttribute("aria-hidden", "true");
    if (signs) add(swatch, "path", { d: SIGNS[series % SIGNS.length](15, 6), fill: colour(series) });
    else add(swatch, "path", { d: "M0,6h30", class: "curve", stroke: colour(series), "stroke-dasharray": dash(series) });
    item.append(swatch, name);
    return item;
  });
  holder.replaceChildren(...items);
}

const dash = (series) => DASHES[series % DASHES.length];
