"""What a user would pick instead: the same model, scene and tiles through tinydet, SAHI and supervision, by turns.

    .versus/bin/python benchmarks/versus.py --models mobilenet_v2.onnx resnet18.onnx resnet50.onnx

How to make the venv `.versus` is said in benchmarks/other_tools.py. Each model is an FP32 file with its INT8 form
beside it, as these make them:

    python export/to_onnx.py resnet18.pth
    python export/to_onnx.py resnet18.pth --precision int8 --calibration my/train

The scene is made of the first annotated pictures of `--data`, side by side, and lies in memory. All sides run the same
number of tiles, ours in batches of 4 as by default; they take turns, and each round begins with another. Times are
taken at score 0.3, which is everybody's default; average precision is measured apart, at 0.05, where SAHI goes over to
NMS by itself. What is asked for is judged by the fastest round of each side, as it must be on a machine with other
work. A model that is named again is measured anew; what the result file says of others stays.

Then, without a model: what a tile and a box cost beside it. The backend gives boxes that are made before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from environment import ROOT, environment
from mosaic import mosaic
from other_tools import Answer, Tool, available

from tinydet._internal.atomic import write_json
from tinydet.evaluate import evaluate_detections
from tinydet.geometry.boxes import iou_of_pairs
from tinydet.runtime import TileGrid
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import OVERLAP
from tinydet.runtime.scan import detect_scene
from tinydet.runtime.scenes import open_scene
from tinydet.spec import ModelSpec

SCORE, LEAST = 0.3, 0.05  # for times, for average precision
OURS, SAHI = "tinydet", "SAHI"
INT8, FP32 = "OpenVINO INT8", "ONNX Runtime FP32"
Tools = dict[str, Callable[[Backend, int], Tool]]


def main() -> int:
    args = arguments()
    result: dict[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {}
    result = {"models": {}, **result, "command": "python benchmarks/versus.py --models ...", **environment()}
    tools = available()
    if args.models:
        scene, truth = mosaic(args.data, *args.pictures)
        for path in args.models:
            result["models"][path.stem] = compare(path, scene, truth, args.rounds, tools)
            print(table(path.stem, result["models"][path.stem]), flush=True)
            write_json(args.output, result)
    if not args.no_overhead:
        result["beside_the_model"] = beside_the_model(args.side, args.rounds, tools)
        print(overhead_table(result["beside_the_model"]))
    result["marks"] = marks(result)
    for mark in result["marks"]:
        print(f"{'held' if mark['held'] else 'MISSED':6} {mark['what']}: {mark['value']:g} ({mark['mark']})")
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def compare(path: Path, scene: np.ndarray, truth: dict[str, Any], rounds: int, tools: Tools) -> dict[str, Any]:
    """One model through every tool."""
    int8_file = path.with_name(f"{path.stem}.int8.onnx")
    int8, fp32 = open_model(int8_file, "openvino"), open_model(path, "onnx-cpu")
    sides: dict[str, Tool] = {f"{OURS}, {INT8}": ours(int8), f"{OURS}, {FP32}": ours(fp32)}
    one_at_a_time = open_model(int8_file, "openvino-latency")  # there OpenVINO is fastest with all cores on a tile
    for name, over in tools.items():
        sides[f"{name}, {FP32}"] = over(fp32, OVERLAP)
        sides[f"{name}, {INT8}"] = over(one_at_a_time, OVERLAP)
    answers = {name: look(scene, LEAST) for name, look in sides.items()}  # warms up too
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            sides[name](scene, SCORE)
            seconds[name].append(time.perf_counter() - began)
    spec = fp32.spec
    tiles = len(TileGrid(scene.shape[1], scene.shape[0], spec.tile, OVERLAP))
    exact = answers[f"{OURS}, {FP32}"]
    return {
        **environment(),
        "backbone": spec.backbone,
        "tile": spec.tile,
        "scene": list(scene.shape[:2]),
        "tiles": tiles,
        "objects": sum(of["category_id"] in spec.category_ids for of in truth["annotations"]),
        "rounds": rounds,
        "sides": {
            name: {
                "seconds": summary(seconds[name]),
                "tiles_per_second": round(tiles / statistics.median(seconds[name]), 2),
                "AP": scores_of(answers[name], truth, spec),
                "boxes": int((answers[name][1] >= SCORE).sum()),
                "alike_to_ours_in_fp32": round(alike(answers[name], exact), 4),
            }
            for name in sides
        },
        "times_as_fast": {
            f"{mine} against {tool}, {theirs}": times_as_fast(seconds[f"{OURS}, {mine}"], seconds[f"{tool}, {theirs}"])
            for tool in tools
            for mine, theirs in ((INT8, FP32), (FP32, FP32), (INT8, INT8))
        },
        "share_beside_the_model": share_beside_the_model(int8, scene, rounds),
    }


def ours(backend: Backend) -> Tool:
    def look(scene: np.ndarray, score: float) -> Answer:
        found = detect_scene(backend, open_scene(scene), ScanOptions(OVERLAP, score=score)).detections
        return found.boxes, found.scores, found.labels

    return look


def times_as_fast(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """By the fastest round of each, which other work on the machine has disturbed least, and by the pairs of rounds."""
    pairs = [b / a for a, b in zip(mine, theirs, strict=True)]
    return {"fastest": round(min(theirs) / min(mine), 3), **summary(pairs)}


def share_beside_the_model(backend: Backend, scene: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Of the wall time, from opening to the last box, what was not in the backend: scene in memory, and in files."""
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
            print("tiled TIFF: not measured without rasterio")
        for _ in range(rounds):
            for name, source in sources.items():
                began = time.perf_counter()
                with open_scene(source) as opened:
                    busy = detect_scene(backend, opened, ScanOptions(OVERLAP, score=SCORE)).busy
                shares.setdefault(name, []).append(1 - busy / (time.perf_counter() - began))
    return {name: summary(values) for name, values in shares.items()}


class MadeBoxes:
    """A backend that gives each tile the same number of boxes, made before."""

    name = "made boxes"

    def __init__(self, tile: int, each: int) -> None:
        slots, most = max(each, 100), 16
        self.spec = ModelSpec(("spot",), (1,), "made", "none", tile, max_batch=most, max_detections=slots)
        rng = np.random.default_rng(0)
        corner, side = rng.uniform(0, tile - 24, (997, each, 2)), rng.uniform(8, 24, (997, each, 2))
        self._boxes = np.zeros((997, slots, 4), np.float32)
        self._boxes[:, :each] = np.concatenate([corner, corner + side], axis=2)
        self._scores = np.zeros((997, slots), np.float32)
        self._scores[:, :each] = np.sort(rng.uniform(0.31, 1, (997, each)))[:, ::-1]
        self._labels = np.where(np.arange(slots) < each, 0, -1).astype(np.int32)[None].repeat(most, axis=0)
        self._next = 0

    def run(self, images: np.ndarray) -> TileOutputs:
        n = len(images)
        of = np.arange(self._next, self._next + n) % 997
        self._next += n
        return TileOutputs(self._boxes[of], self._scores[of], self._labels[:n], np.zeros(n, np.int32))


def beside_the_model(side: int, rounds: int, tools: Tools) -> dict[str, Any]:
    """Milliseconds a tile without a box, and microseconds for each box beyond, of a scene in memory."""
    scene = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    tiles = len(TileGrid(side, side, 640, OVERLAP))
    result: dict[str, Any] = {"tiles": tiles, "tile": 640, "rounds": rounds, "tools": {}}
    tools = {OURS: lambda backend, _: ours(backend), **tools}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, tool in tools.items():
            for each in (0, 5, 20):
                if name == "supervision" and each * tiles > 4000 and (name, each) in seconds:
                    continue  # its NMS grows with the square of the boxes: once is enough
                look = tool(MadeBoxes(640, each), OVERLAP)
                began = time.perf_counter()
                look(scene, SCORE)
                seconds.setdefault((name, each), []).append(time.perf_counter() - began)
    for name in tools:
        empty = [value / tiles * 1e3 for value in seconds[name, 0]]
        result["tools"][name] = {"milliseconds_a_tile": summary(empty), "microseconds_a_box": {}}
        for each in (5, 20):
            beyond = [(value - min(seconds[name, 0])) / (each * tiles) * 1e6 for value in seconds[name, each]]
            result["tools"][name]["microseconds_a_box"][f"{each} a tile"] = summary(beyond)
    return result


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked for, and whether it is so."""
    found = []

    def mark(what: str, value: float, limit: float, least: bool) -> None:
        held = value >= limit if least else value <= limit
        text = f"{'at least' if least else 'at most'} {limit:g}"
        found.append({"what": what, "value": value, "mark": text, "held": held})

    for name, of in result["models"].items():
        sides = {side: values["AP"]["all"] for side, values in of["sides"].items()}
        for pair, times in of["times_as_fast"].items():
            mine, _, theirs = pair.partition(" against ")
            if theirs == f"{SAHI}, {FP32}" and mine == INT8 and of["backbone"] in ("resnet18", "resnet50"):
                mark(f"{name}: times as fast, {pair}", times["fastest"], 4, True)
            elif theirs.endswith(mine):
                mark(f"{name}: times as fast, {pair}", times["fastest"], 1, True)
        for side, ap in sides.items():
            if side != f"{OURS}, {INT8}" and any(sides.values()):  # random weights find nothing
                mark(f"{name}: AP50 of {side} above our INT8", round(ap - sides[f"{OURS}, {INT8}"], 4), 0.005, False)
        for where, share in of["share_beside_the_model"].items():
            mark(f"{name}, scene {where}: share of time beside the model", share["least"], 0.03, False)
    if "beside_the_model" in result:
        mine = result["beside_the_model"]["tools"][OURS]
        mark("milliseconds a tile beside the model", mine["milliseconds_a_tile"]["least"], 0.2, False)
        for density, cost in mine["microseconds_a_box"].items():
            mark(f"microseconds a box, {density}", cost["least"], 5, False)
    return found


def scores_of(answer: Answer, truth: dict[str, Any], spec: ModelSpec) -> dict[str, float]:
    """AP50 of all objects and of tiny ones, mean over the classes."""
    boxes, scores, labels = answer
    detections = [
        {"image_id": 1, "category_id": spec.category_ids[label], "bbox": [x, y, right - x, bottom - y], "score": score}
        for (x, y, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    ap = evaluate_detections(truth, detections, categories=spec.classes, max_detections=len(detections) + 1)["AP"]
    return {size: round(ap[size]["0.50"], 4) for size in ("all", "tiny")}


def alike(one: Answer, two: Answer) -> float:
    """Share of the boxes from SCORE up, of both sides, that have one of IoU 0.5 and the same label on the other."""
    (a, sa, la), (b, sb, lb) = ([values[answer[1] >= SCORE] for values in answer] for answer in (one, two))
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


def table(name: str, of: dict[str, Any]) -> str:
    lines = [f"\n{name}: {of['tiles']} tiles of {of['tile']}, {of['objects']} objects, {of['rounds']} rounds"]
    lines += [
        "| side | seconds | tiles/s | AP50 | AP50 tiny | boxes | alike |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for side, values in of["sides"].items():
        s = values["seconds"]
        lines.append(
            f"| {side} | {s['median']:.2f} ({s['least']:.2f} to {s['most']:.2f}) | {values['tiles_per_second']} | "
            f"{values['AP']['all']:.3f} | {values['AP']['tiny']:.3f} | {values['boxes']} | "
            f"{values['alike_to_ours_in_fp32']:.3f} |"
        )
    lines += [
        f"{n}: {v['median']:.2f} times as fast ({v['least']:.2f} to {v['most']:.2f})"
        for n, v in of["times_as_fast"].items()
    ]
    lines += [f"beside the model, {n}: {v['median']:.1%}" for n, v in of["share_beside_the_model"].items()]
    return "\n".join(lines)


def overhead_table(of: dict[str, Any]) -> str:
    lines = [
        f"\nwithout a model: {of['tiles']} tiles",
        "| tool | ms a tile | µs a box, 5 a tile | 20 a tile |",
        "| --- | --: | --: | --: |",
    ]
    for name, tool in of["tools"].items():
        boxes = " | ".join(f"{cost['median']:.1f}" for cost in tool["microseconds_a_box"].values())
        lines.append(f"| {name} | {tool['milliseconds_a_tile']['median']:.3f} | {boxes} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--models", type=Path, nargs="+", default=[], metavar="FILE", help="FP32 files, each with NAME.int8.onnx beside"
    )
    add("--data", type=Path, default=ROOT.parent / "shared/data/hituav-val", help="COCO folder (default: hituav-val)")
    add("--pictures", type=lambda text: [int(n) for n in text.split("x")], default=[6, 5], metavar="CxR",
        help="of the scene (default 6x5)")  # fmt: skip
    add("--rounds", type=int, default=5, help="of each comparison (default 5)")
    add("--side", type=int, default=10_304, help="of the scene without a model, pixels (default 10304: 400 tiles)")
    add("--no-overhead", action="store_true", help="only with models")
    add("--quick", action="store_true", help="two rounds, 3x2 pictures, 36 tiles without a model")
    add("--output", type=Path, help="JSON, added to where it exists (default benchmarks/results/versus.json, "
        "of a quick run a temporary one)")  # fmt: skip
    args = parser.parse_args()
    if args.output is None:
        args.output = (
            Path(tempfile.mkdtemp()) / "versus.json" if args.quick else ROOT / "benchmarks/results/versus.json"
        )
    if args.quick:
        args.rounds, args.pictures, args.side = 2, [3, 2], 3072
    return args


if __name__ == "__main__":
    sys.exit(main())
