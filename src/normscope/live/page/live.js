"use strict";
// Asks for the rows that came since the last answer and draws small charts of them. All names come from the run and
// are put into the page as text, never as markup.

const PERIOD = 1000, IMPATIENT = 400, SLOWEST = 5000, MOST_POINTS = 800, MOST_LINES = 40, HEIGHT = 190;
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const root = document.documentElement;
const at = (id) => document.getElementById(id);
const state = {collection: "", version: 0, series: new Map(), answer: null, chosen: "", wait: PERIOD};
const panels = new Map();  // by probe and name
const sections = new Map();  // by probe

function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function number(value) {
  if (typeof value !== "number") return value === undefined ? "" : String(value);
  if (!Number.isFinite(value)) return String(value).replace("Infinity", "inf");
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

const whole = (value) => value.toLocaleString("en");
const words = (code) => (code.charAt(0).toUpperCase() + code.slice(1)).replaceAll("_", " ");
const of_json = (value) => typeof value === "number" ? value : value === "nan" ? NaN : value === "inf" ? Infinity : -Infinity;

// -- asking

async function poll() {
  try {
    const query = new URLSearchParams({collection: state.collection, version: String(state.version)});
    const headers = token ? {Authorization: "Bearer " + token} : {};
    const response = await fetch("/rows?" + query, {headers, cache: "no-store"});
    if (response.status === 401) {
      stand("trouble", "The token is missing or wrong: open the address that the command printed");
      return;  // asking again would not help
    }
    if (!response.ok) throw new Error("the server answered " + response.status);
    take(await response.json());
    state.wait = root.dataset.live === "waiting" ? IMPATIENT : PERIOD;
  } catch (error) {
    stand("unreachable", "The server of this page does not answer; asking again");
    state.wait = Math.min(SLOWEST, state.wait * 1.5);
  }
  setTimeout(poll, state.wait);
}

function take(answer) {
  const anew = answer.collection !== state.collection;
  if (anew) state.series.clear();  // the charts stay where they are
  state.collection = answer.collection;
  state.version = answer.version;
  state.answer = answer;
  for (const [id, cell, probe, name, site, unit, title] of answer.series)
    state.series.set(id, {id, cell, probe, name, site, unit, title, steps: [], values: []});
  const touched = new Set();
  for (const [id, steps, values] of answer.points) {
    const series = state.series.get(id);
    for (let k = 0; k < steps.length; k++) {
      series.steps.push(steps[k]);
      series.values.push(of_json(values[k]));
    }
    thin(series);
    touched.add(series.cell);
  }
  choose();
  describe();
  if (anew || answer.series.length || touched.has(state.chosen)) arrange();
}

// Of each four points the lowest and the highest stay, and the last point: as the server thins.
function thin(series) {
  while (series.steps.length > MOST_POINTS) {
    const kept = [], count = series.values.length;
    const height = (k) => Number.isFinite(series.values[k]) ? series.values[k] : Infinity;
    for (let first = 0; first < count; first += 4) {
      let low = first, high = first;
      for (let k = first + 1; k < Math.min(first + 4, count); k++) {
        if (height(k) < height(low)) low = k;
        if (height(k) > height(high)) high = k;
      }
      kept.push(...(low === high ? [low] : low < high ? [low, high] : [high, low]));
    }
    if (kept[kept.length - 1] !== count - 1) kept.push(count - 1);
    series.steps = kept.map((k) => series.steps[k]);
    series.values = kept.map((k) => series.values[k]);
  }
}

// -- how the run stands

function stand(kind, text) {
  root.dataset.live = kind;
  if (at("state").textContent !== text) at("state").textContent = text;
}

function choose() {
  const cells = state.answer.cells.filter((cell) => cell.rows);
  if (!cells.some((cell) => cell.cell === state.chosen)) {
    const newest = cells.filter((cell) => cell.started > cells[0].started - 5).map((cell) => cell.cell).sort();
    state.chosen = newest.length ? newest[0] : "";
  }
  const names = cells.map((cell) => cell.cell);
  const select = at("cell");
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((name) => {
      const option = made("option", name);
      option.value = name;
      return option;
    }));
  }
  select.value = state.chosen;
  at("choice").hidden = names.length < 2;
}

function describe() {
  const answer = state.answer, cell = answer.cells.find((each) => each.cell === state.chosen);
  at("folder").textContent = answer.folder;
  at("said").textContent = answer.said;
  at("title").textContent = cell && cell.facts.model ? cell.facts.model + ", as it trains" : "A training, as it runs";
  if (!cell || answer.said) {
    stand(answer.state, {waiting: "Waiting", gone: "The folder is gone", trouble: "Cannot be read"}[answer.state]);
  } else if (cell.state === "running") {
    stand("running", "Running");
  } else {
    const since = Math.round(cell.since), ago = since < 120 ? since + " s" : Math.round(since / 60) + " min";
    if (cell.state === "ended") stand("ended", "The training's process has ended");
    else stand("quiet", "No new rows for " + ago);
  }
  const facts = [];
  if (cell) {
    facts.push(["Step", whole(cell.step)], ["Rows", whole(cell.rows)]);
    if (cell.state === "running") facts.push(["Rows a second", number(Number(cell.rate.toPrecision(2)))]);
    if (cell.facts.every) facts.push(["Read every", cell.facts.every + (cell.facts.every === "1" ? " step" : " steps")]);
    document.title = "Step " + whole(cell.step) + " · normscope live";
    root.dataset.rows = String(cell.rows);
    root.dataset.step = String(cell.step);
  }
  at("facts").replaceChildren(...facts.map(([name, value]) => {
    const box = made("div");
    box.append(made("dt", name), made("dd", value));
    return box;
  }));
  list("sentences", cell ? cell.stands_out : [], "stands-out");
  const notes = answer.damaged.map((name) => name + " is damaged and not shown; all other parts are.");
  if (answer.dropped) notes.push(whole(answer.dropped) + " or more series are too many for this page: `normscope report` shows them.");
  list("notes", notes, "notes");
}

function list(id, lines, box) {
  const element = at(id);
  if ([...element.children].map((item) => item.textContent).join("\n") !== lines.join("\n"))
    element.replaceChildren(...lines.map((line) => made("li", line)));
  at(box).hidden = !lines.length;
}

// -- the charts

function arrange() {
  const groups = new Map();
  for (const series of state.series.values()) {
    if (series.cell !== state.chosen) continue;
    const key = series.probe + "\n" + series.name;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(series);
  }
  for (const [key, panel] of panels) {
    if (!groups.has(key)) {
      seen.unobserve(panel.canvas);
      panel.box.remove();
      panels.delete(key);
    }
  }
  for (const [key, series] of groups) {
    if (!panels.has(key)) panels.set(key, panel_of(series[0]));
    const panel = panels.get(key);
    panel.series = series;
    panel.stale = true;
  }
  for (const [probe, section] of sections) {
    section.box.hidden = ![...groups.values()].some((series) => series[0].probe === probe);
    if (section.table.open) tabulate(probe);
  }
  redraw();
}

function section_of(probe) {
  if (!sections.has(probe)) {
    const box = made("section"), grid = made("div", undefined, "grid"), table = made("details"), holder = made("div", undefined, "scroll");
    const title = made("h2", words(probe));
    title.id = "probe-" + sections.size;
    box.setAttribute("aria-labelledby", title.id);
    holder.tabIndex = 0;
    holder.setAttribute("role", "region");
    holder.setAttribute("aria-label", "Last values of " + words(probe));
    table.append(made("summary", "Last values"), holder);
    table.addEventListener("toggle", () => { if (table.open) tabulate(probe); });
    box.append(title, grid, table);
    at("probes").append(box);
    sections.set(probe, {box, grid, table, holder});
  }
  return sections.get(probe);
}

function panel_of(series) {
  const box = made("article", undefined, "panel"), canvas = made("canvas"), under = made("p", undefined, "under");
  const legend = made("div", undefined, "legend"), tip = made("div", undefined, "tip");
  const unit = series.unit && series.unit !== "1" && !series.title.includes("(" + series.unit + ")") ? " (" + series.unit + ")" : "";
  tip.hidden = true;
  canvas.setAttribute("role", "img");
  box.append(made("h3", series.title + unit), canvas, legend, under, tip);
  section_of(series.probe).grid.append(box);
  const panel = {box, canvas, under, legend, tip, title: series.title, series: [], stale: true, visible: false, marked: null, drawn: null};
  canvas.addEventListener("pointermove", (event) => point(panel, event));
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    panel.marked = null;
    draw(panel);
  });
  seen.observe(canvas);
  return panel;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries)
    for (const panel of panels.values())
      if (panel.canvas === entry.target) panel.visible = entry.isIntersecting;
  redraw();
}, {rootMargin: "300px"});

function redraw() {
  for (const panel of panels.values()) if (panel.visible && panel.stale) draw(panel);
}

function restyle() {
  for (const panel of panels.values()) panel.stale = true;
  redraw();
}
new ResizeObserver(restyle).observe(at("probes"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);

function some(series) {
  if (series.length <= MOST_LINES) return series;
  return Array.from({length: MOST_LINES}, (_, k) => series[Math.round(k * (series.length - 1) / (MOST_LINES - 1))]);
}

function scale_of(lines) {
  let left = Infinity, right = -Infinity, low = Infinity, high = -Infinity, odd = 0;
  for (const series of lines) {
    for (let k = 0; k < series.steps.length; k++) {
      left = Math.min(left, series.steps[k]);
      right = Math.max(right, series.steps[k]);
      const value = series.values[k];
      if (!Number.isFinite(value)) { odd += 1; continue; }
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  const empty = low > high, log = low > 0 && high / low > 30;
  if (empty) { low = 0; high = 1; }
  let from = log ? Math.log10(low) : low, to = log ? Math.log10(high) : high;
  const room = (to - from) * 0.06 || Math.abs(to) * 0.1 || 0.5;
  return {left, right, low, high, odd, empty, log, from: from - room, to: to + room};
}

function ticks(scale) {
  const span = scale.to - scale.from, found = [];
  if (scale.log) {
    const every = Math.max(1, Math.ceil(span / 4));
    for (let power = Math.ceil(scale.from); power <= scale.to; power += every) found.push(power);
    if (found.length > 1) return found.map((power) => [power, number(10 ** power)]);
    return [Math.log10(scale.low), Math.log10(scale.high)].map((power) => [power, number(10 ** power)]);
  }
  const most = span / 2, unit = 10 ** Math.floor(Math.log10(most));  // a step of half the axis or less: two marks
  const step = [5, 2, 1].map((k) => k * unit).find((size) => size <= most);
  for (let k = Math.ceil(scale.from / step); k * step <= scale.to; k++) found.push([k * step, number(Number((k * step).toPrecision(12)))]);
  return found;
}

function mixed(style, share) {
  const parts = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  const first = parts("--first"), last = parts("--last");
  return "rgb(" + first.map((part, k) => Math.round(part + (last[k] - part) * share)).join(" ") + ")";
}

function draw(panel) {
  const canvas = panel.canvas, width = canvas.clientWidth, ratio = devicePixelRatio || 1, style = getComputedStyle(root);
  if (!width) return;
  panel.stale = false;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(HEIGHT * ratio);
  const lines = some(panel.series), scale = scale_of(lines), pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px " + style.getPropertyValue("--sans");
  const soft = style.getPropertyValue("--soft"), marks = ticks(scale);
  const margin = Math.max(...marks.map(([, text]) => pen.measureText(text).width)) + 10;
  const box = {left: margin, right: width - 8, top: 8, bottom: HEIGHT - 24};
  const x = (step) => scale.right > scale.left ? box.left + (step - scale.left) / (scale.right - scale.left) * (box.right - box.left) : (box.left + box.right) / 2;
  const y = (value) => box.bottom - ((scale.log ? Math.log10(value) : value) - scale.from) / (scale.to - scale.from) * (box.bottom - box.top);
  pen.fillStyle = soft;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.strokeStyle = style.getPropertyValue("--grid");
  for (const [place, text] of marks) {
    const height = y(scale.log ? 10 ** place : place);
    pen.beginPath();
    pen.moveTo(box.left, height);
    pen.lineTo(box.right, height);
    pen.stroke();
    pen.fillText(text, box.left - 6, height);
  }
  pen.textBaseline = "alphabetic";
  if (scale.right > scale.left) {
    pen.textAlign = "left";
    pen.fillText(whole(scale.left), box.left, HEIGHT - 6);
    pen.textAlign = "right";
    pen.fillText("step " + whole(scale.right), box.right, HEIGHT - 6);
  } else if (Number.isFinite(scale.left)) {
    pen.textAlign = "center";
    pen.fillText("step " + whole(scale.left), (box.left + box.right) / 2, HEIGHT - 6);
  }
  panel.drawn = {x, y, lines};
  lines.forEach((series, k) => {
    if (series !== panel.marked) line(pen, series, x, y, mixed(style, lines.length > 1 ? k / (lines.length - 1) : 0), panel.marked ? 0.35 : 1, lines.length > 12 ? 1 : 1.5);
  });
  if (panel.marked) line(pen, panel.marked, x, y, style.getPropertyValue("--text"), 1, 2.5);
  caption(panel, lines, scale);
}

function line(pen, series, x, y, colour, strength, width) {
  const steps = series.steps, values = series.values;
  let order = [...steps.keys()];
  if (steps.some((step, k) => k && step < steps[k - 1])) order = order.sort((a, b) => steps[a] - steps[b]);
  pen.globalAlpha = strength;
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = "round";
  pen.beginPath();
  let open = false, alone = null;
  for (const k of order) {
    if (!Number.isFinite(values[k])) { open = false; continue; }
    if (open) { pen.lineTo(x(steps[k]), y(values[k])); alone = null; }
    else { pen.moveTo(x(steps[k]), y(values[k])); alone = alone === null ? k : alone; }
    open = true;
  }
  pen.stroke();
  if (alone !== null && order.filter((k) => Number.isFinite(values[k])).length === 1) {
    pen.beginPath();
    pen.arc(x(steps[alone]), y(values[alone]), 3, 0, 2 * Math.PI);
    pen.fill();
  }
  pen.globalAlpha = 1;
}

// Layers of a Sequential are named by numbers.
const place = (site) => /^\d+$/.test(site) ? "layer " + site : site || "whole model";
const site_of = (series) => place(series.site);

function caption(panel, lines, scale) {
  const all = panel.series, names = [site_of(lines[0]), site_of(lines[lines.length - 1])];
  const key = names.join("\n") + all.length;
  if (panel.legend.dataset.key !== key) {
    panel.legend.dataset.key = key;
    panel.legend.replaceChildren(made("span", names[0]));
    if (all.length > 1) panel.legend.append(made("i"), made("span", names[1]));
    panel.legend.title = all.length > 1 ? names[0] + " to " + names[1] : names[0];
  }
  const said = [];
  if (lines.length < all.length) said.push(lines.length + " of " + all.length + " places drawn");
  if (scale.odd) said.push(scale.odd === 1 ? "1 value is not finite" : whole(scale.odd) + " values are not finite");
  if (scale.log) said.push("logarithmic");
  panel.under.textContent = said.join("; ");
  const range = scale.empty ? "no finite value" : "values from " + number(scale.low) + " to " + number(scale.high);
  panel.canvas.setAttribute("aria-label", panel.title + ": " + (all.length === 1 ? names[0] : all.length + " places, " + names.join(" to ")) +
    "; steps " + whole(scale.left) + " to " + whole(scale.right) + "; " + range);
}

function point(panel, event) {
  if (!panel.drawn) return;
  const bounds = panel.canvas.getBoundingClientRect(), px = event.clientX - bounds.left, py = event.clientY - bounds.top;
  let best = null, nearest = Infinity;
  for (const series of panel.drawn.lines) {
    for (let k = 0; k < series.steps.length; k++) {
      if (!Number.isFinite(series.values[k])) continue;
      const away = (panel.drawn.x(series.steps[k]) - px) ** 2 + (panel.drawn.y(series.values[k]) - py) ** 2;
      if (away < nearest) { nearest = away; best = [series, k]; }
    }
  }
  if (!best) return;
  const [series, k] = best;
  panel.marked = panel.drawn.lines.length > 1 ? series : null;
  draw(panel);
  panel.tip.textContent = site_of(series) + ", step " + whole(series.steps[k]) + ": " + number(series.values[k]);
  panel.tip.hidden = false;
  const room = panel.box.clientWidth - panel.tip.offsetWidth - 8;
  panel.tip.style.left = Math.max(8, Math.min(room, px + 12)) + "px";
  panel.tip.style.top = (panel.canvas.offsetTop + Math.max(0, py - 40)) + "px";
}

function tabulate(probe) {
  const columns = [...panels.values()].filter((panel) => panel.series.length && panel.series[0].probe === probe);
  const sites = new Map();
  columns.forEach((panel, k) => {
    for (const series of panel.series) {
      if (!sites.has(series.site)) sites.set(series.site, []);
      sites.get(series.site)[k] = series.values[series.values.length - 1];
    }
  });
  const table = made("table"), head = made("thead"), body = made("tbody"), row = made("tr");
  row.append(made("th", "place"), ...columns.map((panel) => made("th", panel.title)));
  for (const cell of row.children) cell.scope = "col";
  head.append(row);
  for (const [site, values] of sites) {
    const line = made("tr"), name = made("th", place(site));
    name.scope = "row";
    line.append(name, ...columns.map((_, k) => made("td", number(values[k]))));
    body.append(line);
  }
  table.append(head, body);
  sections.get(probe).holder.replaceChildren(table);
}

at("cell").addEventListener("change", (event) => {
  state.chosen = event.target.value;
  describe();
  arrange();
});
poll();
