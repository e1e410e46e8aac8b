// Draw on the canvas over a scene. `view` is {scale, x, y, width, height}: a point (u, v) of the scene is at
// (u * scale + x, v * scale + y) on the canvas, in CSS pixels.

// By class: rare in nature and towns, and easy to tell apart; those of the drawings of `tinydet infer`.
export const COLORS = ["#ffe600", "#ff3ca0", "#00e6ff", "#ff7800", "#a0ff3c", "#be82ff", "#ffffff", "#508cff"];
export const color = (label) => COLORS[label % COLORS.length];
export const MIN_SIDE = 5; // CSS pixels: a smaller box is drawn with this side
const HALO_LIMIT = 2500; // boxes in view; more are drawn without a dark outline
const GOOD = "#31d27c", BAD = "#ff5a4f";

/** Return the rectangle of a box on the canvas: [left, top, width, height]. */
export function rectangle(view, box) {
  let width = (box[2] - box[0]) * view.scale, height = (box[3] - box[1]) * view.scale;
  let left = box[0] * view.scale + view.x, top = box[1] * view.scale + view.y;
  if (width < MIN_SIDE) { left -= (MIN_SIDE - width) / 2; width = MIN_SIDE; }
  if (height < MIN_SIDE) { top -= (MIN_SIDE - height) / 2; height = MIN_SIDE; }
  return [left, top, width, height];
}

/** Draw the boxes of a page. `style`: marks (verdict by id), selected (id), faded (set of ids or null). */
export function drawBoxes(context, view, page, style) {
  const groups = new Map(), marked = [];
  let count = 0, chosen = null;
  for (let i = 0; i < page.ids.length; i++) {
    const box = page.boxes[i];
    if (box[2] * view.scale + view.x < -9 || box[0] * view.scale + view.x > view.width + 9) continue;
    if (box[3] * view.scale + view.y < -9 || box[1] * view.scale + view.y > view.height + 9) continue;
    const id = page.ids[i], rect = rectangle(view, box);
    if (id === style.selected) { chosen = [rect, page.labels[i]]; }
    if (style.marks.size && style.marks.has(id)) marked.push([rect, style.marks.get(id).verdict]);
    const key = style.faded?.has(id) ? -1 : page.labels[i] % COLORS.length;
    let path = groups.get(key);
    if (!path) groups.set(key, path = []);
    path.push(rect);
    count++;
  }
  context.lineJoin = "miter";
  for (const [key, rects] of groups) {
    context.beginPath();
    for (const [x, y, w, h] of rects) context.rect(x, y, w, h);
    context.globalAlpha = key < 0 ? 0.4 : 1;
    if (count <= HALO_LIMIT) {
      context.strokeStyle = "rgb(0 0 0 / .6)";
      context.lineWidth = 3.4;
      context.stroke();
    }
    context.strokeStyle = key < 0 ? "#d6dde1" : COLORS[key];
    context.lineWidth = 1.6;
    context.stroke();
  }
  context.globalAlpha = 1;
  for (const [rect, verdict] of marked) drawVerdict(context, rect, verdict);
  if (chosen) drawSelected(context, chosen[0], COLORS[chosen[1] % COLORS.length]);
}

function drawVerdict(context, [x, y, w, h], verdict) {
  const s = Math.max(4, Math.min(9, Math.min(w, h) / 3));
  context.lineWidth = 2.4;
  context.lineCap = "round";
  for (const [style, width] of [["rgb(0 0 0 / .75)", 5], [verdict ? GOOD : BAD, 2.4]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    if (verdict) { // a tick at the lower right corner
      context.moveTo(x + w - s, y + h); context.lineTo(x + w - s / 4, y + h + s * .7); context.lineTo(x + w + s * 1.1, y + h - s);
    } else { // a cross through the box
      context.moveTo(x, y); context.lineTo(x + w, y + h); context.moveTo(x + w, y); context.lineTo(x, y + h);
    }
    context.stroke();
  }
  context.lineCap = "butt";
}

function drawSelected(context, [x, y, w, h], style) {
  const gap = 5, arm = Math.max(6, Math.min(14, Math.min(w, h) / 2));
  const [l, t, r, b] = [x - gap, y - gap, x + w + gap, y + h + gap];
  for (const [stroke, width] of [["rgb(0 0 0 / .8)", 6], ["#ffffff", 3]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.beginPath();
    for (const [u, v, p, q] of [[l, t, 1, 1], [r, t, -1, 1], [r, b, -1, -1], [l, b, 1, -1]]) {
      context.moveTo(u + p * arm, v); context.lineTo(u, v); context.lineTo(u, v + q * arm);
    }
    context.stroke();
  }
  context.strokeStyle = style;
  context.lineWidth = 2;
  context.strokeRect(x, y, w, h);
}

/** Return a color of the density scale for a share from 0 to 1: [red, green, blue, alpha]. */
export function densityColor(share) {
  const stops = [[40, 90, 200, 46], [0, 190, 200, 92], [255, 222, 60, 140], [255, 80, 40, 185]];
  const place = Math.min(share, 0.9999) * (stops.length - 1), i = Math.floor(place), f = place - i;
  return stops[i].map((value, k) => value + f * (stops[i + 1][k] - value));
}

/** Return a canvas with one pixel per cell, and the largest count. */
export function densityImage(grid) {
  const cells = grid.length, canvas = document.createElement("canvas");
  canvas.width = canvas.height = cells;
  const context = canvas.getContext("2d"), image = context.createImageData(cells, cells);
  let most = 0;
  for (const row of grid) for (const count of row) most = Math.max(most, count);
  const scale = Math.log1p(most);
  grid.forEach((row, y) => row.forEach((count, x) => {
    if (count) image.data.set(densityColor(most > 1 ? Math.log1p(count) / scale : 0.5), 4 * (y * cells + x));
  }));
  context.putImageData(image, 0, 0);
  return { canvas, most };
}

/** Draw the density of a rectangle of the scene. Counts as text would cost more than a frame. */
export function drawDensity(context, view, density) {
  const [x1, y1, x2, y2] = density.bbox;
  context.imageSmoothingEnabled = false;
  context.drawImage(density.canvas, x1 * view.scale + view.x, y1 * view.scale + view.y, (x2 - x1) * view.scale, (y2 - y1) * view.scale);
}

/** Draw the tiles of a pass: their edges, and the bands in which they overlap. */
export function drawTiles(context, view, tiling, scene, isCoarse) {
  const px = (u) => u * view.scale + view.x, py = (v) => v * view.scale + view.y;
  const [left, top, right, bottom] = [px(0), py(0), px(scene.width), py(scene.height)];
  const side = Math.min(tiling.width, tiling.height) * view.scale;
  if (side < 10) return;
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  context.strokeStyle = isCoarse ? "rgb(255 190 90 / .9)" : "rgb(255 255 255 / .8)";
  context.fillStyle = isCoarse ? "rgb(255 190 90 / .1)" : "rgb(80 200 255 / .13)";
  if (isCoarse) context.setLineDash([7, 5]);
  context.lineWidth = 1;
  const lines = (starts, length, place, limit, vertical) => {
    context.beginPath();
    starts.forEach((start, i) => {
      const a = place(start), b = place(start + length);
      if (b < 0 || a > limit) return;
      for (const at of [a, b]) {
        const c = Math.round(at) + .5;
        if (vertical) { context.moveTo(c, Math.max(top, 0)); context.lineTo(c, Math.min(bottom, view.height)); }
        else { context.moveTo(Math.max(left, 0), c); context.lineTo(Math.min(right, view.width), c); }
      }
      if (i + 1 < starts.length) {
        const next = place(starts[i + 1]);
        if (vertical) context.fillRect(next, top, b - next, bottom - top); else context.fillRect(left, next, right - left, b - next);
      }
    });
    context.stroke();
  };
  lines(tiling.xs, tiling.width, px, view.width, true);
  lines(tiling.ys, tiling.height, py, view.height, false);
  context.restore();
}

/** Outline one tile of a pass. */
export function drawTile(context, view, tiling, index) {
  const x = tiling.xs[index % tiling.xs.length], y = tiling.ys[Math.floor(index / tiling.xs.length)];
  if (x === undefined || y === undefined) return;
  const rect = [x * view.scale + view.x, y * view.scale + view.y, tiling.width * view.scale, tiling.height * view.scale];
  context.lineWidth = 5;
  context.strokeStyle = "rgb(0 0 0 / .6)";
  context.strokeRect(...rect);
  context.lineWidth = 2.5;
  context.strokeStyle = "#50dcff";
  context.strokeRect(...rect);
}
