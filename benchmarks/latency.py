"""Time of each stage of a scan, from the scene to its boxes, for each model, backend and batch size.

    python benchmarks/latency.py --models model.onnx model.int8.onnx
    python benchmarks/latency.py --models *.onnx --backends openvino onnx-cpu --batches 1 4 16 --minutes 7

Files with other tile sizes and precisions are made by `python export/to_onnx.py model.pth --tile 320` or `--precision
int8`. A cell (model, backend, batch size) that is in the result file is not measured again, unless with --again, so a
long run can be divided: it stops after --minutes, and the same command resumes it.

Each cell runs in a separate process. It warms up until the median time of the model has settled, for at most 30 s (see
timing.py), then scans the scene repeatedly for 200 runs of the model or --seconds. A cell takes up to 45 seconds; a
model has nine cells by default. The stages are

    open        open the scene, once
    read        read the window of one tile, in a thread that reads ahead
    prepare     copy the window into the batch, in the same thread (not measured for batches of one)
    wait        wait for a batch that has not been read yet: the reading time that is not hidden
    model       run one batch; normalization, decoding and top-K are part of the graph
    stitch      convert the boxes of a batch to scene pixels and merge them; done once per row of tiles
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from huge_scene import peak_bytes
from mosaic import layout, mosaic
from timing import summary, warm_up

from tinydet._internal.atomic import atomic_path, write_json, write_text
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet.data.synthetic import builtin_dataset
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import scan
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.pixels import Image

STAGES = ("read", "prepare", "wait", "model", "stitch")
MODEL_RUNS = 200


class TimedScene(Scene):
    """A scene that records the time to read each window, and the time until the same thread asks for the next one."""

    def __init__(self, scene: Scene, batch: int, times: dict[str, list[float]]) -> None:
        self.name, self.width, self.height, self.gsd = scene.name, scene.width, scene.height, scene.gsd
        self._scene, self._batch, self._times, self._thread = scene, batch, times, threading.local()

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        ended, number = getattr(self._thread, "last", (0.0, 0))
        if number % self._batch:  # between batches the thread may wait for work
            self._times["prepare"].append(time.perf_counter() - ended)
        return self._scene.is_empty(x, y, width, height)

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        began = time.perf_counter()
        image = self._scene.read(x, y, width, height, size)
        ended = time.perf_counter()
        self._times["read"].append(ended - began)
        self._thread.last = ended, getattr(self._thread, "last", (0.0, 0))[1] + 1
        return image

    def reopen(self) -> Scene | None:
        scene = self._scene.reopen()
        return None if scene is None else TimedScene(scene, self._batch, self._times)

    def close(self) -> None:
        self._scene.close()


class TimedBackend:
    """A backend that records when the model runs and how long the scan waited before."""

    def __init__(self, backend: Backend, times: dict[str, list[float]]) -> None:
        self.spec, self.name, self._backend, self._times = backend.spec, backend.name, backend, times
        self.asked = self.ended = 0.0

    def run(self, images: Image) -> TileOutputs:
        began = time.perf_counter()
        outputs = self._backend.run(images)
        self.ended = time.perf_counter()
        self._times["wait"].append(began - self.asked)
        self._times["model"].append(self.ended - began)
        return outputs


@command("benchmarks/latency.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.worker:
        print(json.dumps(measure(args.models[0], args.backends[0], args.batches[0], args.scene, args.seconds)))
        return 0
    missing = [str(model) for model in args.models if not model.is_file()]
    if missing:
        print(f"{', '.join(missing)} not found; name models with --models, or run: python export/to_onnx.py model.pth",
              file=sys.stderr)  # fmt: skip
        return 0 if args.quick else 2  # `make bench` continues
    result: dict[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {"cells": []}
    began, left = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        scene = args.scene or write_scene(Path(folder) / "scene.png", *args.pictures)
        for model, backend, batch in [(m, b, n) for m in args.models for b in args.backends for n in args.batches]:
            key = {"model": model.name, "sha256": sha256(model), "backend": backend, "batch": batch}
            earlier = [cell for cell in result["cells"] if all(cell[name] == value for name, value in key.items())]
            if earlier and not args.again:
                continue
            if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
                left += 1
                continue
            now = {
                **environment(),
                **key,
                "scene": args.scene.name if args.scene else "embedded",
                "seconds": args.seconds,
            }
            cell = {**now, **measure_in_process(model, backend, batch, scene, args.seconds)}
            result["cells"] = [one for one in result["cells"] if one not in earlier] + [cell]
            result["command"] = "python benchmarks/latency.py --models ..."
            write_json(args.output, result)
            print(row(cell), flush=True)
    write_text(args.output.with_suffix(".md"), markdown(result))
    plot(result, args.output.with_suffix(".png"))
    print(f"wrote {args.output}, with .md and .png")
    if left:
        print(f"Time limit reached with {left} cells left. Run the same command again to resume.")
    return 0


def write_scene(path: Path, columns: int, rows: int) -> Path:
    """Write a scene composed of images of the built-in validation set."""
    import cv2

    cv2.imwrite(str(path), mosaic(builtin_dataset("val"), columns, rows)[0][..., ::-1])
    return path


def measure_in_process(model: Path, backend: str, batch: int, scene: Path, seconds: float) -> dict[str, Any]:
    """Call `measure` in a new process, so that peak memory is that of this cell."""
    words = [sys.executable, str(Path(__file__).resolve()), "--worker", "--models", str(model), "--backends", backend]
    words += ["--batches", str(batch), "--scene", str(scene), "--seconds", str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, end="", file=sys.stderr)
        raise SystemExit(done.returncode)
    cell: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return cell


def measure(model: Path, backend: str, batch: int, source: Path, seconds: float) -> dict[str, Any]:
    """Measure one cell."""
    began = time.perf_counter()
    opened = open_model(model, backend)
    loading = time.perf_counter() - began
    spec = opened.spec
    shape = (min(batch, spec.max_batch), spec.tile, spec.tile, 3)
    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    warm = warm_up(lambda: opened.run(noise))
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rates, opening, boxes = [], [], 0
    began = time.perf_counter()
    while len(times["model"]) < MODEL_RUNS and (time.perf_counter() - began < seconds or not rates):
        start = time.perf_counter()
        with open_scene(source, stretch=spec.stretch) as scene:
            opening.append(time.perf_counter() - start)
            timed = TimedBackend(opened, times)
            tiles = boxes = 0
            busy = 0.0
            timed.asked = start_of_scan = time.perf_counter()
            plan = plan_scan(scene, spec, ScanOptions(batch=batch, score=0.3, coarse=None))
            for step in scan(timed, TimedScene(scene, batch, times), plan):
                now = time.perf_counter()
                times["stitch"].append(now - timed.ended)
                timed.asked = now
                tiles, boxes, busy = tiles + step.tiles, boxes + len(step.detections), busy + step.busy
            took = time.perf_counter() - start_of_scan
            rates.append((tiles / took, scene.width * scene.height / 1e6 / took, busy / took))
    rate = np.asarray(rates)
    return {
        "name": opened.name, "backbone": spec.backbone, "precision": spec.precision, "tile": spec.tile,
        "largest_batch": spec.max_batch, "megapixels": round(scene.width * scene.height / 1e6, 2), "tiles": tiles,
        "boxes": boxes, "scans": len(rates), "load_at_end": [round(x, 2) for x in os.getloadavg()],
        "loading_seconds": round(loading, 2), "warm_up_runs": warm, "open_ms": spread(opening),
        "stages_ms": {stage: spread(values) for stage, values in times.items()},
        "tiles_per_second": round(float(np.median(rate[:, 0])), 2),
        "megapixels_per_second": round(float(np.median(rate[:, 1])), 2),
        "busy_share": round(float(np.median(rate[:, 2])), 4), "peak_mib": round(peak_bytes() / 2**20),
    }  # fmt: skip


def spread(seconds: Sequence[float]) -> dict[str, Any] | None:
    """Summarize times in milliseconds; None without times."""
    return summary([1e3 * value for value in seconds]) if seconds else None


def row(cell: dict[str, Any]) -> str:
    """Format one cell as a row of the Markdown table."""
    times = cell["stages_ms"]
    medians = " | ".join("–" if times[stage] is None else f"{times[stage]['median']:.2f}" for stage in STAGES)
    model = times["model"]
    return (
        f"| {cell['backbone']} | {cell['tile']} | {cell['precision']} | {cell['backend']} | {cell['batch']} | "
        f"{medians} | "
        f"{model['p5']:.1f} / {model['p95']:.1f} / {model['p99']:.1f} | {cell['tiles_per_second']} | "
        f"{cell['megapixels_per_second']} | {cell['busy_share']:.1%} | {cell['peak_mib']} |"
    )


def markdown(result: dict[str, Any]) -> str:
    cells = sorted(result["cells"], key=lambda c: (c["backbone"], c["tile"], c["precision"], c["backend"], c["batch"]))
    last = cells[-1]
    columns = ("model", "tile", "precision", "backend", "batch", *(f"{stage}, ms" for stage in STAGES))
    columns += ("model p5 / p95 / p99", "tiles/s", "MP/s", "busy", "peak MiB")
    machine = f"{last['machine']['processor']}, {last['machine']['cores']} cores"
    lines = [
        "# Latency by stage",
        "",
        f"`{result['command']}`, {last['date'][:10]}, {machine}, a scene of {last['megapixels']} megapixels. Medians; "
        "read and prepare per tile, other stages per batch. MP/s: megapixels of the scene per second; busy: share of "
        "the wall time spent in the backend. `benchmarks/latency.py` describes the stages.",
        "",
        f"| {' | '.join(columns)} |",
        f"| --- | --- | --- | --- |{' --: |' * (len(columns) - 4)}",
        *map(row, cells),
    ]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot tiles per second against the batch size, with a panel for each tile size."""
    with needs_extra("plots"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    tiles = sorted({cell["tile"] for cell in result["cells"]})
    figure, panels = pyplot.subplots(1, len(tiles), figsize=(4.5 * len(tiles), 4), squeeze=False, layout="constrained")
    for tile, panel in zip(tiles, panels[0], strict=True):
        cells = [cell for cell in result["cells"] if cell["tile"] == tile]
        for line in sorted({(cell["backbone"], cell["backend"], cell["precision"]) for cell in cells}):
            points = sorted(
                (cell["batch"], cell["tiles_per_second"])
                for cell in cells
                if (cell["backbone"], cell["backend"], cell["precision"]) == line
            )
            panel.plot(*zip(*points, strict=True), "o-", label=", ".join(line))
        panel.set(title=f"tiles of {tile} px", xlabel="batch size", ylabel="tiles/s", xscale="log", ylim=(0, None))
        batches = sorted({cell["batch"] for cell in cells})
        panel.set_xticks(batches, batches)
        panel.minorticks_off()
        panel.legend(fontsize=7)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
    pyplot.close(figure)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=Path, nargs="+", default=[Path("model.onnx")], metavar="FILE",
        help="exported models (default: model.onnx)")  # fmt: skip
    add("--backends", nargs="+", default=["openvino", "openvino-latency", "onnx-cpu"], metavar="NAME",
        help="backends as in `tinydet infer` (default: openvino openvino-latency onnx-cpu)")  # fmt: skip
    add("--batches", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="batch sizes (default: 1 4 16)")
    add("--scene", type=Path, help="image or raster (default: a PNG composed of built-in images)")
    add("--pictures", type=layout, default=(8, 7), metavar="CxR",
        help="columns and rows of images in that scene (default: 8x7)")  # fmt: skip
    add("--seconds", type=float, default=10.0, help="longest measurement of a cell, without warm-up (default: 10)")
    add("--minutes", type=float, help="start no cell after this time (default: no limit)")
    add("--again", action="store_true", help="measure recorded cells again")
    add("--quick", action="store_true", help="2 s per cell, batches of 1 and 4, a scene of 4x4 images")
    add("--output", type=Path, help="result file; .md and .png are written next to it (default: "
        "benchmarks/results/latency.json; with --quick a temporary file)")  # fmt: skip
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.output is None:
        args.output = (
            Path(tempfile.mkdtemp()) / "latency.json" if args.quick else ROOT / "benchmarks/results/latency.json"
        )
    if args.quick:
        args.seconds, args.batches, args.pictures = 2.0, [1, 4], (4, 4)
    return args


if __name__ == "__main__":
    sys.exit(main())
