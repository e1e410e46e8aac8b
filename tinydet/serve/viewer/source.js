// Where scenes and detections come from: a server, or the files of a static folder. Both classes have the same methods.
//
// A page of detections is {total, offset, ids, boxes, scores, labels, sizes, tiles, passes, seam_distance}: columns of
// equal length, best first. The id of a detection is its place among all detections of its result.

/** Return the address of a path below the page. */
const at = (path) => new URL(path, document.baseURI).href;

// The token of a server that asks for one. It is kept until the browser tab is closed.
const KEY = "tinydet:token";
let token = sessionStorage.getItem(KEY) ?? "";
const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** Ask for the token of the server. Resolves when the user has typed one. */
let asking = null;
function ask() {
  return (asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("login"), input = document.getElementById("token");
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      token = input.value.trim();
      sessionStorage.setItem(KEY, token);
      asking = null;
      resolve();
    };
    dialog.showModal();
  }));
}

/** Fetch an address and return the response. Throws an Error with the reason that the server states. */
async function answer(path, options = {}) {
  const used = token;
  const response = await fetch(at(path), { ...options, headers: { ...options.headers, ...authorization() } });
  if (response.ok) return response;
  if (response.status === 401) {
    if (used === token) await ask(); // else another request has asked meanwhile
    return answer(path, options);
  }
  let detail = `${response.status} ${response.statusText}`;
  try {
    const stated = (await response.json()).detail;
    if (stated) detail = typeof stated === "string" ? stated : JSON.stringify(stated);
  } catch { /* the body is no JSON */ }
  throw Object.assign(new Error(detail), { status: response.status });
}

const json = async (path, options) => (await answer(path, options)).json();
const loadImage = async (path) => createImageBitmap(await (await answer(path)).blob());

/** Download a file through a link, or, if the server wants a token, through memory, because links send none. */
async function save(address) {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = "";
  if (token) {
    const response = await answer(address);
    anchor.download = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "detections";
    anchor.href = URL.createObjectURL(await response.blob());
    setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
  }
  anchor.click();
}

export class ServerSource {
  /** Headers of the requests for tiles. */
  get headers() { return authorization(); }

  async info() { return json("info"); }
  async scenes() { return (await json("scenes")).scenes; }
  async scene(id) { return json(`scenes/${encodeURIComponent(id)}`); }

  // The version is new whenever the scene may be another one, because browsers keep tiles for a day.
  tileAddress(scene, level, x, y) {
    return at(`scenes/${encodeURIComponent(scene.id)}/tiles/${level}/${x}/${y}.jpg?v=${scene.version}`);
  }

  /** Return a page. `query`: score, classes (names, null for all), bbox, limit, offset, fromId. */
  async detections(scene, result, query, signal) { return json(this.#path(scene, result, query), { signal }); }

  /** Return {total, bbox, grid}: `cells` x `cells` counts of `query.bbox`. */
  async density(scene, result, query, cells, signal) {
    return json(`${this.#path(scene, result, query)}&grid=${cells}`, { signal });
  }

  async summary(scene, result, score, signal) {
    return json(`scenes/${encodeURIComponent(scene.id)}/summary?job=${encodeURIComponent(result.job)}&score=${score}`, { signal });
  }

  /** Draw a square of the scene, [x1, y1, x2, y2] in whole pixels, on a whole canvas. */
  async drawCrop(scene, corners, canvas) {
    const image = await loadImage(`scenes/${encodeURIComponent(scene.id)}/crop?bbox=${corners.join(",")}&v=${scene.version}`);
    return () => {
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
    };
  }

  save(address) { return save(address); }

  downloads(result) {
    return result.formats.map((format) => [format, at(`jobs/${encodeURIComponent(result.job)}/results?format=${format}`)]);
  }

  async uploads() { return json("uploads"); }

  /** Send a file under a name, calling `progress` with the share that was sent. */
  upload(file, name, progress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("PUT", at(`uploads/${encodeURIComponent(name)}`));
      for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
      request.onerror = () => reject(new Error("the connection was lost; try again"));
      request.onload = () => {
        let body = {};
        try { body = JSON.parse(request.responseText); } catch { /* no JSON */ }
        if (request.status < 300) resolve(body);
        else reject(new Error(typeof body.detail === "string" ? body.detail : `${request.status} ${request.statusText}`));
      };
      request.send(file);
    });
  }

  async addJob(body) {
    return json("jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }

  async jobs() { return (await json("jobs")).jobs; }
  async dismiss(job) { await answer(`jobs/${encodeURIComponent(job)}`, { method: "DELETE" }); }

  /** Call `changed` with each state of a job until it has ended. Returns a function that stops. */
  watch(job, changed) {
    const stop = new AbortController();
    const follow = async () => {
      for (;;) {
        try {
          const response = await answer(`jobs/${encodeURIComponent(job)}/events`, { signal: stop.signal });
          const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
          for (let text = "", part = await reader.read(); !part.done; part = await reader.read()) {
            const events = (text + part.value).split("\n\n");
            text = events.pop();
            for (const event of events) {
              const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
              if (!data) continue;
              const state = JSON.parse(data);
              changed(state);
              if (!["accepted", "running"].includes(state.status)) return;
            }
          }
        } catch (error) {
          if (error.name === "AbortError" || error.status === 404) return;
        }
        await new Promise((resolve) => { setTimeout(resolve, 2000); }); // the connection was lost
      }
    };
    follow();
    return () => stop.abort();
  }

  #path(scene, result, { score = 0, classes = null, bbox, limit, offset, fromId }) {
    const query = new URLSearchParams({ job: result.job, score });
    if (bbox) query.set("bbox", bbox.join(","));
    for (const name of classes ?? []) query.append("class", name);
    if (limit !== undefined) query.set("limit", limit);
    if (offset !== undefined) query.set("offset", offset);
    if (fromId !== undefined) query.set("from_id", fromId);
    return `scenes/${encodeURIComponent(scene.id)}/detections?${query}`;
  }
}

const ARRAYS = { "<f4": Float32Array, "<i4": Int32Array };

export class StaticSource {
  #loaded = new Map(); // columns by job
  headers = {};

  async info() { return { jobs: false, version: (await this.#scene()).version }; }
  async scenes() { const { id, name, width, height } = await this.#scene(); return [{ id, name, width, height }]; }
  async scene() { return this.#scene(); }
  tileAddress(scene, level, x, y) { return at(`data/tiles/${level}/${x}/${y}.jpg`); }

  async detections(scene, result, query) {
    const of = await this.#columns(result), ids = this.#select(of, result, query);
    const { limit = 1000, fromId } = query;
    const offset = fromId === undefined ? query.offset ?? 0 : ids.findIndex((id) => id >= fromId) >>> 0;
    const page = ids.slice(offset, offset + limit);
    return {
      total: ids.length, offset, ids: page,
      boxes: page.map((id) => Array.from(of.boxes.subarray(4 * id, 4 * id + 4))),
      scores: page.map((id) => of.scores[id]),
      labels: page.map((id) => of.labels[id]),
      sizes: page.map((id) => size(of.boxes, id)),
      tiles: page.map((id) => of.tiles[id]),
      passes: page.map((id) => of.passes[id]),
      seam_distance: page.map((id) => (Number.isFinite(of.seam_distance[id]) ? of.seam_distance[id] : null)),
    };
  }

  async density(scene, result, query, cells) {
    const of = await this.#columns(result), ids = this.#select(of, result, query);
    const [x1, y1, x2, y2] = query.bbox, grid = Array.from({ length: cells }, () => new Array(cells).fill(0));
    for (const id of ids) {
      const [a, b, c, d] = of.boxes.subarray(4 * id, 4 * id + 4);
      const column = Math.floor(((a + c) / 2 - x1) / (x2 - x1) * cells), row = Math.floor(((b + d) / 2 - y1) / (y2 - y1) * cells);
      if (row >= 0 && row < cells && column >= 0 && column < cells) grid[row][column]++;
    }
    return { total: ids.length, bbox: query.bbox, grid };
  }

  async summary(scene, result, score) {
    const of = await this.#columns(result), edges = result.score_edges, sizes = scene.size_edges;
    const table = (columns) => result.classes.map(() => new Array(columns).fill(0));
    const counts = table(edges.length - 1), bySize = table(sizes.length - 1);
    for (let id = 0; id < of.scores.length; id++) {
      counts[of.labels[id]][bin(edges, of.scores[id])]++;
      if (of.scores[id] >= Math.fround(score)) bySize[of.labels[id]][bin(sizes, size(of.boxes, id))]++;
    }
    return { total: of.scores.length, score_edges: edges, counts, size_edges: sizes, sizes: bySize, has_seams: result.has_seams };
  }

  async drawCrop(scene, [x1, y1, x2, y2], canvas) {
    const t = scene.tile_size, level = scene.max_level, jobs = [];
    for (let y = Math.floor(y1 / t); y <= Math.floor((y2 - 1) / t); y++)
      for (let x = Math.floor(x1 / t); x <= Math.floor((x2 - 1) / t); x++)
        jobs.push(loadImage(this.tileAddress(scene, level, x, y)).then((image) => [image, x * t - x1, y * t - y1]));
    const parts = await Promise.all(jobs), zoom = canvas.width / (x2 - x1);
    return () => {
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      for (const [image, x, y] of parts) context.drawImage(image, x * zoom, y * zoom, image.width * zoom, image.height * zoom);
    };
  }

  save(address) { return save(address); }
  downloads(result) { return Object.entries(result.downloads).map(([format, path]) => [format, at(path)]); }

  #described;
  #scene() { return (this.#described ??= json("data/scene.json")); }

  #columns(result) {
    if (!this.#loaded.has(result.job)) {
      this.#loaded.set(result.job, answer(result.file).then(async (response) => {
        const buffer = await response.arrayBuffer(), columns = {};
        let start = 0;
        for (const [name, kind, width] of result.columns) {
          columns[name] = new ARRAYS[kind](buffer, start, result.count * width);
          start += 4 * result.count * width;
        }
        return columns;
      }));
    }
    return this.#loaded.get(result.job);
  }

  /** Return the ids that a query selects, ascending. */
  #select(of, result, { score = 0, classes = null, bbox = null }) {
    const wanted = classes && result.classes.map((name) => classes.includes(name));
    const least = Math.fround(score), ids = [];
    for (let id = 0; id < of.scores.length && of.scores[id] >= least; id++) {
      if (wanted && !wanted[of.labels[id]]) continue;
      const i = 4 * id, b = of.boxes;
      if (bbox && (b[i + 2] < bbox[0] || b[i] > bbox[2] || b[i + 3] < bbox[1] || b[i + 1] > bbox[3])) continue;
      ids.push(id);
    }
    return ids;
  }
}

function size(boxes, id) {
  return Math.sqrt(Math.max(0, boxes[4 * id + 2] - boxes[4 * id]) * Math.max(0, boxes[4 * id + 3] - boxes[4 * id + 1]));
}

/** Return the index of the bin of a value; values beyond the edges are in the first or the last one. */
function bin(edges, value) {
  let low = 0, high = edges.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (Math.fround(edges[middle]) <= value) low = middle; else high = middle - 1;
  }
  return low;
}
