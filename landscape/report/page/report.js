"use strict";
// What the reader turns: measures against frequency, densities, surfaces, and the order of the table.

const DATA = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

// The table is sorted by the heading that is pressed: falling first, then rising.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const worth = (row, i) => {
    const number = row.cells[i].querySelector("data");
    return number ? Number(number.value) : row.cells[i].textContent;
  };
  const compare = (a, b) => {
    if (typeof a === "string" || typeof b === "string") {
      if (typeof a === typeof b) return a.localeCompare(b, undefined, { numeric: true });
      return typeof a === "string" ? -1 : 1; // an empty cell
    }
    return Number.isNaN(a) - Number.isNaN(b) ? Number.isNaN(b) - Number.isNaN(a) : a - b;
  };
  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => compare(worth(a, i), worth(b, i)) * (falling ? -1 : 1));
      body.replaceChildren(...sorted);
    });
  });
}

// Measures against the number of training samples.

function drawFrequency() {
  const { points, measures } = DATA.frequency;
  const key = at("measure").value;
  const name = measures.find((measure) => measure.key === key).name;
  const shown = points.filter((p) => p.values[key] && p.values[key][0] !== null);
  const models = [...new Set(shown.map((p) => p.model))];
  const values = shown.map((p) => p.values[key][0]);
  const counted = shown.every((p) => p.trained > 0) && new Set(shown.map((p) => p.trained)).size > 1;
  const parts = [...new Set(shown.map((p) => p.part))];
  const where = (p) => (counted ? p.trained : parts.indexOf(p.part));
  const xs = shown.map(where);
  const [fewest, most] = [Math.min(...xs), Math.max(...xs)];
  const spread = 0.08 * (most - fewest);
  const counts = "training samples of the part";
  const x = counted
    ? most >= 5 * fewest ? logAxis(fewest / 1.25, most * 1.25, counts) : linearAxis(fewest - spread, most + spread, counts)
    : { ...linearAxis(-0.5, parts.length - 0.5, "parts, in the order of the table"), ticks: [] };
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.12 * (high - low || Math.abs(high) || 1);
  const log = low > 0 && high >= 5 * low;
  const y = log ? logAxis(low / 1.5, high * 1.8, name) : linearAxis(low - margin, high + 1.6 * margin, name);
  const words = `${name} of ${shown.length} parts from ${short(low)} to ${short(high)}; the table has the numbers`;
  const made = chart(at("frequency-chart"), x, y, words);
  const ends = log ? [low / 1.5, high * 1.8] : [-Infinity, Infinity];
  const tops = new Map();
  for (const p of shown) {
    const [value, error] = p.values[key];
    const series = models.indexOf(p.model);
    const [px, py] = [made.px(where(p)), made.py(value)];
    if (error > 0) {
      const [from, to] = [Math.max(value - error, ends[0]), Math.min(value + error, ends[1])];
      add(made.inside, "path", { d: `M${px},${made.py(from)}V${made.py(to)}`, class: "curve", stroke: colour(series) });
    }
    const sign = add(made.inside, "path", { d: SIGNS[series % SIGNS.length](px, py), fill: colour(series) });
    add(sign, "title", {}, `${p.part}, ${p.model}: ${short(value)}${error > 0 ? ` ± ${short(error)}` : ""}`);
    const top = tops.get(p.part);
    if (!top || py < top[1]) tops.set(p.part, [px, py]);
  }
  if (parts.length <= 12) labelPoints(made.inside, tops);
  legend(at("frequency-legend"), models.map((model, series) => ({ name: model, series })), true);
}

/** Write the names of parts above their highest points, but not over each other. */
function labelPoints(inside, tops) {
  const taken = [];
  for (const [part, [px, py]] of tops) {
    const text = part.length > 14 ? `${part.slice(0, 13)}…` : part;
    const box = [px - 3.5 * text.length, px + 3.5 * text.length, py - 22, py - 8];
    if (taken.some((b) => box[0] < b[1] && b[0] < box[1] && box[2] < b[3] && b[2] < box[3])) continue;
    taken.push(box);
    add(inside, "text", { x: px, y: py - 10, "text-anchor": "middle", class: "small" }, text);
  }
}

// Densities: one part of all spectra, with the axes of all parts.

const LINEAR = 1; // eigenvalue below which the symlog axis is about linear

function onAxis(axis) {
  const ends = [Infinity, -Infinity];
  for (const { parts } of DATA.densities.spectra) {
    for (const { nodes } of Object.values(parts)) {
      for (const node of nodes.flat()) {
        const place = axis === "symlog" ? symlog(node, LINEAR) : node;
        ends[0] = Math.min(ends[0], place);
        ends[1] = Math.max(ends[1], place);
      }
    }
  }
  return ends;
}

function drawDensity() {
  const { spectra, size } = DATA.densities;
  const [part, axis] = [at("part").value, at("axis").value];
  const ends = onAxis(axis);
  const sigma = 10 ** Number(at("width").value) * (0.005 * (ends[1] - ends[0]) || 1e-3);
  at("width-value").value = `${short(sigma)} on the axis`;
  const drawn = spectra
    .map((spectrum, series) => ({ ...spectrum, series }))
    .filter(({ parts }) => Object.hasOwn(parts, part))
    .map((spectrum) => ({ ...spectrum, found: spectrum.parts[part] }));
  const curves = drawn.map(({ found }) => density(found, sigma, axis, LINEAR, ends));
  const floor = Math.min(DATA.densities.floor, (0.1 / (sigma * Math.sqrt(2 * Math.PI))) / size);
  const peak = Math.max(...curves.map(({ mean }) => mean.reduce((a, b) => Math.max(a, b))));
  const margin = Math.max(6 * sigma, 0.05 * (ends[1] - ends[0]));
  const [low, high] = [ends[0] - margin, ends[1] + margin];
  const x =
    axis === "symlog"
      ? symlogAxis(low, high, LINEAR, "eigenvalue (units of the loss) on sign(λ) log₁₀(1 + |λ|)")
      : linearAxis(low, high, "eigenvalue (units of the loss)");
  const y = logAxis(floor, 10 ** Math.ceil(Math.log10(peak) + 0.1), "density per unit of the axis");
  const said = drawn.map(({ model, found }) => `${model}: ${found.words}${found.samples === null ? "" : `, n = ${found.samples}`}`);
  at("density-words").value = said.join("; ");
  const made = chart(at("density-chart"), x, y, `Eigenvalue density of ${part}. ${said.join("; ")}`);
  const value = axis === "symlog" ? (u) => symlogInverse(u, LINEAR) : (u) => u;
  const line = (positions, heights) =>
    Array.from(positions, (u, g) => `${made.px(value(u))},${made.py(Math.max(heights[g], floor / 2))}`);
  curves.forEach(({ positions, mean, spread }, i) => {
    const stroke = colour(drawn[i].series);
    if (at("band").checked && drawn[i].found.nodes.length > 1) {
      const upper = line(positions, mean.map((m, g) => m + spread[g]));
      const lower = line(positions, mean.map((m, g) => m - spread[g]));
      add(made.inside, "path", { d: `M${upper.concat(lower.reverse()).join("L")}Z`, fill: stroke, class: "band" });
    }
    const style = { class: "curve", stroke, "stroke-dasharray": dash(drawn[i].series) };
    add(made.inside, "path", { d: `M${line(positions, mean).join("L")}`, ...style });
  });
  legend(at("density-legend"), drawn.map(({ model, matrix, series }) => ({ name: `${model} (${matrix})`, series })), false);
}

// Surfaces: one or two views with one eye and one scale.

const EYE = { azimuth: -58, elevation: 32, distance: 2.7 };
const asText = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // plotly reads markup

function camera() {
  const [a, e] = [EYE.azimuth, EYE.elevation].map((degrees) => (degrees * Math.PI) / 180);
  const eye = { x: Math.cos(e) * Math.cos(a), y: Math.cos(e) * Math.sin(a), z: Math.sin(e) };
  for (const axis of "xyz") eye[axis] *= EYE.distance;
  return { eye, center: { x: 0, y: 0, z: -0.1 }, up: { x: 0, y: 0, z: 1 } };
}

function takeEye({ x, y, z }) {
  EYE.distance = Math.hypot(x, y, z);
  EYE.azimuth = (Math.atan2(y, x) * 180) / Math.PI;
  EYE.elevation = (Math.asin(z / EYE.distance) * 180) / Math.PI;
  at("azimuth").value = EYE.azimuth;
  at("elevation").value = EYE.elevation;
}

function drawSurface(view) {
  const { surfaces, scale } = DATA.surfaces;
  const found = surfaces[view.querySelector(".choose-surface").value];
  const p = view.querySelector(".choose-part").value;
  const height = (v) => (v === null ? null : scale.log ? Math.log10(Math.max(v, scale.low)) : v);
  const ticks = {
    tickvals: scale.ticks.map(({ value }) => height(value)),
    ticktext: scale.ticks.map(({ text }) => text),
  };
  const [low, high] = [height(scale.low), height(scale.high)];
  const ink = getComputedStyle(document.body).color;
  const loss = found.loss[p];
  const relief = {
    type: "surface",
    x: found.x,
    y: found.y,
    z: loss.map((row) => row.map(height)),
    text: loss.map((row) => row.map((v) => (v === null ? "" : `loss ${short(v)}`))),
    hoverinfo: "x+y+text",
    colorscale: "Viridis",
    cmin: low,
    cmax: high,
    colorbar: { ...ticks, title: { text: "mean loss" }, len: 0.8, thickness: 12 },
    contours: { z: { show: true, usecolormap: true, project: { z: true } } },
  };
  const marks = found.marks.map((marks, i) => ({
    type: "scatter3d",
    mode: marks.path ? "lines+markers" : "markers",
    name: asText(marks.name),
    x: marks.x,
    y: marks.y,
    z: marks.loss[p].map(height),
    text: marks.names.map((name, k) => asText(`${name}: true loss ${short(marks.loss[p][k] ?? NaN)}`)),
    hoverinfo: "text",
    marker: { size: 4, symbol: ["circle", "square", "diamond", "cross"][i % 4] },
    line: { width: 5 },
  }));
  const axis = (name) => ({ title: { text: asText(name) }, color: ink, gridcolor: "#9aa4af", backgroundcolor: "#0000" });
  const layout = {
    margin: { l: 0, r: 0, t: 0, b: 0 },
    paper_bgcolor: "#0000",
    font: { color: ink },
    modebar: { bgcolor: "#0000", color: ink },
    showlegend: marks.length > 0,
    legend: { x: 0, y: 1 },
    scene: {
      xaxis: axis(found.axes[0]),
      yaxis: axis(found.axes[1]),
      zaxis: { ...axis(""), ...ticks, range: [low - 0.15 * (high - low), high] }, // with room for the contours below
      aspectmode: "manual",
      aspectratio: { x: 1, y: 1, z: 0.8 },
      camera: camera(),
    },
  };
  const words = [found.joining, found.units, marks.length ? "marks stand at their true losses" : "", `verdict: ${found.verdict}`];
  view.querySelector(".surface-words").value = words.filter(Boolean).join("; ");
  return Plotly.react(view.querySelector(".relief"), [relief, ...marks], layout, { responsive: true, displaylogo: false });
}

function offerParts(view) {
  const { parts } = DATA.surfaces.surfaces[view.querySelector(".choose-surface").value];
  const select = view.querySelector(".choose-part");
  const before = select.selectedOptions[0]?.textContent;
  select.replaceChildren(...parts.map((part, p) => new Option(part, p, false, part === before)));
}

async function setUpSurfaces(views) {
  if (!document.createElement("canvas").getContext("webgl")) {
    at("no-webgl").hidden = false;
    return;
  }
  const turn = async (turned) => {
    turned.forEach((view) => view.classList.add("turning")); // what the script turns is not the reader's hand
    const moved = { "scene.camera": camera() };
    await Promise.all(turned.map((view) => Plotly.relayout(view.querySelector(".relief"), moved)));
    turned.forEach((view) => view.classList.remove("turning"));
  };
  for (const view of views) {
    offerParts(view);
    await drawSurface(view);
    view.querySelector(".choose-part").addEventListener("change", () => drawSurface(view));
    view.querySelector(".choose-surface").addEventListener("change", () => {
      offerParts(view);
      drawSurface(view);
    });
    view.querySelector(".relief").on("plotly_relayout", (change) => {
      const moved = change["scene.camera"];
      if (!moved || view.matches(".turning")) return;
      takeEye(moved.eye);
      turn(views.filter((other) => other !== view));
    });
  }
  for (const which of ["azimuth", "elevation"]) {
    at(which).addEventListener("input", () => {
      EYE[which] = Number(at(which).value);
      turn(views);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach(drawSurface));
}

document.querySelectorAll("table.sortable").forEach(sortable);
if (DATA.frequency.first) {
  at("measure").value = DATA.frequency.first;
  at("measure").addEventListener("input", drawFrequency);
  drawFrequency();
}
if (DATA.densities) {
  for (const id of ["part", "axis", "width", "band"]) at(id).addEventListener("input", drawDensity);
  drawDensity();
}
if (DATA.surfaces) setUpSurfaces([...document.querySelectorAll(".view")]);
