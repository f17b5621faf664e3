"use strict";
// Whatever comes from files and models goes through textContent, never through innerHTML.
const data = JSON.parse(document.getElementById("data").textContent);
const sheets = document.getElementById("sheets").textContent.split("\n");
const PER_PAGE = 100;
const byId = (id) => document.getElementById(id);
const state = { set: "", search: "", sort: data.labelled ? "off" : "score", down: true, pages: { videos: 0, failures: 0 } };
let shown = [], failed = [];

function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const digits = (value, places) => (value === null || value === undefined ? "–" : value.toFixed(places));

function fillTable(table, header, rows) {
  table.tHead.replaceChildren(header);
  table.tBodies[0].replaceChildren(...rows);
}

// ---- figures

function showFigures() {
  byId("run").textContent = data.run;
  for (const { title, header, rows, notes } of data.tables) {
    const table = make("table");
    table.append(make("thead"), make("tbody"));
    const cells = (tag, texts) => texts.map((text, i) => make(tag, text, i ? { class: "number" } : {}));
    const line = (tag, texts) => { const row = make("tr"); row.append(...cells(tag, texts)); return row; };
    fillTable(table, line("th", header), rows.map((texts) => line("td", texts)));
    byId("figures").append(make("h2", title), table, ...notes.map((note) => make("p", note, { class: "quiet" })));
  }
}

// ---- plots

function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(+at.toFixed(6));
  return found;
}

// points: [x, y, row]; curve: [x, y, half the band's width or null].
function plot(caption, labels, points, curve, colour) {
  const figure = make("figure"), canvas = make("canvas"), width = 384, height = 320, margin = 44;
  figure.append(canvas, make("figcaption", caption));
  byId("scatters").append(figure);
  const sharp = window.devicePixelRatio || 1;
  canvas.width = width * sharp;
  canvas.height = height * sharp;
  const draw = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  draw.scale(sharp, sharp);
  const ends = (values) => {
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const room = (high - low) * 0.05 || 1;
    return [low - room, high + room];
  };
  const [left, right] = ends(points.map((p) => p[0])), [bottom, top] = ends(points.map((p) => p[1]));
  const x = (value) => margin + ((value - left) / (right - left)) * (width - margin - 8);
  const y = (value) => height - margin - ((value - bottom) / (top - bottom)) * (height - margin - 8);
  const ink = style.getPropertyValue("--quiet");
  draw.strokeStyle = draw.fillStyle = ink;
  draw.font = "11px system-ui, sans-serif";
  draw.strokeRect(margin, 8, width - margin - 8, height - margin - 8);
  draw.textAlign = "center";
  for (const at of ticks(left, right)) draw.fillText(at, x(at), height - margin + 14);
  draw.fillText(labels[0], (margin + width) / 2, height - 8);
  draw.textAlign = "right";
  for (const at of ticks(bottom, top)) draw.fillText(at, margin - 5, y(at) + 4);
  draw.save();
  draw.translate(11, (height - margin) / 2);
  draw.rotate(-Math.PI / 2);
  draw.textAlign = "center";
  draw.fillText(labels[1], 0, 0);
  draw.restore();
  draw.save();
  draw.beginPath();
  draw.rect(margin, 8, width - margin - 8, height - margin - 8);
  draw.clip();
  draw.fillStyle = style.getPropertyValue(colour);
  draw.globalAlpha = points.length > 2000 ? 0.25 : 0.6;
  for (const [px, py] of points) {
    draw.beginPath();
    draw.arc(x(px), y(py), points.length > 2000 ? 2 : 3, 0, 7);
    draw.fill();
  }
  if (curve.length) {
    draw.globalAlpha = 0.25;
    draw.fillStyle = ink;
    draw.beginPath();
    for (const [px, py, half] of curve) draw.lineTo(x(px), y(py + (half || 0)));
    for (const [px, py, half] of [...curve].reverse()) draw.lineTo(x(px), y(py - (half || 0)));
    draw.fill();
    draw.globalAlpha = 1;
    draw.strokeStyle = getComputedStyle(document.body).color;
    draw.lineWidth = 2;
    draw.beginPath();
    for (const [px, py] of curve) draw.lineTo(x(px), y(py));
    draw.stroke();
  }
  draw.restore();
  const nearest = (event) => {
    let best = null, least = 100;
    for (const point of points) {
      const far = (x(point[0]) - event.offsetX) ** 2 + (y(point[1]) - event.offsetY) ** 2;
      if (far < least) [least, best] = [far, point[2]];
    }
    return best;
  };
  canvas.addEventListener("mousemove", (event) => { canvas.title = nearest(event)?.video ?? ""; });
  canvas.addEventListener("click", (event) => { const row = nearest(event); if (row) open(row); });
}

function showPlots() {
  byId("scatters").replaceChildren();
  const sets = data.sets.filter((set) => set.labelled && (!state.set || set.name === state.set));
  byId("plots").hidden = !sets.length;
  sets.forEach(plotSet);
}

function plotSet(set) {
  const name = set.name, rows = data.rows.filter((row) => row.set === name && row.mos !== null);
  const pairs = (key) => rows.filter((row) => row[key] !== null).map((row) => [row[key], row.mos, row]);
  if (pairs("score").length) plot(`${name}: ratings and labels`, ["rating", "label"], pairs("score"), set.curve, "--mark");
  const off = rows.filter((row) => row.residual !== null).map((row) => [row.mos, row.residual, row]);
  const zero = off.length ? [[Math.min(...off.map((p) => p[0])), 0, 0], [Math.max(...off.map((p) => p[0])), 0, 0]] : [];
  if (off.length) plot(`${name}: residuals`, ["label", "fitted rating − label"], off, zero, "--mark");
  if (data.other && pairs("other").length) {
    plot(`${name}: ${data.other}`, ["rating of the other run", "label"], pairs("other"), set.other_curve, "--other");
  }
}

// ---- table

const COLUMNS = [
  ["set", "Set", null], ["video", "Video", null], ["score", "Rating", 2],
  ...(data.rows.some((row) => row.expected !== null) ? [["expected", "Expected", 2]] : []),
  ["mos", "Label", 2],
  ["residual", "Off by", 2], ["off", "Off, in RMSE", 2],
  ...(data.other ? [["other", "Other run", 2], ["change", "Change", 2]] : []),
  ...(data.rows.some((row) => row.chosen) ? [["chosen", "Chosen", null], ["right", "Right", null]] : []),
  ["notes", "Notes", 0],
].filter(([key]) => data.labelled || !["mos", "residual", "off"].includes(key))
 .filter(([key]) => data.task === "score" || key !== "score");

const collator = new Intl.Collator(undefined, { numeric: true });
const sortable = (row, key) => (key === "notes" ? row.health.length : row[key]) ?? null;

function compare(a, b) {
  const [x, y] = [sortable(a, state.sort), sortable(b, state.sort)];
  if (x === null || y === null) return (x === null) - (y === null);
  const order = typeof x === "string" ? collator.compare(x, y) : x - y;
  return state.down ? -order : order;
}

function select() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => (row.all ??= [row.set, row.video, row.said, row.reason, row.question, ...row.health].join("\n").toLowerCase());
  const fits = (row) => (!state.set || row.set === state.set) && words.every((word) => text(row).includes(word));
  shown = data.rows.filter((row) => row.status === "ok" && fits(row)).sort(compare);
  failed = data.rows.filter((row) => row.status !== "ok" && fits(row));
  showTable();
  showFailures();
}

function opening(row, cells) {
  const line = make("tr", "", { class: "opens", tabindex: "0" });
  line.append(...cells);
  line.addEventListener("click", () => open(row));
  line.addEventListener("keydown", (event) => { if (event.key === "Enter") open(row); });
  return line;
}

function showPage(id, header, rows, cells) {
  const last = Math.max(0, Math.ceil(rows.length / PER_PAGE) - 1), page = Math.min(state.pages[id], last);
  state.pages[id] = page;
  const here = rows.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  fillTable(byId(id), header, here.map((row) => opening(row, cells(row))));
  const pages = document.querySelector(`.pages[data-of=${id}]`);
  pages.hidden = last === 0;
  pages.querySelector("span").textContent = `${page + 1} of ${last + 1}`;
}

function turn(changes) {
  Object.assign(state, changes, { pages: { videos: 0, failures: 0 } });
  select();
}

function showTable() {
  const header = make("tr");
  for (const [key, title, places] of COLUMNS) {
    const arrow = state.sort === key ? (state.down ? " ↓" : " ↑") : "";
    const head = make("th", title + arrow, { class: places === null ? "sortable" : "sortable number", "data-key": key });
    head.addEventListener("click", () => {
      turn({ sort: key, down: state.sort === key ? !state.down : places !== null });
    });
    header.append(head);
  }
  const cell = (row, [key, , places]) => {
    const value = sortable(row, key);
    return make("td", places === null ? value ?? "–" : digits(value, places), places === null ? {} : { class: "number" });
  };
  showPage("videos", header, shown, (row) => COLUMNS.map((column) => cell(row, column)));
  byId("found").textContent = `${shown.length} of ${data.rows.filter((row) => row.status === "ok").length}`;
}

function showFailures() {
  const header = make("tr");
  header.append(...["Set", "Video", "What happened", "Why"].map((title) => make("th", title)));
  const cells = (row) => [row.set, row.video, row.status, row.reason ?? ""].map((text) => make("td", text));
  showPage("failures", header, failed, cells);
  byId("failed").hidden = !data.rows.some((row) => row.status !== "ok");
}

// ---- one video

function showFrames(row) {
  const sheet = row.sheet === null ? "" : sheets[row.sheet];
  const figures = !sheet ? [] : row.times.map((time, i) => {
    const figure = make("figure"), frame = make("div");
    const [column, line] = [i % data.columns, Math.floor(i / data.columns)];
    frame.style.backgroundImage = `url(data:image/webp;base64,${sheet})`;
    frame.style.backgroundSize = `${128 * data.columns}px auto`;
    frame.style.backgroundPosition = `${-128 * column}px ${-128 * line}px`;
    figure.append(frame, make("figcaption", `${time.toFixed(2)} s · frame ${row.frames[i]}`));
    return figure;
  });
  byId("frames").replaceChildren(...figures);
}

function told(title, lines, text) {
  const section = make("section");
  section.append(make("h3", title), ...lines.map((line) => make("p", line)), make("pre", text));
  return section;
}

function open(row) {
  const dialog = byId("video");
  dialog.querySelector("h2").textContent = `${row.set}: ${row.video}`;
  showFrames(row);
  const lines = [];
  const likely = row.expected === null ? "" : `, expected ${digits(row.expected, 2)} ± ${digits(row.deviation, 2)}`;
  if (row.score !== null) lines.push(`Rating ${digits(row.score, 2)}${likely}`);
  if (row.mos !== null) lines.push(`Label ${digits(row.mos, 2)}`);
  if (row.residual !== null) lines.push(`Fitted rating ${digits(row.mos + row.residual, 2)}, off by ${digits(row.residual, 2)}`);
  if (row.question) lines.push(row.question, `Chosen ${row.chosen ?? "–"}, right ${row.right}`);
  if (row.reason) lines.push(`Failed: ${row.reason}`);
  lines.push(...row.health.map((note) => `Note: ${note}`));
  const parts = [told("This run", lines, row.said)];
  if (data.other) parts.push(told("Other run", [`Rating ${digits(row.other, 2)}`], row.other_said));
  byId("told").replaceChildren(...parts);
  dialog.showModal();
}

byId("close").addEventListener("click", () => byId("video").close());
byId("search").addEventListener("input", (event) => turn({ search: event.target.value }));
byId("set").addEventListener("change", (event) => { turn({ set: event.target.value }); showPlots(); });
for (const pages of document.querySelectorAll(".pages")) {
  const show = { videos: showTable, failures: showFailures }[pages.dataset.of];
  const [back, on] = pages.querySelectorAll("button");
  back.addEventListener("click", () => { state.pages[pages.dataset.of] = Math.max(0, state.pages[pages.dataset.of] - 1); show(); });
  on.addEventListener("click", () => { state.pages[pages.dataset.of] += 1; show(); });
}
byId("set").append(make("option", "all", { value: "" }), ...data.sets.map(({ name }) => make("option", name, { value: name })));
showFigures();
showPlots();
select();
