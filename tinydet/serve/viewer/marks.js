// Verdicts of the user about detections, kept in the browser, and their export as a COCO file.

export class Marks {
  /** Open the marks of a result. They belong to a scene, a job and a number of detections: ids mean nothing elsewhere. */
  constructor(scene, result, total) {
    this.scene = scene;
    this.result = result;
    this.key = `tinydet:marks:${scene.name}:${scene.width}x${scene.height}:${result.job}:${total}`;
    this.map = new Map();
    try {
      for (const mark of JSON.parse(localStorage.getItem(this.key) ?? "[]")) this.map.set(mark.id, mark);
    } catch { /* damaged, or storage is switched off */ }
  }

  get(id) { return this.map.get(id)?.verdict; }

  /** Set a verdict: true, false, or null to remove it. Returns whether it could be stored. */
  set(detection, verdict) {
    if (verdict === null) this.map.delete(detection.id);
    else this.map.set(detection.id, { id: detection.id, box: detection.box, label: detection.label, score: detection.score, verdict });
    return this.#store();
  }

  clear() {
    this.map.clear();
    this.#store();
  }

  count(verdict) {
    let count = 0;
    for (const mark of this.map.values()) count += mark.verdict === verdict;
    return count;
  }

  /**
   * Return a COCO file. What was marked true are its annotations, to train on. What was marked false is listed under
   * `rejected` in the same form, which other tools ignore, so that it stays background.
   */
  toCoco() {
    const { scene, result } = this, entries = { true: [], false: [] };
    for (const mark of [...this.map.values()].sort((a, b) => a.id - b.id)) {
      const [x1, y1, x2, y2] = mark.box, width = round(x2 - x1), height = round(y2 - y1), list = entries[mark.verdict];
      list.push({ id: list.length + 1, image_id: 1, category_id: result.category_ids[mark.label], bbox: [x1, y1, width, height],
        area: round(width * height), iscrowd: 0, segmentation: [], score: mark.score });
    }
    return {
      info: { description: `Marks of ${result.name} on ${scene.name}`, date_created: new Date().toISOString() },
      images: [{ id: 1, file_name: scene.name, width: scene.width, height: scene.height }],
      categories: result.classes.map((name, label) => ({ id: result.category_ids[label], name })),
      annotations: entries.true,
      rejected: entries.false,
    };
  }

  #store() {
    try {
      if (this.map.size) localStorage.setItem(this.key, JSON.stringify([...this.map.values()]));
      else localStorage.removeItem(this.key);
      return true;
    } catch {
      return false;
    }
  }
}

const round = (value) => Math.round(value * 1000) / 1000;
