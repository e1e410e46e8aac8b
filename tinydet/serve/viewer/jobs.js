// Upload a scene, start a job, and watch it.

const $ = (id) => document.getElementById(id);

export class Jobs {
  #file = null; #stop = null; #job = null;

  /**
   * @param source the server
   * @param info what the server says about itself
   * @param on {started(job state), changed(job state), toast(text)}
   */
  constructor(source, info, on) {
    Object.assign(this, { source, info, on });
    $("scan-open").hidden = false;
    $("path-row").hidden = !info.reads_paths;
    $("scan-open").onclick = () => this.open();
    $("scan-close").onclick = () => $("scan").close();
    $("scan-start").onclick = () => this.#start();
    $("file").onchange = (event) => {
      this.#choose(event.target.files[0]);
      event.target.value = ""; // else the browser says nothing when the same file is chosen again
    };
    $("job-cancel").onclick = () => this.#job && this.source.dismiss(this.#job).catch((error) => on.toast(error.message));
    for (const area of [$("drop"), $("stage")]) {
      area.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
      area.addEventListener("dragleave", () => $("drop").classList.remove("over"));
      area.addEventListener("drop", (event) => {
        event.preventDefault();
        $("drop").classList.remove("over");
        if (!$("scan").open) this.open();
        this.#choose(event.dataTransfer.files[0]);
      });
    }
  }

  async open() {
    $("scan-error").textContent = "";
    const scenes = await this.source.scenes().catch(() => []);
    $("scan-scene").replaceChildren(new Option("–", ""), ...scenes.map((scene) => new Option(scene.name, scene.id)));
    $("scan").showModal();
  }

  /** Follow a job that runs, for example after the page was loaded again. */
  follow(state) {
    this.#stop?.();
    this.#job = state.jobID;
    this.#show(state);
    this.#stop = this.source.watch(state.jobID, (now) => { this.#show(now); this.on.changed(now); });
  }

  #choose(file) {
    this.#file = file ?? null;
    $("chosen").textContent = file ? `${file.name} (${(file.size / 1e6).toFixed(1)} MB)` : "";
  }

  async #start() {
    const scene = $("scan-scene").value, path = $("scan-path").value.trim(), score = $("scan-score").value;
    $("scan-error").textContent = "";
    if (!this.#file && !scene && !path) {
      $("scan-error").textContent = "Choose a file, or a scene on the server.";
      return;
    }
    const button = $("scan-start"), bar = $("upload");
    button.disabled = true;
    try {
      let what = path ? { path } : { scene };
      if (this.#file) {
        bar.hidden = false;
        what = { upload: await this.#upload((share) => { bar.value = share; }) };
      }
      const state = await this.source.addJob({ ...what, options: score === "" ? {} : { score: Number(score) } });
      $("scan").close();
      this.#choose(null);
      this.on.started(state);
      this.follow(state);
    } catch (error) {
      $("scan-error").textContent = error.message;
    } finally {
      button.disabled = false;
      bar.hidden = true;
      bar.value = 0;
    }
  }

  /** Send the chosen file and return its name on the server: numbered if a job already has a scene of this name. */
  async #upload(progress) {
    const file = this.#file, dot = file.name.lastIndexOf(".") > 0 ? file.name.lastIndexOf(".") : file.name.length;
    const taken = new Set((await this.source.uploads()).map((each) => each.name));
    let name = file.name;
    for (let n = 2; taken.has(name); n++) name = `${file.name.slice(0, dot)} (${n})${file.name.slice(dot)}`;
    await this.source.upload(file, name, progress);
    return name;
  }

  #show(state) {
    const isActive = ["accepted", "running"].includes(state.status);
    $("job").hidden = !isActive;
    $("job-progress").value = state.progress ?? 0;
    const found = state.detections === undefined ? "" : `, ${state.detections.toLocaleString()} found`;
    $("job-text").textContent = state.status === "accepted" ? `${state.name}: waiting` : `${state.name}: ${state.progress ?? 0} %${found}`;
    if (!isActive) this.on.toast(state.status === "successful" ? `${state.name}: done` : `${state.name}: ${state.message || state.status}`);
  }
}
