// The page: what is shown, the panel, the keyboard, and links that restore a view.

import { drawBars } from "./charts.js";
import { color, densityColor } from "./draw.js";
import { Jobs } from "./jobs.js";
import { Marks } from "./marks.js";
import { Pane, detection, shared } from "./pane.js";
import { ServerSource, StaticSource } from "./source.js";

const STEP_PAGE = 200; // detections that are loaded at once for stepping
const REFRESH = 1000; // ms between two looks at the boxes of a running job
const SHORTCUTS = [
  [["J"], "next detection, more doubtful"], [["K"], "previous detection, better"],
  [["T"], "mark as true: an object"], [["F"], "mark as false: no object"], [["U"], "remove the mark"],
  [["["], "lower score threshold"], [["]"], "higher score threshold"],
  [["+", "−"], "zoom"], [["0"], "whole scene"], [["1"], "one scene pixel per screen pixel"], [["←", "↑", "→", "↓"], "move, when the scene has the focus"],
  [["C"], "compare side by side"], [["G"], "tiles and seams"], [["L"], "copy a link to this view"], [["Esc"], "close, or clear the selection"], [["?"], "this help"],
];

const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const isStatic = document.documentElement.dataset.source === "static";
const source = isStatic ? new StaticSource() : new ServerSource();

let scene = null, panes = [], marks = null, selected = null, jobs = null;
let hidden = new Set(); // names of classes that are switched off
let stepping = { key: "", pages: new Map(), total: 0 };
let syncing = false, info = {};

const main = () => panes[0];
const result = (pane = main()) => pane?.result ?? null;

// ------------------------------------------------------------------------------------------------------------- start

async function start() {
  setTheme(localStorage.getItem("tinydet:theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  $("shortcuts").replaceChildren(...SHORTCUTS.map(([keys, text]) => {
    const row = document.createElement("tr"), left = row.insertCell(), right = row.insertCell();
    keys.forEach((key) => { left.append(Object.assign(document.createElement("kbd"), { textContent: key }), " "); });
    right.textContent = text;
    return row;
  }));
  listen();
  try {
    info = await source.info();
    const wanted = fromLink(), scenes = await source.scenes();
    if (info.jobs !== false) {
      jobs = new Jobs(source, info, { started: (state) => show(state.scene, { job: state.jobID }), changed: jobChanged, toast });
    }
    $("scene").replaceChildren(...scenes.map((each) => new Option(each.name, each.id)));
    $("scene").hidden = scenes.length < 2;
    const running = jobs ? (await source.jobs()).find((job) => ["running", "accepted"].includes(job.status)) : null;
    const first = scenes.find((each) => each.id === wanted.scene) ?? scenes.find((each) => each.id === running?.scene) ?? scenes.at(-1);
    if (first) await show(first.id, wanted);
    else empty("No scene yet", jobs ? "Scan one: upload an image or raster of any size, and watch the boxes appear." : "");
    if (running) jobs.follow(running);
  } catch (error) {
    empty("This page cannot be shown", error.message);
  }
}

function empty(title, text) {
  const head = document.createElement("h2"), body = document.createElement("p");
  head.textContent = title;
  body.textContent = text;
  $("empty").replaceChildren(head, body);
  if (jobs) {
    const button = Object.assign(document.createElement("button"), { className: "button primary", textContent: "Scan a scene" });
    button.onclick = () => jobs.open();
    $("empty").append(button);
  }
  $("empty").hidden = false;
  for (const id of ["compare", "tiles", "link", "download", "score", "previous", "next", "all", "none"]) $(id).disabled = true;
}

/** Show a scene. `wanted`: values of a link, see `toLink`. */
async function show(id, wanted = {}) {
  scene = await source.scene(id);
  $("empty").hidden = true;
  if (![...$("scene").options].some((option) => option.value === id)) $("scene").append(new Option(scene.name, id));
  $("scene").value = id;
  $("scene").hidden = $("scene").options.length < 2;
  $("scene-size").textContent = `${$("scene").hidden ? `${scene.name}  ·  ` : ""}${number(scene.width)} × ${number(scene.height)} px`;
  document.title = `${scene.name} – tinydet`;
  panes.forEach((pane) => pane.destroy());
  panes = [];
  select(null);
  hidden = new Set(wanted.off ?? []);
  const pane = addPane();
  await pane.open(scene);
  const chosen = scene.results.find((each) => each.job === wanted.job) ?? scene.results.at(isStatic || info.jobs === false ? 0 : -1);
  if (wanted.x !== undefined) pane.moveTo(wanted, true);
  if (chosen) await setResult(pane, chosen, wanted.score);
  else { panel(); empty("No detections yet", "Scan this scene to find objects."); }
  setTiles(wanted.tiles ?? false);
  if (wanted.other && chosen) await setCompare(true, wanted);
  if (wanted.sel !== undefined && chosen) await stepTo(wanted.sel, true, false);
  watchOverview();
  about();
}

/** Tell how far the overview of a scene without overviews is. */
async function watchOverview() {
  const mine = scene;
  while (scene === mine && scene.overview !== null && scene.overview < 1) {
    toast(`Reading the overview: ${Math.round(100 * scene.overview)} %`);
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
    try { scene.overview = mine.overview = (await source.scene(mine.id)).overview; } catch { return; }
  }
}

function addPane() {
  const element = document.createElement("div");
  element.className = "pane";
  $("panes").append(element);
  const pane = new Pane(element, source, { select: clicked, moved, pointer, loaded, error: (error) => toast(error.message) });
  pane.caption = Object.assign(document.createElement("div"), { className: "caption" });
  element.append(pane.caption);
  panes.push(pane);
  return pane;
}

async function setResult(pane, chosen, score) {
  const first = pane === main();
  pane.summary = await source.summary(scene, chosen, 0);
  const edges = pane.summary.score_edges;
  const wanted = score ?? pane.filter.score;
  pane.filter = { score: nearest(edges, wanted), classes: visible(chosen) };
  pane.setResult(chosen);
  if (first) {
    marks = new Marks(scene, chosen, pane.summary.total);
    pane.marks = marks.map;
    select(null);
    $("empty").hidden = true;
  }
  caption(pane);
  if (first) panel();
  about();
}

const nearest = (edges, value) => edges.reduce((best, edge) => (Math.abs(edge - value) < Math.abs(best - value) ? edge : best), edges[0]);
const visible = (of) => (hidden.size ? of.classes.filter((name) => !hidden.has(name)) : null);

// ------------------------------------------------------------------------------------------------------------- panes

function caption(pane) {
  const index = panes.indexOf(pane), isOne = panes.length === 1;
  const chip = Object.assign(document.createElement("div"), { className: "chip" });
  if (!isOne) chip.append(Object.assign(document.createElement("b"), { textContent: "AB"[index] }));
  if (scene.results.length > 1) {
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", isOne ? "Result" : `Result ${"AB"[index]}`);
    choice.replaceChildren(...scene.results.map((each) => new Option(each.name, each.job)));
    choice.value = pane.result.job;
    choice.onchange = () => setResult(pane, scene.results.find((each) => each.job === choice.value));
    chip.append(choice);
  } else if (!isOne) chip.append(Object.assign(document.createElement("span"), { textContent: pane.result.name }));
  if (!isOne) {
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100 });
    const text = document.createElement("output");
    slider.value = pane.summary.score_edges.indexOf(pane.filter.score);
    slider.setAttribute("aria-label", `Score from, ${"AB"[index]}`);
    text.textContent = `≥ ${shortScore(pane.filter.score)}`;
    slider.oninput = () => setScore(Number(slider.value), pane);
    chip.append(slider, text);
    pane.slider = slider;
    pane.scoreText = text;
  }
  pane.countText = Object.assign(document.createElement("span"), { className: "muted" });
  chip.append(pane.countText);
  pane.caption.replaceChildren(chip);
  chip.hidden = isOne && scene.results.length < 2;
  counted(pane);
}

async function setCompare(on, wanted = {}) {
  if (on === panes.length > 1 || !result()) return;
  if (on) {
    const first = main(), pane = addPane();
    await pane.open(scene);
    pane.showTiles = first.showTiles;
    const other = scene.results.find((each) => each.job === wanted.other) ?? scene.results.find((each) => each.job !== first.result.job) ?? first.result;
    pane.marks = new Map();
    pane.moveTo(first.where(), true);
    const higher = Math.min(0.95, first.filter.score + 0.2);
    await setResult(pane, other, wanted.otherScore ?? (other === first.result ? higher : first.filter.score));
  } else {
    panes.pop().destroy();
    main().faded = null;
  }
  $("compare").setAttribute("aria-pressed", String(on));
  $("panes").classList.toggle("two", on);
  caption(main());
  main().draw();
  link();
}

function setTiles(on) {
  const known = result()?.tilings?.length > 0;
  $("tiles").setAttribute("aria-pressed", String(on && known));
  $("tiles").title = known ? "Show tiles and seams (G)" : "The tiles of this result are unknown; tinydet view --tile states them";
  $("tiles").disabled = !known;
  panes.forEach((pane) => { pane.showTiles = on && known; pane.draw(); });
  link();
}

function moved(pane) {
  if (!syncing && panes.length > 1) {
    syncing = true;
    const other = panes.find((each) => each !== pane);
    const from = pane.viewer.viewport, to = other.viewer.viewport;
    to.zoomTo(from.getZoom(false), null, true);
    to.panTo(from.getCenter(false), true);
    to.zoomTo(from.getZoom(true), null, true);
    to.panTo(from.getCenter(true), true);
    syncing = false;
  }
  status();
  link();
}

function loaded(pane) {
  if (panes.length > 1) {
    const [a, b] = panes, both = a.page && b.page && a.result && b.result;
    a.faded = both ? shared(a.page, b.page, a.result.classes, b.result.classes) : null;
    b.faded = both ? shared(b.page, a.page, b.result.classes, a.result.classes) : null;
    panes.forEach((each) => each.draw());
    panes.forEach(counted);
  } else counted(pane);
  legend(pane);
  document.documentElement.dataset.shown = String(main().shown ?? "density");
}

function counted(pane) {
  if (!pane.countText || !pane.summary) return;
  const total = countFrom(pane).reduce((sum, count, label) => sum + (hidden.has(pane.result.classes[label]) ? 0 : count), 0);
  const only = panes.length > 1 && pane.faded ? ` · in view ${number(pane.page.ids.length - pane.faded.size)} only here` : "";
  pane.countText.textContent = `${number(total)}${only}`;
}

function legend(pane) {
  pane.element.querySelector(".legend")?.remove();
  if (!pane.density) return;
  const box = Object.assign(document.createElement("div"), { className: "legend" }), bar = document.createElement("canvas");
  bar.width = 84; bar.height = 1;
  const context = bar.getContext("2d");
  for (let x = 0; x < 84; x++) {
    const [r, g, b] = densityColor(x / 84);
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(x, 0, 1, 1);
  }
  box.append("1", bar, `${number(pane.density.most)} per ${number(pane.density.cell)} px square; zoom in for boxes`);
  pane.element.append(box);
}

function status() {
  const { zoom } = main().where();
  $("scale").textContent = zoom >= 1 ? `${zoom < 10 ? zoom.toFixed(1) : zoom.toFixed(0)}×` : `1 : ${(1 / zoom) < 10 ? (1 / zoom).toFixed(1) : (1 / zoom).toFixed(0)}`;
}

/** Show where the pointer is, and how many detections are in its cell of a density. */
function pointer(place, count = null) {
  $("position").textContent = place ? `${place[0]}, ${place[1]} px${count === null ? "" : `  ·  ${number(count)} here`}` : "";
}

// ------------------------------------------------------------------------------------------------------------- panel

/** Return the number of detections of each class from the threshold of a pane on. */
function countFrom(pane) {
  const from = pane.summary.score_edges.indexOf(pane.filter.score);
  return pane.summary.counts.map((bins) => bins.reduce((sum, count, i) => sum + (i >= from ? count : 0), 0));
}

const shortScore = (value) => (Math.abs(value) < 10 ? value.toFixed(2) : value.toFixed(1));

function panel() {
  const pane = main(), of = result();
  for (const id of ["compare", "link", "download", "score", "previous", "next", "all", "none"]) $(id).disabled = !of;
  if (!of) return;
  const edges = pane.summary.score_edges, at = edges.indexOf(pane.filter.score), counts = countFrom(pane);
  $("score").value = at;
  $("score").setAttribute("aria-valuetext", shortScore(edges[at]));
  $("score-value").textContent = shortScore(edges[at]);
  const bins = edges.slice(1).map((_, i) => pane.summary.counts.reduce((sum, row, label) => sum + (hidden.has(of.classes[label]) ? 0 : row[i]), 0));
  drawBars($("score-chart"), bins, (i) => i >= at);
  const kept = counts.reduce((sum, count, label) => sum + (hidden.has(of.classes[label]) ? 0 : count), 0);
  $("count").textContent = `${number(kept)} of ${number(pane.summary.total)}`;
  classes(of, counts);
  review();
  sizes();
  if (pane.slider) { pane.slider.value = at; pane.scoreText.textContent = `≥ ${shortScore(pane.filter.score)}`; }
  counted(pane);
}

function classes(of, counts) {
  const list = $("classes");
  if (list.dataset.of !== JSON.stringify(of.classes)) {
    list.dataset.of = JSON.stringify(of.classes);
    list.replaceChildren(...of.classes.map((name, label) => {
      const item = document.createElement("li"), row = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.onchange = () => { if (box.checked) hidden.delete(name); else hidden.add(name); filtered(); };
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      swatch.setAttribute("viewBox", "0 0 14 14");
      swatch.setAttribute("aria-hidden", "true");
      const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [key, value] of Object.entries({ x: 1, y: 1, width: 12, height: 12, rx: 3, fill: color(label), stroke: "rgb(0 0 0 / .45)" })) square.setAttribute(key, value);
      swatch.append(square);
      row.append(box, swatch, Object.assign(document.createElement("span"), { className: "name", textContent: name, title: name }), document.createElement("span"));
      item.append(row);
      return item;
    }));
  }
  [...list.children].forEach((item, label) => {
    const isOn = !hidden.has(of.classes[label]), row = item.firstChild;
    row.children[0].checked = isOn;
    row.className = isOn ? "" : "off";
    row.children[3].textContent = number(counts[label]);
  });
}

let sizesRequest = null;
async function sizes() {
  const pane = main(), of = result();
  sizesRequest?.abort();
  const request = sizesRequest = new AbortController();
  try {
    const summary = await source.summary(scene, of, pane.filter.score, request.signal);
    if (request.signal.aborted) return;
    const edges = summary.size_edges, total = edges.slice(1).map((_, i) => summary.sizes.reduce((sum, row, label) => sum + (hidden.has(of.classes[label]) ? 0 : row[i]), 0));
    const first = Math.max(0, total.findIndex((count) => count > 0)), last = total.findLastIndex((count) => count > 0);
    const from = Math.max(0, Math.min(first - 1, 6)), to = Math.min(total.length, Math.max(last + 2, 13));
    const ticks = edges.map((edge, i) => [i - from, String(edge)]).filter(([i, text]) => i >= 0 && i <= to - from && Number.isInteger(Math.log2(Number(text))));
    drawBars($("size-chart"), total.slice(from, to), () => true, ticks);
    const all = total.reduce((sum, count) => sum + count, 0);
    let sum = 0;
    const middle = total.findIndex((count) => (sum += count) * 2 >= all);
    $("median").textContent = all ? `half below ${Math.round(edges[middle + 1])} px` : "";
    $("size-chart").setAttribute("aria-label", all ? `Histogram of sizes; half of ${number(all)} detections are below ${Math.round(edges[middle + 1])} pixels` : "No detections");
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message);
  }
}

let applying = null;
function filtered() {
  // Bars and counts follow at once; boxes and sizes when the slider rests.
  panes.forEach((pane) => { pane.filter = { ...pane.filter, classes: visible(pane.result) }; });
  clearTimeout(applying);
  applying = setTimeout(() => panes.forEach((pane) => pane.setFilter(pane.filter)), 60);
  if (selected && (selected.score < Math.fround(main().filter.score) || hidden.has(result().classes[selected.label]))) select(null);
  panel();
  panes.slice(1).forEach(counted);
  link();
}

function setScore(place, pane = main()) {
  const edges = pane.summary.score_edges;
  pane.filter = { ...pane.filter, score: edges[Math.max(0, Math.min(edges.length - 1, place))] };
  if (pane !== main()) pane.scoreText.textContent = `≥ ${shortScore(pane.filter.score)}`;
  filtered();
}

function about() {
  const of = result(), rows = Object.entries({ ...(of ? { Result: of.name, ...of.details } : {}) });
  if (info.version) rows.push(["tinydet", info.version]);
  if (scene?.georeferenced) rows.push(["Scene", "georeferenced"]);
  facts($("about"), rows);
  $("about-section").hidden = !rows.length;
}

function facts(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value, title: value }),
  ]));
}

// ------------------------------------------------------------------------------------------------- selection, review

function clicked(pane, found) {
  if (pane === main()) select(found);
  else if (found) { // the same object in the first view, if it is there
    main().element.classList.add("selected-pane");
    const page = main().page, i = page ? page.boxes.findIndex((box) => Math.abs(box[0] - found.box[0]) + Math.abs(box[1] - found.box[1]) < 8) : -1;
    if (i >= 0) select(detection(page, i)); else toast("Only here");
  }
}

function select(found) {
  selected = found;
  const pane = main();
  if (pane) { pane.selected = found; pane.draw(); }
  $("detail").hidden = !found;
  $("no-detail").hidden = Boolean(found);
  review();
  if (found) { detail(); rank(); } else $("rank").textContent = "";
  link();
}

function detail() {
  const of = result(), [x1, y1, x2, y2] = selected.box, name = of.classes[selected.label];
  const knowsTile = main().summary.has_seams;
  facts($("facts"), [
    ["Class", name], ["Score", selected.score.toFixed(3)], ["Width", `${(x2 - x1).toFixed(1)} px`], ["Height", `${(y2 - y1).toFixed(1)} px`],
    ["Size", `${selected.size.toFixed(1)} px`], ["Center", `${Math.round((x1 + x2) / 2)}, ${Math.round((y1 + y2) / 2)}`],
    ["Tile", knowsTile ? String(selected.tile) : "–"], ["Pass", knowsTile ? (selected.pass ? "coarse" : "full") : "–"],
    ["To seam", selected.seam === null ? "–" : `${selected.seam.toFixed(1)} px`],
  ]);
  crop();
}

async function crop() {
  const mine = selected, [x1, y1, x2, y2] = mine.box, canvas = $("crop");
  const side = Math.min(Math.max(Math.round(3 * Math.max(x2 - x1, y2 - y1)), 40), 4096, scene.width, scene.height);
  const start = (low, high, length) => Math.round(Math.min(Math.max((low + high - side) / 2, 0), length - side));
  const left = start(x1, x2, scene.width), top = start(y1, y2, scene.height), zoom = canvas.width / side;
  canvas.setAttribute("aria-label", `Crop around the selected ${result().classes[mine.label]}, ${side} by ${side} pixels of the scene`);
  try {
    const draw = await source.drawCrop(scene, [left, top, left + side, top + side], canvas);
    if (selected !== mine) return;
    draw();
    const context = canvas.getContext("2d"), rect = [(x1 - left) * zoom, (y1 - top) * zoom, (x2 - x1) * zoom, (y2 - y1) * zoom];
    for (const [style, width] of [["rgb(0 0 0 / .7)", 9], [color(mine.label), 4.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(...rect);
    }
    canvas.dataset.of = String(mine.id);
  } catch (error) {
    toast(error.message);
  }
}

function review() {
  const isReady = Boolean(selected && marks && result()?.complete), verdict = isReady ? marks.get(selected.id) : undefined;
  for (const [id, value] of [["mark-true", true], ["mark-false", false]]) {
    $(id).disabled = !isReady;
    $(id).setAttribute("aria-pressed", String(verdict === value));
  }
  const [yes, no] = marks ? [marks.count(true), marks.count(false)] : [0, 0];
  $("marked").textContent = `${number(yes)} true, ${number(no)} false`;
  $("export").disabled = $("clear").disabled = !(yes + no);
}

function mark(verdict) {
  if (!selected || !result().complete) return;
  const same = verdict !== null && marks.get(selected.id) === verdict;
  if (!marks.set(selected, same ? null : verdict)) toast("The browser does not keep the marks; export them before you leave");
  main().draw();
  review();
  if (verdict !== null && !same && $("advance").checked) step(1);
}

/** Return a page of the filtered detections of the whole scene by the offset of its first one. */
async function stepPage(offset, fromId) {
  const pane = main(), key = JSON.stringify([scene.id, result().job, result().revision, pane.filter]);
  if (stepping.key !== key) stepping = { key, pages: new Map(), total: 0 };
  const known = stepping;
  if (fromId === undefined && known.pages.has(offset)) return known.pages.get(offset);
  const query = { ...pane.filter, limit: STEP_PAGE, ...(fromId === undefined ? { offset } : { fromId }) };
  const page = await source.detections(scene, result(), query);
  known.total = page.total;
  if (fromId === undefined) known.pages.set(offset, page);
  return page;
}

let moving = false;
async function step(by) {
  if (moving || !result()) return;
  moving = true;
  try {
    let place = 0;
    if (selected) {
      const here = await stepPage(0, selected.id);
      place = here.offset + (here.ids[0] === selected.id ? by : by > 0 ? 0 : -1);
    }
    await stepToPlace(place);
  } catch (error) {
    toast(error.message);
  } finally {
    moving = false;
  }
}

async function stepToPlace(place) {
  const page = await stepPage(Math.floor(Math.max(0, place) / STEP_PAGE) * STEP_PAGE);
  if (!page.total) { toast("No detection passes the filter"); return; }
  if (place < 0 || place >= page.total) { toast(place < 0 ? "This is the best one" : "This was the last one"); return; }
  const found = detection(page, place % STEP_PAGE);
  select(found);
  main().show(found);
  if (panes.length > 1) main().refresh();
}

async function stepTo(id, immediately, moves = true) {
  const page = await stepPage(0, id);
  if (page.ids[0] !== id) return;
  const found = detection(page, 0);
  select(found);
  if (moves) main().show(found, immediately);
}

async function rank() {
  const mine = selected;
  try {
    const here = await stepPage(0, mine.id);
    if (selected !== mine) return;
    const of = result();
    $("rank").textContent = here.ids[0] === mine.id ? `${number(here.offset + 1)} of ${number(here.total)}` : "";
    $("rank").setAttribute("aria-label", `Detection ${here.offset + 1} of ${here.total}: ${of.classes[mine.label]}, score ${mine.score.toFixed(2)}, ${mine.size.toFixed(0)} pixels`);
  } catch { /* the next selection tries again */ }
}

function exportMarks() {
  const blob = new Blob([JSON.stringify(marks.toCoco(), null, 1)], { type: "application/json" });
  const anchor = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${scene.name.replace(/\.[^.]*$/, "")}.marks.json` });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
}

// -------------------------------------------------------------------------------------------------------------- jobs

let refreshed = 0;
async function jobChanged(state) {
  if (!scene || state.scene !== scene.id) return;
  const isOver = !["accepted", "running"].includes(state.status), now = Date.now();
  if (!isOver && now - refreshed < REFRESH) return;
  refreshed = now;
  const fresh = await source.scene(scene.id).catch(() => null);
  if (!fresh || fresh.id !== scene.id) return;
  scene.results = fresh.results;
  const pane = main(), latest = fresh.results.find((each) => each.job === state.jobID);
  if (!latest) return;
  if (!pane.result || pane.result.job === latest.job) {
    const keeps = selected;
    await setResult(pane, latest, pane.result ? pane.filter.score : 0);
    if (keeps && latest.complete) select(null);
    setTiles($("tiles").getAttribute("aria-pressed") === "true");
  } else caption(pane);
}

// ------------------------------------------------------------------------------------------------------------- links

let linking = null;
/** Write the view into the address, so that the address is a link to it. */
function link() {
  clearTimeout(linking);
  linking = setTimeout(() => { if (scene && result()) history.replaceState(null, "", toLink()); }, 150);
}

function toLink() {
  const pane = main(), where = pane.where(), values = new URLSearchParams();
  values.set("scene", scene.id);
  values.set("job", pane.result.job);
  values.set("x", where.x.toFixed(1));
  values.set("y", where.y.toFixed(1));
  values.set("zoom", where.zoom.toPrecision(5));
  values.set("score", String(pane.filter.score));
  for (const name of hidden) values.append("off", name);
  if (selected) values.set("sel", selected.id);
  if (pane.showTiles) values.set("tiles", "1");
  if (panes[1]?.result) { values.set("other", panes[1].result.job); values.set("otherScore", String(panes[1].filter.score)); }
  return `#${values}`;
}

function fromLink() {
  const values = new URLSearchParams(location.hash.slice(1)), wanted = {};
  for (const key of ["scene", "job", "other"]) if (values.get(key)) wanted[key] = values.get(key);
  for (const key of ["x", "y", "zoom", "score", "sel", "otherScore"]) {
    const value = Number(values.get(key));
    if (values.has(key) && Number.isFinite(value)) wanted[key] = value;
  }
  if (!("zoom" in wanted && wanted.zoom > 0 && "y" in wanted)) delete wanted.x;
  if (values.has("tiles")) wanted.tiles = true;
  wanted.off = values.getAll("off");
  return wanted;
}

async function copyLink() {
  history.replaceState(null, "", toLink());
  try {
    await navigator.clipboard.writeText(location.href);
    toast("Link copied");
  } catch { // only on secure pages
    $("shared-link").value = location.href;
    $("shared").showModal();
    $("shared-link").select();
  }
}

// -------------------------------------------------------------------------------------------------- buttons and keys

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("tinydet:theme", name); } catch { /* not kept */ }
}

let toasting = null;
function toast(text) {
  $("toast").textContent = text;
  $("toast").classList.add("on");
  clearTimeout(toasting);
  toasting = setTimeout(() => $("toast").classList.remove("on"), 2600);
}

function downloads() {
  const list = $("downloads"), isOpen = list.hidden, of = result();
  $("download").setAttribute("aria-expanded", String(isOpen));
  list.hidden = !isOpen;
  if (!isOpen) return;
  const links = of.complete ? source.downloads(of) : [];
  list.replaceChildren(...links.map(([format, address]) => {
    const item = Object.assign(document.createElement("a"), { href: address, download: "" });
    item.onclick = (event) => {
      event.preventDefault();
      closeDownloads();
      source.save(address).catch((error) => toast(error.message));
    };
    item.setAttribute("role", "menuitem");
    item.append(Object.assign(document.createElement("span"), { textContent: NAMES[format] ?? format }), Object.assign(document.createElement("span"), { className: "muted", textContent: format }));
    return item;
  }));
  if (!links.length) list.append(Object.assign(document.createElement("p"), { textContent: "Nothing to download yet." }));
  list.firstChild.focus?.();
}

const NAMES = { coco: "COCO file", "coco-results": "COCO results", geojson: "GeoJSON", gpkg: "GeoPackage", csv: "CSV table", parquet: "Parquet table", yolo: "YOLO labels", "yolo-conf": "YOLO labels with scores" };
const closeDownloads = () => { $("downloads").hidden = true; $("download").setAttribute("aria-expanded", "false"); };

function listen() {
  $("scene").onchange = () => show($("scene").value);
  $("compare").onclick = () => setCompare(panes.length < 2);
  $("tiles").onclick = () => setTiles($("tiles").getAttribute("aria-pressed") !== "true");
  $("link").onclick = copyLink;
  $("download").onclick = downloads;
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("help-open").onclick = () => $("help").showModal();
  $("panel-toggle").onclick = () => $("panel-toggle").setAttribute("aria-expanded", String(!document.body.classList.toggle("wide")));
  $("zoom-in").onclick = () => main()?.zoomBy(1.6);
  $("zoom-out").onclick = () => main()?.zoomBy(1 / 1.6);
  $("zoom-one").onclick = () => main()?.moveTo({ ...main().where(), zoom: 1 });
  $("home").onclick = () => main()?.home();
  $("score").oninput = () => setScore(Number($("score").value));
  $("all").onclick = () => { hidden.clear(); filtered(); };
  $("none").onclick = () => { hidden = new Set(result().classes); filtered(); };
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("mark-true").onclick = () => mark(true);
  $("mark-false").onclick = () => mark(false);
  $("export").onclick = exportMarks;
  $("clear").onclick = () => { marks.clear(); main().draw(); review(); };
  document.addEventListener("click", (event) => { if (!event.target.closest(".menu")) closeDownloads(); });
  new ResizeObserver(() => { if (result()) panel(); }).observe($("panel"));
  addEventListener("hashchange", () => { if (scene && location.hash !== toLink()) { const wanted = fromLink(); show(wanted.scene ?? scene.id, wanted); } });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input:not([type=range], [type=checkbox]), select, textarea")) return;
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || !scene) return;
    event.preventDefault();
    action();
  });
}

const KEYS = {
  j: () => step(1), k: () => step(-1), t: () => mark(true), f: () => mark(false), u: () => mark(null),
  "[": () => result() && setScore(Number($("score").value) - 5), "]": () => result() && setScore(Number($("score").value) + 5),
  "+": () => main().zoomBy(1.6), "=": () => main().zoomBy(1.6), "-": () => main().zoomBy(1 / 1.6), 0: () => main().home(), 1: () => $("zoom-one").click(),
  c: () => $("compare").click(), g: () => $("tiles").click(), l: copyLink, "?": () => $("help").showModal(),
  Escape: () => { if (!$("downloads").hidden) { closeDownloads(); $("download").focus(); } else select(null); },
};

start();
