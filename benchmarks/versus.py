"""Compare tinydet with SAHI and supervision on the same model, scene and tiles.

    .versus/bin/python benchmarks/versus.py --models mobilenet_v2.onnx resnet18.onnx resnet50.onnx

benchmarks/other_tools.py describes the environment `.versus`. Each model is an FP32 file with an INT8 file next to it,
made by

    python export/to_onnx.py resnet18.pth
    python export/to_onnx.py resnet18.pth --precision int8 --calibration my/train

The scene is composed of the first images of --data and held in memory. All tools run the same tiles, tinydet in batches
of 4 (its default). They run in turns; each round starts with another tool. Times are measured with a score threshold of
0.3, the default of all three; average precision is measured separately with 0.05, where SAHI switches to NMS. The ratio
of the fastest rounds is reported besides the median, because other load on the machine disturbs them least. Models that
are named again are measured again; the results of others are kept in the result file.

`--foreign` takes a detector of another framework, trained by `benchmarks/foreign_detector.py`, and runs it through
`tinydet.runtime.load` and through SAHI's adapter for torchvision: time, memory, recall in crowds, and boxes on objects
that have one already, also for the same detector on each image alone, without tiles. The scene is composed of the
images with the most objects. An object is in a crowd if another
one is nearer than its own size. Each tool runs in a process of its own, on one thread, one tile at a time.

The overhead per tile and per box is then measured with a backend that returns random boxes instead of a model.

Takes one to three minutes per model, and one minute for the overhead, on two cores with VNNI.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from environment import ROOT, environment
from mosaic import layout, mosaic
from other_tools import INSTALL, Boxes, Detect, Tool, available

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.evaluate import evaluate_detections
from tinydet.geometry.boxes import area, intersection, iou_of_pairs
from tinydet.runtime import TileGrid
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import OVERLAP
from tinydet.runtime.scan import detect_scene
from tinydet.runtime.scenes import open_scene
from tinydet.spec import ModelSpec

SCORE, AP_SCORE = 0.3, 0.05  # score thresholds for times and for average precision
OURS, SAHI = "tinydet", "SAHI"
INT8, FP32 = "OpenVINO INT8", "ONNX Runtime FP32"
Tools = dict[str, Tool]


@command("benchmarks/versus.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    result: dict[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {}
    result.pop("marks", None)  # of earlier versions of this benchmark, derived from the models in the file
    result = {"models": {}, **result, "command": "python benchmarks/versus.py --models ..."}
    tools = available()
    if args.models:
        scene, truth = mosaic(args.data, *args.pictures)
        for path in args.models:
            result["models"][path.stem] = compare(path, scene, truth, args.rounds, tools)
            print(table(path.stem, result["models"][path.stem]), flush=True)
            write_json(args.output, result)
    if args.foreign is not None:
        result["foreign"] = compare_foreign(args.foreign, args.data, args.pictures, args.rounds)
        print(foreign_table(result["foreign"]), flush=True)
        write_json(args.output, result)
    if not args.no_overhead:
        result |= environment()  # of the overhead; models and the foreign detector have their own
        result["beside_the_model"] = measure_overhead(args.side, args.rounds, tools)
        print(overhead_table(result["beside_the_model"]))
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def compare(path: Path, scene: np.ndarray, truth: dict[str, Any], rounds: int, tools: Tools) -> dict[str, Any]:
    """Run one model with every tool."""
    int8_file = path.with_name(f"{path.stem}.int8.onnx")
    int8, fp32 = open_model(int8_file, "openvino"), open_model(path, "onnx-cpu")
    sides: dict[str, Detect] = {f"{OURS}, {INT8}": ours(int8), f"{OURS}, {FP32}": ours(fp32)}
    one_at_a_time = open_model(int8_file, "openvino-latency")  # runs a single tile fastest, with all cores on it
    for name, tool in tools.items():
        sides[f"{name}, {FP32}"] = tool(fp32, OVERLAP)
        sides[f"{name}, {INT8}"] = tool(one_at_a_time, OVERLAP)
    found = {name: detect(scene, AP_SCORE) for name, detect in sides.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            sides[name](scene, SCORE)
            seconds[name].append(time.perf_counter() - began)
    spec = fp32.spec
    tiles = len(TileGrid(scene.shape[1], scene.shape[0], spec.tile, OVERLAP))
    exact = found[f"{OURS}, {FP32}"]
    return {
        **environment(),
        "backbone": spec.backbone,
        "tile": spec.tile,
        "scene": list(scene.shape[:2]),
        "tiles": tiles,
        "objects": sum(one["category_id"] in spec.category_ids for one in truth["annotations"]),
        "rounds": rounds,
        "sides": {
            name: {
                "seconds": summary(seconds[name]),
                "tiles_per_second": round(tiles / statistics.median(seconds[name]), 2),
                "AP": average_precision(found[name], truth, spec),
                "boxes": int((found[name][1] >= SCORE).sum()),
                "alike_to_ours_in_fp32": round(agreement(found[name], exact), 4),
            }
            for name in sides
        },
        "times_as_fast": {
            f"{mine} against {tool}, {theirs}": speedup(seconds[f"{OURS}, {mine}"], seconds[f"{tool}, {theirs}"])
            for tool in tools
            for mine, theirs in ((INT8, FP32), (FP32, FP32), (INT8, INT8))
        },
        "share_beside_the_model": share_outside_model(int8, scene, rounds),
    }


def ours(backend: Backend) -> Detect:
    def detect(scene: np.ndarray, score: float) -> Boxes:
        found = detect_scene(backend, open_scene(scene), ScanOptions(OVERLAP, score=score)).detections
        return found.boxes, found.scores, found.labels

    return detect


def speedup(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """Return how many times as fast `mine` is, by the fastest round of each and by the pairs of rounds."""
    pairs = [b / a for a, b in zip(mine, theirs, strict=True)]
    return {"fastest": round(min(theirs) / min(mine), 3), **summary(pairs)}


def share_outside_model(backend: Backend, scene: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the share of time outside the backend, from opening the scene (in memory or a file) to the last box."""
    shares: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Any] = {"in memory": scene}
        sources["JPEG"] = Path(folder) / "scene.jpg"
        cv2.imwrite(str(sources["JPEG"]), scene[..., ::-1])
        try:
            import rasterio

            sources["tiled TIFF"] = Path(folder) / "scene.tif"
            shape = {"height": scene.shape[0], "width": scene.shape[1], "count": 3, "dtype": "uint8"}
            layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel", "compress": "deflate"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(sources["tiled TIFF"], "w", driver="GTiff", **shape, **layout) as file:
                    file.write(np.moveaxis(scene, -1, 0))
        except ImportError:
            print("tiled TIFF is skipped because rasterio is not installed: pip install 'tinydet[geo]'")
        for _ in range(rounds):
            for name, source in sources.items():
                began = time.perf_counter()
                with open_scene(source) as opened:
                    busy = detect_scene(backend, opened, ScanOptions(OVERLAP, score=SCORE)).busy
                shares.setdefault(name, []).append(1 - busy / (time.perf_counter() - began))
    return {name: summary(values) for name, values in shares.items()}


class RandomBoxes:
    """A backend that returns the same number of random boxes for each tile, prepared in advance."""

    name = "random boxes"

    def __init__(self, tile: int, each: int) -> None:
        slots, max_batch = max(each, 100), 16
        self.spec = ModelSpec(("spot",), (1,), "random", "none", tile, max_batch=max_batch, max_detections=slots)
        rng = np.random.default_rng(0)
        corner, side = rng.uniform(0, tile - 24, (997, each, 2)), rng.uniform(8, 24, (997, each, 2))
        self._boxes = np.zeros((997, slots, 4), np.float32)
        self._boxes[:, :each] = np.concatenate([corner, corner + side], axis=2)
        self._scores = np.zeros((997, slots), np.float32)
        self._scores[:, :each] = np.sort(rng.uniform(0.31, 1, (997, each)))[:, ::-1]
        self._labels = np.where(np.arange(slots) < each, 0, -1).astype(np.int32)[None].repeat(max_batch, axis=0)
        self._next = 0

    def run(self, images: np.ndarray) -> TileOutputs:
        n = len(images)
        index = np.arange(self._next, self._next + n) % 997
        self._next += n
        return TileOutputs(self._boxes[index], self._scores[index], self._labels[:n], np.zeros(n, np.int32))


def measure_overhead(side: int, rounds: int, tools: Tools) -> dict[str, Any]:
    """Measure ms per tile without boxes, and additional µs per box, for a scene in memory."""
    scene = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    tiles = len(TileGrid(side, side, 640, OVERLAP))
    result: dict[str, Any] = {"tiles": tiles, "tile": 640, "rounds": rounds, "tools": {}}
    tools = {OURS: lambda backend, _: ours(backend), **tools}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, tool in tools.items():
            for each in (0, 5, 20):
                if name == "supervision" and each * tiles > 4000 and (name, each) in seconds:
                    continue  # its time grows with the square of the number of boxes, so one round is enough
                detect = tool(RandomBoxes(640, each), OVERLAP)
                began = time.perf_counter()
                detect(scene, SCORE)
                seconds.setdefault((name, each), []).append(time.perf_counter() - began)
    for name in tools:
        empty = [value / tiles * 1e3 for value in seconds[name, 0]]
        result["tools"][name] = {"milliseconds_a_tile": summary(empty), "microseconds_a_box": {}}
        for each in (5, 20):
            per_box = [(value - min(seconds[name, 0])) / (each * tiles) * 1e6 for value in seconds[name, each]]
            result["tools"][name]["microseconds_a_box"][f"{each} a tile"] = summary(per_box)
    return result


def compare_foreign(path: Path, data: Path, pictures: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Run a detector of another framework with tinydet and with SAHI, and on each image alone.

    Raises:
        CalledProcessError: a tool failed.
    """
    import torch
    from foreign_detector import CLASSES, load_detector
    from foreign_side import TOOLS

    training = torch.load(path, weights_only=True)
    scene, truth = mosaic(data, *pictures, crowded=True)
    known = {each["id"]: CLASSES.index(each["name"]) for each in truth["categories"] if each["name"] in CLASSES}
    counted = [one for one in truth["annotations"] if one["category_id"] in known and not one["iscrowd"]]
    boxes = np.array([one["bbox"] for one in counted], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([known[one["category_id"]] for one in counted])
    result: dict[str, Any] = {**environment(), "scene": list(scene.shape[:2]), "objects": len(labels), "tile": 320,
                              "in_crowds": int(in_crowd(boxes).sum()), "rounds": rounds,
                              "training": {"steps": training["step"], "minutes": round(training["minutes"], 2)},
                              "tools": {}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        image, output = Path(folder) / "scene.png", Path(folder) / "found.npz"
        cv2.imwrite(str(image), scene[..., ::-1])
        for tool in TOOLS:
            if tool.startswith(SAHI) and importlib.util.find_spec("sahi") is None:
                print(f"{tool} is skipped because SAHI is not installed ({INSTALL})")
                continue
            side = [sys.executable, str(ROOT / "benchmarks/foreign_side.py"), str(path), str(image), str(output)]
            subprocess.run([*side, "--tool", tool, "--rounds", str(rounds), "--score", str(SCORE)], check=True)
            with np.load(output) as found:
                result["tools"][tool] = {
                    "cpu_seconds": summary(found["cpu"].tolist()),
                    "seconds": summary(found["seconds"].tolist()),
                    "memory_mib": round(float(found["memory"]), 1),
                    **hits((found["boxes"], found["scores"], found["labels"]), boxes, labels),
                }
    frames = one_by_one(load_detector(path), scene, pictures)
    result["tools"]["each image alone, no tiles"] = hits(frames, boxes, labels)
    return result


def one_by_one(network: Any, scene: np.ndarray, pictures: tuple[int, int]) -> Boxes:
    """Run a torchvision detector on each image of a mosaic."""
    import torch

    height, width = scene.shape[0] // pictures[1], scene.shape[1] // pictures[0]
    parts = []
    for y, x in ((y, x) for y in range(0, scene.shape[0], height) for x in range(0, scene.shape[1], width)):
        image = torch.from_numpy(scene[y : y + height, x : x + width].copy()).permute(2, 0, 1) / 255
        with torch.inference_mode():
            found = network([image])[0]
        good = found["scores"] >= SCORE
        boxes = found["boxes"][good].numpy() + np.array([x, y, x, y], np.float32)
        parts.append((boxes, found["scores"][good].numpy(), found["labels"][good].numpy()))
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return boxes, scores, labels


def in_crowd(boxes: np.ndarray) -> np.ndarray:
    """Return which boxes (N, 4) have another one nearer than their own longer side, from edge to edge."""
    gaps = np.maximum(boxes[:, None, :2] - boxes[None, :, 2:], boxes[None, :, :2] - boxes[:, None, 2:]).max(axis=2)
    np.fill_diagonal(gaps, np.inf)
    return gaps.min(axis=1, initial=np.inf) < (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)


def hits(found: Boxes, objects: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Match boxes with objects at an IoU of 0.5, by descending score.

    Returns:
        Recall, recall in crowds, and the number of other boxes on an object that has one already: with an IoU of 0.3
        or more, or half inside it.
    """
    boxes, scores, labels = found
    free, again = np.ones(len(objects), bool), 0
    for i in np.argsort(-scores, kind="stable"):
        box, same = boxes[i].astype(float), classes == labels[i]
        iou = np.where(same, iou_of_pairs(box, objects), 0)
        best = int(np.where(free, iou, 0).argmax())
        if free[best] and iou[best] >= 0.5:
            free[best] = False
            continue
        inside = np.where(same, area(intersection(box, objects)) / area(box), 0)
        again += bool((((iou >= 0.3) | (inside >= 0.5)) & ~free).any())
    crowd = in_crowd(objects)
    return {
        "boxes": len(scores),
        "recall": round(float((~free).mean()), 4),
        "recall_in_crowds": round(float((~free[crowd]).mean()), 4),
        "duplicates": again,
    }


def foreign_table(result: dict[str, Any]) -> str:
    """Format the results of a detector of another framework."""
    height, width = result["scene"]
    lines = [
        f"\nforeign detector: {width}x{height} pixels, tiles of {result['tile']}, {result['objects']} objects, "
        f"{result['in_crowds']} of them in crowds",
        "| tool | CPU seconds | additional memory | recall | recall in crowds | boxes | duplicates |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, tool in result["tools"].items():
        cost = (
            f"{tool['cpu_seconds']['median']:.1f} | {tool['memory_mib']:.0f} MiB" if "memory_mib" in tool else "– | –"
        )
        lines.append(
            f"| {name} | {cost} | {tool['recall']:.3f} | {tool['recall_in_crowds']:.3f} | {tool['boxes']} | "
            f"{tool['duplicates']} |"
        )
    return "\n".join(lines)


def average_precision(found: Boxes, truth: dict[str, Any], spec: ModelSpec) -> dict[str, float]:
    """Return AP50 of all objects and of tiny ones, averaged over the classes."""
    boxes, scores, labels = found
    detections = [
        {"image_id": 1, "category_id": spec.category_ids[label], "bbox": [x, y, right - x, bottom - y], "score": score}
        for (x, y, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    ap = evaluate_detections(truth, detections, categories=spec.classes, max_detections=len(detections) + 1)["AP"]
    return {size: round(ap[size]["0.50"], 4) for size in ("all", "tiny")}


def agreement(first: Boxes, second: Boxes) -> float:
    """Return the share of boxes that have a counterpart in the other set: IoU 0.5 or more and the same label.

    Both sets count; boxes with scores below SCORE are left out.
    """
    (a, sa, la), (b, sb, lb) = ([values[found[1] >= SCORE] for values in found] for found in (first, second))
    if not len(sa) or not len(sb):
        return float(len(sa) == len(sb))
    same = (iou_of_pairs(a[:, None].astype(float), b[None].astype(float)) >= 0.5) & (la[:, None] == lb[None])
    return float(same.any(axis=1).sum() + same.any(axis=0).sum()) / (len(sa) + len(sb))


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def table(name: str, result: dict[str, Any]) -> str:
    """Format the results of one model."""
    counts = f"{result['tiles']} tiles of {result['tile']} px, {result['objects']} objects, {result['rounds']} rounds"
    lines = [f"\n{name}: {counts}"]
    lines += [
        "| side | seconds (range) | tiles/s | AP50 | AP50 tiny | boxes | agreement with tinydet FP32 |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for side, values in result["sides"].items():
        s = values["seconds"]
        lines.append(
            f"| {side} | {s['median']:.2f} ({s['least']:.2f} to {s['most']:.2f}) | {values['tiles_per_second']} | "
            f"{values['AP']['all']:.3f} | {values['AP']['tiny']:.3f} | {values['boxes']} | "
            f"{values['alike_to_ours_in_fp32']:.3f} |"
        )
    lines += [
        f"{n}: {v['median']:.2f} times as fast ({v['least']:.2f} to {v['most']:.2f}; fastest rounds {v['fastest']:.2f})"
        for n, v in result["times_as_fast"].items()
    ]
    lines += [f"time outside the model, {n}: {v['median']:.1%}" for n, v in result["share_beside_the_model"].items()]
    return "\n".join(lines)


def overhead_table(result: dict[str, Any]) -> str:
    """Format the overhead without a model."""
    lines = [
        f"\noverhead without a model: {result['tiles']} tiles",
        "| tool | ms per tile | µs per box, 5 per tile | 20 per tile |",
        "| --- | --: | --: | --: |",
    ]
    for name, tool in result["tools"].items():
        boxes = " | ".join(f"{cost['median']:.1f}" for cost in tool["microseconds_a_box"].values())
        lines.append(f"| {name} | {tool['milliseconds_a_tile']['median']:.3f} | {boxes} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--models",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="FP32 models, each with NAME.int8.onnx next to it",
    )
    add("--foreign", type=Path, metavar="FILE", help="detector trained by benchmarks/foreign_detector.py")
    add(
        "--data",
        type=Path,
        default=ROOT.parent / "shared/data/hituav-val",
        help="COCO folder (default: ../shared/data/hituav-val)",
    )
    add("--pictures", type=layout, default=(6, 5), metavar="CxR",
        help="columns and rows of images in the scene (default: 6x5)")  # fmt: skip
    add("--rounds", type=positive_int, default=5, help="rounds of each comparison (default: 5)")
    add("--side", type=positive_int, default=10_304,
        help="side of the scene for the overhead in pixels (default: 10304, 400 tiles)")  # fmt: skip
    add("--no-overhead", action="store_true", help="do not measure the overhead without a model")
    add("--quick", action="store_true", help="two rounds, 3x2 images, 36 tiles without a model")
    add("--output", type=Path, help="result file, extended if it exists (default: benchmarks/results/versus.json; "
        "with --quick a temporary file)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.output is None:
        args.output = (
            Path(tempfile.mkdtemp()) / "versus.json" if args.quick else ROOT / "benchmarks/results/versus.json"
        )
    if args.quick:
        args.rounds, args.pictures, args.side = 2, (3, 2), 3072
    return args


if __name__ == "__main__":
    sys.exit(main())
