"""Recall and savings of `tinydet infer --skip-empty`, on images other than those of its calibration, and on videos.

    python benchmarks/skip_gate.py
    python benchmarks/skip_gate.py --model model.onnx          # also what a model detects with and without the option

Images: the filter is calibrated on the training images of a dataset and applied to its validation images. `recall` is
the share of objects whose tile is run; `saving` is the share of tiles that are skipped.

Videos are made from these images. Six of them form a fixed background; objects cut from others move over it by --speeds
pixels per frame. Each frame has its own noise and is encoded as H.264. `StaticTiles` picks the tiles to run. `noticed`
is the share of objects in the images that change their tile enough to be noticed when they appear. `current` is the
share of moving objects, over all frames, whose position overlaps with IoU 0.5 the one they had when a tile that shows
them was last run. With a model, the objects that it detects with a score of at least --score and IoU 0.5 are counted
(`found`), with and without the filter.

Needs tinydet[video] and the datasets hituav and tinyperson640 in `shared/data` next to the
repository. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from environment import ROOT, environment

from tinydet._internal.arguments import integers, positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
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

SETS = {"hituav": (8.0, 15.0, 40.0), "tinyperson640": (2.3, 5.2, 16.0)}  # percentiles 1, 50, 99 of object size, pixels
VIDEO = "hituav"  # dataset of the videos
MOVING = 3  # moving objects of a video
BACKGROUND = 2, 3  # rows and columns of images in the background of a video
RATE = 25  # frames per second


@command("benchmarks/skip_gate.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    result: dict[str, Any] = {"command": "python benchmarks/skip_gate.py", **environment(), "still": [], "video": []}
    print("| dataset | tile | recall | saving | µs per tile |\n| --- | --: | --: | --: | --: |")
    filters: dict[tuple[str, int], ContrastFilter] = {}
    for name in args.sets:
        for tile in args.tiles:
            row, filters[name, tile] = measure_images(name, spec_of(name, tile), args)
            result["still"].append(row)
            print(f"| {name} | {tile} | {row['recall']:.4f} | {row['saving']:.3f} | {row['microseconds_a_tile']:.0f} |")
            write_json(args.output, result)  # after each row, because a row takes long
    for name, tile in [key for key in filters if key[0] == VIDEO]:
        for speed in args.speeds:
            backend = NullBackend(spec_of(name, tile))
            result["video"].append(measure_video(backend, filters[name, tile], speed, args))
            print(json.dumps(result["video"][-1]))
            write_json(args.output, result)
    if args.model is not None:
        model = open_model(args.model, args.backend)
        _, tile_filter = measure_images(VIDEO, model.spec, args)
        found = count_found(model, tile_filter, args)
        result["model"] = {"tile": model.spec.tile, "backend": model.name, **found}
        print(json.dumps(result["model"]))
        for speed in args.speeds:
            result["video"].append({"model": model.name, **measure_video(model, tile_filter, speed, args)})
            print(json.dumps(result["video"][-1]))
            write_json(args.output, result)
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def spec_of(name: str, tile: int) -> ModelSpec:
    """Return a description of a model with the fields that the filter needs."""
    return ModelSpec(("object",), (1,), "none", "none", tile=tile, object_sizes=SETS[name])


def measure_images(name: str, spec: ModelSpec, args: argparse.Namespace) -> tuple[dict[str, Any], ContrastFilter]:
    """Calibrate a filter on the training images of a dataset and measure it on the validation images."""
    overlap = min(64, spec.tile // 4)
    measured = measure_contrasts(spec, args.data / f"{name}-train" / "annotations.json", overlap=overlap)
    tile_filter = calibrate_contrast_filter(measured, tile=spec.tile)
    other: Contrasts = measure_contrasts(spec, args.data / f"{name}-val" / "annotations.json", overlap=overlap)
    missed = [contrast < tile_filter.threshold for contrast in other.objects]
    image = np.random.default_rng(0).integers(0, 256, (spec.tile, spec.tile, 3), dtype=np.uint8)
    times = []
    for _ in range(200):
        began = time.process_time()
        tile_filter(image)
        times.append(time.process_time() - began)
    row = {
        "set": name,
        "tile": spec.tile,
        "overlap": overlap,
        "threshold": tile_filter.threshold,
        "motion": tile_filter.motion,
        "measured_on": {
            "objects": tile_filter.objects,
            "tiles": tile_filter.tiles,
            "recall": round(tile_filter.recall, 4),
        },
        "objects": len(other.objects),
        "tiles": len(other.tiles),
        "recall": round(other.recall(tile_filter.threshold), 4),
        "missed": sum(missed),
        "saving": round(other.saving(tile_filter.threshold), 4),
        "noticed": round(other.motion_recall(tile_filter.motion), 4),
        "microseconds_a_tile": round(float(np.median(times)) * 1e6, 1),
    }
    return row, tile_filter


def count_found(backend: Backend, contrast_filter: ContrastFilter, args: argparse.Namespace) -> dict[str, Any]:
    """Count the objects that a model detects in the validation images, with and without the filter."""
    truth, names = annotated(args.data / f"{VIDEO}-val")
    counts = np.zeros(3, int)  # objects, found, found with the filter
    tiles = skipped = 0
    for image_id in list(names)[: args.images]:
        with open_scene(args.data / f"{VIDEO}-val" / "images" / names[image_id]) as scene:
            options = ScanOptions(64, score=args.score)
            both = [
                detect_scene(backend, scene, options, tile_filter=tile_filter)
                for tile_filter in (None, contrast_filter)
            ]
        boxes = truth.get(image_id, np.zeros((0, 4)))
        counts += [len(boxes), *(hits(boxes, one.detections) for one in both)]
        tiles, skipped = tiles + both[1].tiles, skipped + both[1].filtered
    return {
        "objects": int(counts[0]),
        "found": int(counts[1]),
        "found_with_gate": int(counts[2]),
        "saving": round(skipped / tiles, 4),
    }


class NullBackend:
    """A backend that detects nothing."""

    name = "nothing"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, images: np.ndarray) -> TileOutputs:
        n, slots = len(images), self.spec.max_detections
        scores, labels = np.zeros((n, slots), np.float32), np.full((n, slots), -1, np.int32)
        return TileOutputs(np.zeros((n, slots, 4), np.float32), scores, labels, np.zeros(n, np.int32))


class LastRuns(StaticTiles):
    """Also records the frame in which each tile was last run."""

    def __init__(self, tile_filter: ContrastFilter) -> None:
        super().__init__(tile_filter)
        self.frame = 0
        self.last: dict[int, int] = {}

    def append(self, record: BatchRecord) -> None:
        super().append(record)
        self.last.update(dict.fromkeys(record.tiles.tolist(), self.frame))


def measure_video(
    backend: Backend, tile_filter: ContrastFilter, speed: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure which tiles of a video are run, whether reused boxes are current, and what a model detects."""
    counts = np.zeros(3, int)
    current: list[float] = []
    static = LastRuns(tile_filter)
    tile = backend.spec.tile
    overlap = min(64, tile // 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.mp4"
        resting, moving = make_video(path, speed, args)
        with Video(str(path)) as video:
            for frame, boxes in zip(video, moving, strict=True):
                scene: Scene = frame.scene
                static.frame = frame.index
                plan = plan_scan(scene, backend.spec, ScanOptions(overlap, score=args.score, coarse=None))
                static.start_frame(scene, plan)
                filtered = collect(scan(backend, scene, plan, tile_filter=tile_filter, journal=static))
                grid = plan.full.grid
                edges = grid.bounds(np.arange(len(grid)))
                for number, box in boxes.items():
                    inside = (edges[:, :2] <= box[:2]).all(1) & (edges[:, 2:] >= box[2:]).all(1)
                    complete = np.flatnonzero(inside).tolist()  # tiles that contain the complete object
                    earlier = [moving[static.last[n]].get(number) for n in complete if n in static.last]
                    ious = [float(iou_of_pairs(one, box)) for one in earlier if one is not None]
                    current.append(max(ious, default=0.0))
                if backend.name != NullBackend.name:
                    unfiltered = detect_scene(backend, scene, plan.options)
                    objects = np.array([*resting, *boxes.values()])
                    counts += [len(objects), hits(objects, unfiltered.detections), hits(objects, filtered.detections)]
    row = {
        "tile": tile,
        "speed": speed,
        "frames": len(moving),
        "tiles": static.tiles,
        "plain": round(static.filtered / static.tiles, 4),
        "still": round(static.static / static.tiles, 4),
        "run": round(1 - (static.filtered + static.static) / static.tiles, 4),
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
    """Write a video; return the boxes of the resting objects, and of the moving ones by number for each frame."""
    rng = np.random.default_rng(0)
    folder = args.data / f"{VIDEO}-val"
    truth, names = annotated(folder)
    rows, columns = BACKGROUND
    used = rng.choice(list(names), rows * columns, replace=False).tolist()
    images = [read_image(folder / "images" / names[image_id]) for image_id in used]
    image_height, image_width = images[0].shape[:2]  # the same for all
    background = np.concatenate([np.concatenate(images[i * columns :][:columns], axis=1) for i in range(rows)])
    height, width = background.shape[:2]
    resting = [
        box + np.array([i % columns * image_width, i // columns * image_height] * 2, float)
        for i, image_id in enumerate(used)
        for box in truth.get(image_id, ())
    ]
    others = [image_id for image_id in names if image_id not in used and len(truth.get(image_id, ()))]
    crops, starts, steps = [], [], []
    for image_id in rng.choice(others, MOVING, replace=False).tolist():
        x1, y1, x2, y2 = truth[image_id][0].round().astype(int).tolist()
        crops.append(read_image(folder / "images" / names[image_id])[y1:y2, x1:x2])
        starts.append(rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height)))
        angle = rng.uniform(0, 2 * np.pi)
        steps.append(speed * np.array([np.cos(angle), np.sin(angle)]))
    moving = []
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(args.frames):
            image, boxes = background.copy(), {}
            for number, (crop, start, step) in enumerate(zip(crops, starts, steps, strict=True)):
                x, y = np.mod(start + index * step, (width, height)).round().astype(int).tolist()
                part = crop[: height - y, : width - x]
                image[y : y + part.shape[0], x : x + part.shape[1]] = part
                if part.shape == crop.shape:
                    boxes[number] = np.array([x, y, x + part.shape[1], y + part.shape[0]], float)
            noisy = image + rng.normal(0, args.noise, (height, width, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), "rgb24")))
            moving.append(boxes)
        container.mux(stream.encode())
    return resting, moving


def annotated(folder: Path) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Read the boxes (N, 4) xyxy of the objects and the file name of each image; ignored objects are left out."""
    document = json.loads((folder / "annotations.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for entry in document["annotations"]:
        if not (entry.get("ignore") or entry.get("iscrowd")):
            x, y, width, height = entry["bbox"]
            boxes.setdefault(entry["image_id"], []).append([x, y, x + width, y + height])
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return {image_id: np.array(rows, float) for image_id, rows in boxes.items()}, names


def hits(boxes: np.ndarray, found: Detections) -> int:
    """Count the boxes that have a detection with an IoU of 0.5 or more."""
    return sum(1 for box in boxes if len(found) and iou_of_pairs(box[None], found.boxes.astype(float)).max() >= 0.5)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data",
        help="folder of the datasets (default: ../shared/data)")  # fmt: skip
    add("--sets", nargs="+", choices=SETS, default=list(SETS), help="datasets to measure (default: all)")
    add("--tiles", type=integers, default=(256, 640), help="tile sizes in pixels (default: 256,640)")
    add("--model", type=Path, help="exported model for thermal frames (default: none)")
    add("--backend", default="auto", help="backend of the model, as in `tinydet infer` (default: auto)")
    add("--images", type=positive_int, default=40, help="validation images run by the model (default: 40)")
    add("--score", type=float, default=0.3, help="score threshold of the model (default: 0.3)")
    add("--frames", type=positive_int, default=12, help="frames of a video (default: 12)")
    add(
        "--speeds",
        type=float,
        nargs="+",
        default=[0.5, 2.0],
        help="speeds of moving objects in pixels per frame (default: 0.5 2)",
    )
    add("--noise", type=float, default=2.0, help="standard deviation of the noise in a video, gray levels (default: 2)")
    add("--quick", dest="sets", action="store_const", const=["tinyperson640"], help="same as --sets tinyperson640")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "skip_gate.json",
        help="result file (default: benchmarks/results/skip_gate.json)")  # fmt: skip
    args = parser.parse_args(argv)
    if not (args.data / f"{VIDEO}-val").is_dir():
        parser.error(f"{args.data / f'{VIDEO}-val'} does not exist; name the folder of the datasets with --data")
    cv2.setNumThreads(1)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
