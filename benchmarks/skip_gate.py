"""What `--skip-empty` passes over, and what it loses: on images that it was not measured on, and on videos.

    python benchmarks/skip_gate.py
    python benchmarks/skip_gate.py --model model.onnx          # also what a model finds with the gate and without

Still images: the gate is measured on the training images of a set and applied to its validation images. `recall` is the
share of their objects whose tile is run, `saving` the share of the tiles that are not.

Video: made from these images, for no annotated one is at hand. Six of them, side by side, rest; objects cut from others
are moved over them by --speeds pixels a frame, and each frame gets noise of its own and is encoded as H.264; then
`StaticTiles` picks the tiles to run. `noticed` is the share of the objects of the images that change their tile enough
where they come; `current` the share of the moving objects, frame by frame, of which a tile that shows them was last run
while they were where they are, IoU 0.5. With a model, `found` is the share of all objects (resting and moving) that it
finds at --score, IoU 0.5, with and without.

The data are those of CONTRIBUTING.md, in a folder `shared` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from environment import ROOT, environment

from tinydet._internal.atomic import write_json
from tinydet.geometry.boxes import iou_of_pairs
from tinydet.infer.contrast_calibration import Contrasts, calibrate_contrast_filter, measure_contrasts
from tinydet.infer.contrast_filter import ContrastFilter
from tinydet.infer.static_tiles import StaticTiles
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import BatchRecord
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import collect, detect_scene, scan
from tinydet.runtime.scenes import Scene, open_scene, read_image
from tinydet.runtime.scenes.video import Video
from tinydet.spec import ModelSpec

SETS = {"hituav": (8.0, 15.0, 40.0), "tinyperson640": (2.3, 5.2, 16.0)}  # object sizes: 1, 50 and 99 %, pixels
VIDEO = "hituav"  # the set that videos are made of
MOVING = 3  # objects of a made video
GROUND = 2, 3  # rows and columns of images that it is made of
RATE = 25


def main() -> int:
    args = arguments()
    result: dict[str, Any] = {"command": "python benchmarks/skip_gate.py", **environment(), "still": [], "video": []}
    print("| set | tile | recall | saving | µs a tile |\n| --- | --: | --: | --: | --: |")
    gates: dict[tuple[str, int], ContrastFilter] = {}
    for name in args.sets:
        for tile in args.tiles:
            row, gates[name, tile] = of_stills(name, spec_of(name, tile), args)
            result["still"].append(row)
            print(f"| {name} | {tile} | {row['recall']:.4f} | {row['saving']:.3f} | {row['microseconds_a_tile']:.0f} |")
            write_json(args.output, result)  # each row, for it takes long
    for name, tile in [key for key in gates if key[0] == VIDEO]:
        gate = gates[name, tile]
        for speed in args.speeds:
            result["video"].append(on_video(Nothing(spec_of(name, tile)), gate, speed, args))
            print(json.dumps(result["video"][-1]))
            write_json(args.output, result)
    if args.model is not None:
        backend = open_model(args.model, args.backend)
        _, gate = of_stills(VIDEO, backend.spec, args)
        result["model"] = {"tile": backend.spec.tile, "backend": backend.name, **found_in_stills(backend, gate, args)}
        print(json.dumps(result["model"]))
        for speed in args.speeds:
            result["video"].append({"model": backend.name, **on_video(backend, gate, speed, args)})
            print(json.dumps(result["video"][-1]))
            write_json(args.output, result)
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def spec_of(name: str, tile: int) -> ModelSpec:
    """What the gate asks of a model."""
    return ModelSpec(("object",), (1,), "none", "none", tile=tile, object_sizes=SETS[name])


def of_stills(name: str, spec: ModelSpec, args: argparse.Namespace) -> tuple[dict[str, Any], ContrastFilter]:
    """A gate that was measured on the training images, on the validation images."""
    overlap = min(64, spec.tile // 4)
    measured = measure_contrasts(spec, args.data / f"{name}-train" / "annotations.json", overlap=overlap)
    gate = calibrate_contrast_filter(measured, tile=spec.tile)
    seen: Contrasts = measure_contrasts(spec, args.data / f"{name}-val" / "annotations.json", overlap=overlap)
    missed = [look < gate.threshold for look in seen.objects]
    picture = np.random.default_rng(0).integers(0, 256, (spec.tile, spec.tile, 3), dtype=np.uint8)
    times = []
    for _ in range(200):
        began = time.process_time()
        gate(picture)
        times.append(time.process_time() - began)
    row = {
        "set": name,
        "tile": spec.tile,
        "overlap": overlap,
        "threshold": gate.threshold,
        "motion": gate.motion,
        "measured_on": {"objects": gate.objects, "tiles": gate.tiles, "recall": round(gate.recall, 4)},
        "objects": len(seen.objects),
        "tiles": len(seen.tiles),
        "recall": round(seen.recall(gate.threshold), 4),
        "missed": sum(missed),
        "saving": round(seen.saving(gate.threshold), 4),
        "noticed": round(seen.motion_recall(gate.motion), 4),
        "microseconds_a_tile": round(float(np.median(times)) * 1e6, 1),
    }
    return row, gate


def found_in_stills(backend: Backend, gate: ContrastFilter, args: argparse.Namespace) -> dict[str, Any]:
    """What a model finds in the validation images."""
    truth, names = annotated(args.data / f"{VIDEO}-val")
    counts = np.zeros(3, int)  # objects, found, found with the gate
    tiles = plain = 0
    for image_id in list(names)[: args.images]:
        with open_scene(args.data / f"{VIDEO}-val" / "images" / names[image_id]) as scene:
            options = ScanOptions(64, score=args.score)
            both = [detect_scene(backend, scene, options, tile_filter=tile_filter) for tile_filter in (None, gate)]
        boxes = truth.get(image_id, np.zeros((0, 4)))
        counts += [len(boxes), *(hits(boxes, one.detections) for one in both)]
        tiles, plain = tiles + both[1].tiles, plain + both[1].filtered
    return {
        "objects": int(counts[0]),
        "found": int(counts[1]),
        "found_with_gate": int(counts[2]),
        "saving": round(plain / tiles, 4),
    }


class Nothing:
    """A backend that finds nothing, for what is not about finding."""

    name = "nothing"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, images: np.ndarray) -> TileOutputs:
        n, slots = len(images), self.spec.max_detections
        scores, labels = np.zeros((n, slots), np.float32), np.full((n, slots), -1, np.int32)
        return TileOutputs(np.zeros((n, slots, 4), np.float32), scores, labels, np.zeros(n, np.int32))


class LastRuns(StaticTiles):
    """Also remembers at which frame each tile was last run."""

    def __init__(self, gate: ContrastFilter) -> None:
        super().__init__(gate)
        self.frame = 0
        self.last: dict[int, int] = {}

    def append(self, record: BatchRecord) -> None:
        super().append(record)
        self.last.update(dict.fromkeys(record.tiles.tolist(), self.frame))


def on_video(backend: Backend, gate: ContrastFilter, speed: float, args: argparse.Namespace) -> dict[str, Any]:
    """How many tiles of a made video are run, whether what is taken over is current, and what a model finds."""
    counts = np.zeros(3, int)
    current: list[float] = []
    stills = LastRuns(gate)
    tile = backend.spec.tile
    overlap = min(64, tile // 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.mp4"
        resting, moving = make_video(path, speed, args)
        with Video(str(path)) as video:
            for frame, boxes in zip(video, moving, strict=True):
                scene: Scene = frame.scene
                stills.frame = frame.index
                plan = plan_scan(scene, backend.spec, ScanOptions(overlap, score=args.score, coarse=None))
                stills.start_frame(scene, plan)
                some = collect(scan(backend, scene, plan, tile_filter=gate, journal=stills))
                bounds = plan.full.grid
                edges = bounds.bounds(np.arange(len(bounds)))
                for number, box in boxes.items():
                    whole = np.flatnonzero((edges[:, :2] <= box[:2]).all(1) & (edges[:, 2:] >= box[2:]).all(1)).tolist()
                    then = [moving[stills.last[at]].get(number) for at in whole if at in stills.last]
                    current.append(max((float(iou_of_pairs(one, box)) for one in then if one is not None), default=0.0))
                if backend.name != Nothing.name:
                    every = detect_scene(backend, scene, plan.options)
                    there = np.array([*resting, *boxes.values()])
                    counts += [len(there), hits(there, every.detections), hits(there, some.detections)]
    row = {
        "tile": tile,
        "speed": speed,
        "frames": len(moving),
        "tiles": stills.tiles,
        "plain": round(stills.filtered / stills.tiles, 4),
        "still": round(stills.static / stills.tiles, 4),
        "run": round(1 - (stills.filtered + stills.static) / stills.tiles, 4),
        "moving_objects": len(current),
        "current": round(float(np.mean(np.array(current) >= 0.5)), 4),
        "mean_iou": round(float(np.mean(current)), 4),
    }
    if counts[0]:
        row |= dict(zip(("objects", "found", "found_with_gate"), counts.tolist(), strict=True))
    return row


def make_video(
    path: Path, speed: float, args: argparse.Namespace
) -> tuple[list[np.ndarray], list[dict[int, np.ndarray]]]:
    """Encode a video; the boxes that rest, and for each frame those that move, by their number."""
    rng = np.random.default_rng(0)
    folder = args.data / f"{VIDEO}-val"
    truth, names = annotated(folder)
    rows, columns = GROUND
    used = rng.choice(list(names), rows * columns, replace=False).tolist()
    images = [read_image(folder / "images" / names[image_id]) for image_id in used]
    down, right = images[0].shape[:2]  # all have one size
    ground = np.concatenate([np.concatenate(images[i * columns :][:columns], axis=1) for i in range(rows)])
    height, width = ground.shape[:2]
    resting = [
        box + np.array([i % columns * right, i // columns * down] * 2, float)
        for i, image_id in enumerate(used)
        for box in truth.get(image_id, ())
    ]
    others = [image_id for image_id in names if image_id not in used and len(truth.get(image_id, ()))]
    pieces, starts, ways = [], [], []
    for image_id in rng.choice(others, MOVING, replace=False).tolist():
        x1, y1, x2, y2 = truth[image_id][0].round().astype(int).tolist()
        pieces.append(read_image(folder / "images" / names[image_id])[y1:y2, x1:x2])
        starts.append(rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height)))
        angle = rng.uniform(0, 2 * np.pi)
        ways.append(speed * np.array([np.cos(angle), np.sin(angle)]))
    moving = []
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(args.frames):
            picture, here = ground.copy(), {}
            for number, (piece, start, way) in enumerate(zip(pieces, starts, ways, strict=True)):
                x, y = np.mod(start + index * way, (width, height)).round().astype(int).tolist()
                part = piece[: height - y, : width - x]
                picture[y : y + part.shape[0], x : x + part.shape[1]] = part
                if part.shape == piece.shape:
                    here[number] = np.array([x, y, x + part.shape[1], y + part.shape[0]], float)
            noisy = picture + rng.normal(0, args.noise, (height, width, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), "rgb24")))
            moving.append(here)
        container.mux(stream.encode())
    return resting, moving


def annotated(folder: Path) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Boxes (N, 4) xyxy of the objects that count, and the file name, of each image of a COCO folder."""
    document = json.loads((folder / "annotations.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for entry in document["annotations"]:
        if not (entry.get("ignore") or entry.get("iscrowd")):
            x, y, width, height = entry["bbox"]
            boxes.setdefault(entry["image_id"], []).append([x, y, x + width, y + height])
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return {image_id: np.array(held, float) for image_id, held in boxes.items()}, names


def hits(boxes: np.ndarray, found: Detections) -> int:
    """How many boxes a detection lies on, IoU 0.5."""
    return sum(1 for box in boxes if len(found) and iou_of_pairs(box[None], found.boxes.astype(float)).max() >= 0.5)


def tiles(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets (default: all)")
    add("--tiles", type=tiles, default=[256, 640], help="sides of tiles, by commas (default 256,640)")
    add("--model", type=Path, help="exported model of thermal frames (default: none, and no `found`)")
    add("--backend", default="auto", help="what runs it (default auto)")
    add("--images", type=int, default=40, help="validation images that the model looks at (default 40)")
    add("--score", type=float, default=0.3, help="least score of what it finds (default 0.3)")
    add("--frames", type=int, default=12, help="frames of a made video (default 12)")
    add("--speeds", type=float, nargs="+", default=[0.5, 2.0], help="pixels a frame (default 0.5 2)")
    add("--noise", type=float, default=2.0, help="standard deviation of the noise of a made video (default 2)")
    add("--quick", dest="sets", action="store_const", const=["tinyperson640"], help="the same as --sets tinyperson640")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "skip_gate.json",
        help="JSON file (default benchmarks/results/skip_gate.json)")  # fmt: skip
    args = parser.parse_args()
    if not (args.data / f"{VIDEO}-val").is_dir():
        parser.error(f"the data sets are not in {args.data}; name their folder: --data DIR")
    cv2.setNumThreads(1)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
