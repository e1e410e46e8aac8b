// One view of a scene: OpenSeadragon for the pixels, a canvas of our own for boxes, densities and tiles.

import { densityImage, drawBoxes, drawDensity, drawTile, drawTiles, rectangle } from "./draw.js";

const PAGE = 4000; // boxes; if the view has more, their density is shown
const CELLS = 96; // of a density, per side
const CELL = 22; // CSS pixels: about the side of a cell
const MARGIN = 0.35; // of the view on each side, loaded in advance
const HIT = 8; // CSS pixels: how far from a small box a click still means it
const SETTLED = 90; // ms without movement before the view is loaded

export class Pane {
  scene = null; result = null; page = null; density = null; viewer = null;
  filter = { score: 0, classes: null };
  selected = null; // {id, box, label, tile, pass, ...}
  faded = null; // ids that the other pane has as well
  marks = new Map();
  showTiles = false;

  /**
   * @param element an empty element
   * @param source where scenes come from
   * @param on {select(detection or null), moved(), pointer(x, y), loaded(), error(Error)}
   */
  constructor(element, source, on) {
    Object.assign(this, { element, source, on });
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    this.canvas.setAttribute("aria-hidden", "true");
    this.host = document.createElement("div");
    this.host.className = "scene";
    element.prepend(this.host);
    this.observer = new ResizeObserver(() => { this.#fit(); this.draw(); });
    this.observer.observe(element);
  }

  /** Show a scene. Resolves when it can be drawn. */
  open(scene) {
    this.scene = scene;
    this.page = this.density = null;
    this.viewer?.destroy();
    return new Promise((resolve) => {
      const viewer = this.viewer = window.OpenSeadragon({
        element: this.host,
        tileSources: {
          width: scene.width, height: scene.height, tileSize: scene.tile_size, tileOverlap: 0,
          minLevel: scene.min_level, maxLevel: scene.max_level,
          getTileUrl: (level, x, y) => this.source.tileAddress(scene, level, x, y),
        },
        drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "TOP_RIGHT",
        navigatorSizeRatio: 0.15, navigatorAutoFade: false, animationTime: 0.45, springStiffness: 9,
        maxZoomPixelRatio: 40, minZoomImageRatio: 0.7, visibilityRatio: 0.4, imageSmoothingEnabled: true,
        gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
        gestureSettingsPen: { clickToZoom: false }, imageLoaderLimit: 5, timeout: 60000, tileRetryMax: 60, tileRetryDelay: 1500,
        maxImageCacheCount: 400, placeholderFillStyle: null, crossOriginPolicy: false,
        loadTilesWithAjax: true, ajaxHeaders: this.source.headers,
      });
      viewer.canvas.append(this.canvas); // below the navigator
      const surface = viewer.canvas;
      surface.setAttribute("aria-label", `${scene.name}, ${scene.width} by ${scene.height} pixels. Arrow keys move, plus and minus zoom.`);
      surface.setAttribute("role", "application");
      viewer.addHandler("open", () => { this.#fit(); this.#crisp(); this.draw(); resolve(); });
      viewer.addHandler("open-failed", () => this.on.error(new Error(`${scene.name} cannot be shown`)));
      viewer.addHandler("update-viewport", () => this.draw());
      viewer.addHandler("viewport-change", () => { this.#crisp(); this.#schedule(); this.on.moved(this); });
      viewer.addHandler("canvas-click", (event) => event.quick && this.#click(event));
      viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = !event.originalEvent.key.startsWith("Arrow"); });
      this.host.addEventListener("pointermove", (event) => this.#pointer(event));
      this.host.addEventListener("pointerleave", () => this.on.pointer(null));
    });
  }

  setResult(result) {
    if (result?.job !== this.result?.job) this.page = this.density = this.selected = null;
    this.result = result;
    this.refresh();
  }

  setFilter(filter) {
    this.filter = filter;
    this.refresh();
  }

  /** Where the scene is on the canvas; see draw.js. */
  view() {
    const viewport = this.viewer.viewport, item = this.viewer.world.getItemAt(0);
    const origin = viewport.pixelFromPoint(item.imageToViewportCoordinates(0, 0), true);
    const corner = viewport.pixelFromPoint(item.imageToViewportCoordinates(this.scene.width, 0), true);
    return { scale: (corner.x - origin.x) / this.scene.width, x: origin.x, y: origin.y,
      width: this.host.clientWidth, height: this.host.clientHeight };
  }

  /** The center of the view in scene pixels, and its zoom in screen pixels per scene pixel. */
  where() {
    const { scale, x, y, width, height } = this.#target();
    return { x: (width / 2 - x) / scale, y: (height / 2 - y) / scale, zoom: scale };
  }

  /** Move the view; see `where`. */
  moveTo({ x, y, zoom }, immediately = false) {
    const item = this.viewer.world.getItemAt(0), viewport = this.viewer.viewport;
    viewport.zoomTo(viewport.imageToViewportZoom(zoom), null, immediately);
    viewport.panTo(item.imageToViewportCoordinates(x, y), immediately);
    viewport.applyConstraints(immediately);
  }

  zoomBy(factor) { this.viewer.viewport.zoomBy(factor); this.viewer.viewport.applyConstraints(); }
  home() { this.viewer.viewport.goHome(); }

  /** Make a detection visible at a useful size. */
  show(detection, immediately = false) {
    const [x1, y1, x2, y2] = detection.box, { scale, width, height } = this.#target();
    const side = Math.max(x2 - x1, y2 - y1, 1), room = Math.min(width, height);
    const fits = side * scale >= 26 && side * scale <= room * 0.6;
    this.moveTo({ x: (x1 + x2) / 2, y: (y1 + y2) / 2, zoom: fits ? scale : Math.min(64 / side, room * 0.5 / side, 16) }, immediately);
  }

  /** Load what the view needs, now. */
  refresh() {
    clearTimeout(this.timer);
    this.#load();
  }

  draw() {
    const item = this.viewer?.world.getItemAt(0);
    if (!item) return;
    const view = this.view(), ratio = this.ratio, context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    const tilings = this.result?.tilings ?? [];
    if (this.showTiles) tilings.forEach((tiling, pass) => drawTiles(context, view, tiling, this.scene, pass > 0));
    if (this.density) drawDensity(context, view, this.density);
    if (this.page) drawBoxes(context, view, this.page, { marks: this.marks, selected: this.selected?.id, faded: this.faded });
    if (this.selected) {
      if (this.showTiles && this.selected.tile !== null && tilings[this.selected.pass]) drawTile(context, view, tilings[this.selected.pass], this.selected.tile);
      if (!this.page?.ids.includes(this.selected.id)) {
        drawBoxes(context, view, { ids: [this.selected.id], boxes: [this.selected.box], labels: [this.selected.label] },
          { marks: this.marks, selected: this.selected.id });
      }
    }
  }

  /** Number of boxes that the view shows; null if it shows densities. */
  get shown() { return this.density ? null : this.page?.ids.length ?? 0; }

  destroy() {
    clearTimeout(this.timer);
    this.request?.abort();
    this.observer.disconnect();
    this.viewer?.destroy();
    this.element.remove();
  }

  #target() { // where an animation will end
    const viewport = this.viewer.viewport, bounds = viewport.getBounds(false), item = this.viewer.world.getItemAt(0);
    const width = this.host.clientWidth, height = this.host.clientHeight;
    const from = item.viewportToImageCoordinates(bounds.x, bounds.y);
    const to = item.viewportToImageCoordinates(bounds.x + bounds.width, bounds.y);
    const scale = width / Math.max(to.x - from.x, 1e-9);
    return { scale, x: -from.x * scale, y: -from.y * scale, width, height };
  }

  #fit() {
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.width = Math.max(1, Math.round(this.host.clientWidth * this.ratio));
    this.canvas.height = Math.max(1, Math.round(this.host.clientHeight * this.ratio));
  }

  #crisp() { // single pixels as squares
    const smooth = this.#target().scale < 4;
    if (smooth !== this.smooth) this.viewer.setImageSmoothingEnabled?.(this.smooth = smooth) ?? this.viewer.drawer.setImageSmoothingEnabled(smooth);
  }

  #schedule() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#load(), SETTLED);
  }

  async #load() {
    if (!this.result || !this.viewer?.world.getItemAt(0)) return;
    this.request?.abort();
    const request = this.request = new AbortController();
    const { scene, result, filter } = this, view = this.#target();
    if (filter.classes?.length === 0) {
      this.page = { total: 0, ids: [], boxes: [], labels: [], scores: [] };
      this.density = null;
      this.draw();
      this.on.loaded(this);
      return;
    }
    const dx = view.width * MARGIN, dy = view.height * MARGIN;
    const corner = (u, v) => [(u - view.x) / view.scale, (v - view.y) / view.scale];
    const bbox = [...corner(-dx, -dy), ...corner(view.width + dx, view.height + dy)].map((value) => Math.round(value));
    const area = (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]);
    const expected = this.last && this.last.job === result.job ? this.last.total * Math.min(1, area / this.last.area) : Infinity;
    try {
      let density = null, page = null;
      if (expected > PAGE) density = await this.#density(bbox, view, request.signal);
      if (!density || density.total <= PAGE) {
        page = await this.source.detections(scene, result, { ...filter, bbox, limit: PAGE }, request.signal);
        density = page.total > PAGE ? await this.#density(bbox, view, request.signal) : null;
      }
      if (request.signal.aborted) return;
      this.last = { job: result.job, total: (density ?? page).total, area };
      this.density = density;
      this.page = density ? null : page;
      this.draw();
      this.on.loaded(this);
    } catch (error) {
      if (error.name !== "AbortError") this.on.error(error);
    }
  }

  async #density(bbox, view, signal) {
    // Cells are a power of two of scene pixels and lie on multiples of it, so that they stay where they are.
    let cell = 2 ** Math.ceil(Math.log2(CELL / view.scale));
    while (Math.max(bbox[2] - bbox[0], bbox[3] - bbox[1]) / cell > CELLS - 2) cell *= 2;
    const [x, y] = [Math.floor(bbox[0] / cell) * cell, Math.floor(bbox[1] / cell) * cell];
    const square = [x, y, x + CELLS * cell, y + CELLS * cell];
    const density = await this.source.density(this.scene, this.result, { ...this.filter, bbox: square }, CELLS, signal);
    return { ...density, ...densityImage(density.grid), cell };
  }

  #click(event) {
    const view = this.view(), { x, y } = event.position;
    if (this.density) {
      const place = { x: (x - view.x) / view.scale, y: (y - view.y) / view.scale };
      const { zoom } = this.where();
      this.moveTo({ ...place, zoom: zoom * 3 });
      return;
    }
    let best = -1, least = Infinity;
    this.page?.boxes.forEach((box, i) => {
      const [left, top, width, height] = rectangle(view, box);
      const away = Math.max(left - x, x - left - width, top - y, y - top - height, 0);
      if (away > HIT) return;
      const rank = away > 0 ? 1e9 + away : width * height; // inside of the smallest box, else next to the closest
      if (rank < least) { least = rank; best = i; }
    });
    this.on.select(this, best < 0 ? null : detection(this.page, best));
  }

  #countAt(x, y) { // of the cell of the density; null for boxes
    if (!this.density) return null;
    const [left, top] = this.density.bbox, { cell, grid } = this.density;
    return grid[Math.floor((y - top) / cell)]?.[Math.floor((x - left) / cell)] ?? null;
  }

  #pointer(event) {
    const box = this.host.getBoundingClientRect(), view = this.view();
    const x = Math.floor((event.clientX - box.left - view.x) / view.scale), y = Math.floor((event.clientY - box.top - view.y) / view.scale);
    const inside = x >= 0 && y >= 0 && x < this.scene.width && y < this.scene.height;
    this.on.pointer(inside ? [x, y] : null, inside ? this.#countAt(x, y) : null);
  }
}

/** Return one detection of a page. */
export function detection(page, i) {
  return { id: page.ids[i], box: page.boxes[i], score: page.scores[i], label: page.labels[i], size: page.sizes[i],
    tile: page.tiles[i], pass: page.passes[i], seam: page.seam_distance[i] };
}

/** Return the ids of `mine` that have a counterpart in `theirs`: the same class name and an IoU of 0.3 or more. */
export function shared(mine, theirs, names, otherNames) {
  const cells = new Map(), cell = 64, ids = new Set();
  const key = (x, y) => `${Math.floor(x / cell)},${Math.floor(y / cell)}`;
  const each = (box, visit) => {
    for (let y = Math.floor(box[1] / cell); y <= Math.floor(box[3] / cell); y++)
      for (let x = Math.floor(box[0] / cell); x <= Math.floor(box[2] / cell); x++) visit(key(x * cell, y * cell));
  };
  theirs.boxes.forEach((box, i) => each(box, (at) => { if (!cells.has(at)) cells.set(at, []); cells.get(at).push(i); }));
  mine.boxes.forEach((box, i) => {
    each(box, (at) => {
      for (const j of cells.get(at) ?? []) {
        if (names[mine.labels[i]] === otherNames[theirs.labels[j]] && overlap(box, theirs.boxes[j]) >= 0.3) { ids.add(mine.ids[i]); return; }
      }
    });
  });
  return ids;
}

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const inside = width * height;
  return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside);
}
