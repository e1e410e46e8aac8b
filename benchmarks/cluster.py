"""Scan with one and two workers on a local Ray, and predict larger clusters from the measured constants.

    python benchmarks/cluster.py                  # a model that does nothing, and the bundled one
    python benchmarks/cluster.py --quick          # fewer scenes

Every run is measured with a few scenes and with three times as many; the difference excludes the start of the actors.
Efficiency is the throughput of two workers divided by twice that of one. Run this on idle cores.

The prediction is for a run over --scenes scenes of --side pixels. The driver stores results while workers scan, and
joins them afterwards, so the run takes max(scan, dispatch + store) + join. Requests to object stores are not included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet.cluster import infer
from tinydet.infer.__main__ import main as infer_command
from tinydet.runtime.plan import plan_tiles
from tinydet.spec import ModelSpec

TILE, SLOTS = 640, 100
WORKERS = (10, 100, 1000)


@command("benchmark cluster")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="measure fewer scenes")
    add("--scenes", type=positive_int, default=100_000, metavar="N", help="predict for N scenes (default: 100000)")
    add("--side", type=positive_int, default=10_000, metavar="PX", help="side of these scenes (default: 10000)")
    add("--output", type=Path, default=Path("benchmarks/results/cluster.json"), metavar="FILE",
        help="result file (default: benchmarks/results/cluster.json)")  # fmt: skip
    args = parser.parse_args(argv)
    with needs_extra("ray"):
        import ray
    result: dict[str, Any] = {"environment": environment(), "models": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        null = write_null_model(folder / "null.onnx")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=3, object_store_memory=1 << 28, include_dashboard=False, log_to_driver=False)
        try:
            for model, few in ((str(null), 4 if args.quick else 20), ("thermal", 2 if args.quick else 6)):
                label = "null" if model == str(null) else model
                result["models"][label] = measured = measure(folder / label, model, few)
                measured["predicted"] = predict(measured, args.scenes, args.side)
                report(label, measured)
        finally:
            ray.shutdown()
    write_json(args.output, result)
    print(f"  {args.output}")
    return 0


def measure(folder: Path, model: str, few: int) -> dict[str, Any]:
    """Measure the constants of one model."""
    side = 2 * TILE
    tiles = len(plan_tiles(side, side, tile=TILE).grid)
    folders = [write_scenes(folder / str(count), count, side) for count in (few, 3 * few)]
    more = 2 * few  # scenes between the two measurements
    options: dict[str, Any] = {"model": model, "backend": "onnx", "threads": 1, "tile": TILE, "overlap": 128}
    infer(folders[0], output=folder / "warm.csv", workers=2, **options)  # starts the processes of Ray
    speed = {}
    for workers in (1, 2):
        seconds, found = [], []
        for scenes in folders:
            start = time.perf_counter()
            summary = infer(scenes, output=folder / f"{scenes.name}-{workers}.csv", workers=workers, **options)
            seconds.append(time.perf_counter() - start)
            found.append(summary["total"])
        speed[workers] = more * tiles / (seconds[1] - seconds[0])
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    part, join = [], []
    for scenes in folders:
        command = ["--image", str(scenes), "--output", str(folder / f"{scenes.name}.csv"), *words]
        for words_of, times in ((["--part", "1/1"], part), (["--join"], join)):
            start = time.perf_counter()
            assert infer_command([*command, *words_of]) == 0
            times.append(time.perf_counter() - start)
    return {
        "tiles": more * tiles,
        "boxes_per_tile": found[1]["detections"] / found[1]["tiles"],
        "tiles_per_second": {
            "one process": more * tiles / (part[1] - part[0]),
            "1 worker": speed[1],
            "2 workers": speed[2],
        },
        "efficiency": speed[2] / (2 * speed[1]),
        "ray_seconds_per_tile": 1 / speed[1] - (part[1] - part[0]) / (more * tiles),
        "join_seconds_per_tile": (join[1] - join[0]) / (more * tiles),
    }


def predict(measured: dict[str, Any], scenes: int, side: int) -> dict[str, Any]:
    """Predict the hours of a survey, and the number of workers at which the driver takes as long as they do."""
    tiles = scenes * len(plan_tiles(side, side, tile=TILE).grid)
    of_worker = 1 / measured["tiles_per_second"]["one process"]
    store, join = max(0.0, measured["ray_seconds_per_tile"]), max(0.0, measured["join_seconds_per_tile"])
    hours = {str(n): (max(tiles * of_worker / n, tiles * store) + tiles * join) / 3600 for n in WORKERS}
    return {"tiles": tiles, "hours": hours, "workers_that_occupy_the_driver": of_worker / max(store + join, 1e-9)}


def report(label: str, measured: dict[str, Any]) -> None:
    speed = ", ".join(f"{name}: {value:.1f}" for name, value in measured["tiles_per_second"].items())
    print(f"{label}: tiles/s {speed}; efficiency of two workers {measured['efficiency']:.2f}")
    ray, join = (1000 * measured[f"{name}_seconds_per_tile"] for name in ("ray", "join"))
    print(f"  per tile: Ray, store and join {ray:.2f} ms, join alone {join:.2f} ms")
    hours = ", ".join(f"{count} workers {value:.1f} h" for count, value in measured["predicted"]["hours"].items())
    print(f"  {measured['predicted']['tiles']:,} tiles: {hours}")
    print(f"  the driver is as busy as {measured['predicted']['workers_that_occupy_the_driver']:.0f} workers")


def write_scenes(folder: Path, count: int, side: int) -> Path:
    """Write rasters of noise with bright spots."""
    with needs_extra("geo"):
        import rasterio
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    where = {"width": side, "height": side, "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    where |= {"transform": rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5e6), "tiled": True}
    for n in range(count):
        pixels = rng.integers(60, 90, (side, side), np.uint8)
        for x, y in rng.integers(0, side - 12, (200, 2)).tolist():
            pixels[y : y + 10, x : x + 6] = 240
        with rasterio.open(folder / f"{n:04}.tif", "w", driver="GTiff", **where) as file:
            file.write(pixels, 1)
    return folder


def write_null_model(path: Path) -> Path:
    """Write a model that finds nothing."""
    with needs_extra("export"):
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    node, info = helper.make_node, helper.make_tensor_value_info
    constants = {
        "k": np.array([SLOTS], np.int64),
        "four": np.array([4], np.int64),
        "zero": np.float32(0),
        "none": np.int32(-1),
        "nothing": np.int32(0),
    }
    nodes = [
        node("Shape", ["images"], ["n"], start=0, end=1),
        node("Concat", ["n", "k"], ["nk"], axis=0),
        node("Concat", ["n", "k", "four"], ["nk4"], axis=0),
        node("Expand", ["zero", "nk4"], ["boxes"]),
        node("Expand", ["zero", "nk"], ["scores"]),
        node("Expand", ["none", "nk"], ["labels"]),
        node("Expand", ["nothing", "n"], ["candidates"]),
    ]
    graph = helper.make_graph(
        nodes,
        "null",
        [info("images", TensorProto.UINT8, ["N", TILE, TILE, 3])],
        [
            info("boxes", TensorProto.FLOAT, ["N", SLOTS, 4]),
            info("scores", TensorProto.FLOAT, ["N", SLOTS]),
            info("labels", TensorProto.INT32, ["N", SLOTS]),
            info("candidates", TensorProto.INT32, ["N"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    spec = ModelSpec(("spot",), (1,), "null", "none", TILE, max_detections=SLOTS, nms_in_graph=True)
    helper.set_model_props(model, {"tinydet": spec.to_json()})
    onnx.save(model, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
