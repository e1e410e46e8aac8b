"""Recall and time of `tinydet infer --skip learned`, against a dense scan and against --skip-empty.

    python benchmarks/tile_filter.py                       # everything; continues where an earlier run ended
    python benchmarks/tile_filter.py --rehearse            # small scenes and few steps, in a few minutes
    python benchmarks/tile_filter.py --steps thermal,scenes

Steps, each of which is skipped if the result file has it already:

- `train`: filters for the bundled model `thermal`, trained with `tinydet train --filter` and exported: `thermal` on
  hituav-train, `drawn` on drawn seas, deserts and coasts, `rgb` on the composites of shared/data.
- `cost`: CPU time of the filter and of the detector for a tile.
- `thermal`: on hituav-val, whose flights trained nothing: share of the objects in tiles that are kept, share of the
  tiles that are skipped, and the detections of the model with and without the filters.
- `scenes`: drawn scenes of --side pixels with 0.1, 1, 10 and 50 % occupied tiles, clustered and scattered, with the
  filter `drawn`, tiles of 640 and 320 pixels. `speedup` compares with the time of a dense scan, which is that of a few
  tiles times their number, by wall time and by CPU time, which other processes hardly affect. `recall`
  counts the drawn objects that lie whole in a tile that was kept.
- `places`: the photo of the plaza and the mosaic of Brighton, with the filters `rgb` and `thermal`. For `thermal`, they
  are of another kind: the filter must call their tiles unfamiliar.

Intervals are those of Clopper and Pearson, two-sided, 95 %. Needs tinydet[train,export,openvino,geo] and shared/data
next to the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from environment import environment

from tinydet._internal.arguments import names_from, positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.data.coco import load_dataset, open_image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.evaluate.tile_filter import recall_bound
from tinydet.geometry.boxes import iou_of_pairs
from tinydet.infer.contrast_calibration import calibrate_contrast_filter, measure_contrasts
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.bundled import model_path
from tinydet.runtime.journal import BatchRecord
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import ScanPlan, plan_scan
from tinydet.runtime.read_ahead import TileFilter
from tinydet.runtime.scan import SceneResult, collect, detect_scene, scan
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.tile_filter import FilterFile, LearnedFilter

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("train", "cost", "thermal", "scenes", "places")
KINDS = ("sea", "desert", "coast")
OCCUPANCY = (0.001, 0.01, 0.1, 0.5)
TILES = {640: 128, 320: 64}  # pixels, with their overlap
CLASSES = ("person", "car")
PERIOD = 2048  # pixels, after which a drawn ground repeats
LEAST_CONTRAST = 50  # gray levels between a figure and the ground, in one channel
LONGEST_DENSE = 40  # tiles that the dense scan of a scene is timed on


@command("benchmarks/tile_filter.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.output.read_text()) if args.output.is_file() else {}
    words = " --rehearse" if args.rehearse else ""
    result = {**known, "command": f"python benchmarks/tile_filter.py{words}", **environment()}
    for step in args.steps:
        if step == "train" or not result.get(step, {}).get("complete"):
            print(f"{step} ...")
            RUN[step](args, result.setdefault(step, {}), lambda: write_json(args.output, result))
            result[step]["complete"] = True
            write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def train_filters(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Train and export the filters that are not there yet."""
    from tinydet.export.run import export_onnx
    from tinydet.train.config import TrainConfig
    from tinydet.train.tile_filter import train_filter

    for name, (train, val) in datasets(args).items():
        output = args.work / f"{name}.filter.pth"
        if not output.exists():
            began = time.process_time()
            trained = train_filter(
                TrainConfig(
                    filter="thermal",
                    data=train,
                    val=val,
                    output=output,
                    epochs=args.epochs,
                    threads=args.threads,
                )
            )
            result[name] = {"cpu_seconds": round(time.process_time() - began), **record_of(trained.record)}
            save()
        if not output.with_suffix(".onnx").exists():
            export_onnx(output)


def datasets(args: argparse.Namespace) -> dict[str, tuple[Path, Path | float]]:
    """Return the training and held-out images of each filter; the drawn ones are written first."""
    drawn = [args.work / f"drawn-{split}" for split in ("train", "val")]
    count = 6 if args.rehearse else 60
    for seed, folder in enumerate(drawn):
        if not (folder / "annotations.json").exists():
            draw_dataset(folder, count, seed=1000 * (seed + 1))
    return {
        "thermal": (args.data / "hituav-train", 0.3),
        "drawn": (drawn[0], drawn[1]),
        "rgb": (args.data / "rgb-composites-val", 0.3),
    }


def measure_cost(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the CPU time of the detector and of the filter for a tile, each with one thread, in turns."""
    tile = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    for name in ("openvino", "onnx-cpu"):
        detector = open_model(model_path("thermal"), name, threads=1)
        learned = filter_of(args, "thermal", 640, name, threads=1)
        times: dict[str, list[float]] = {"detector": [], "filter": []}
        runs: dict[str, Callable[[], object]] = {
            "detector": lambda detector=detector: detector.run(tile[None]),
            "filter": lambda learned=learned: learned(tile),
        }
        for _ in range(4 if args.rehearse else 30):
            for side, run in runs.items():
                began = time.process_time()
                run()
                times[side].append(time.process_time() - began)
        medians = {side: float(np.median(values[1:])) for side, values in times.items()}
        result[name] = {f"{side}_ms": round(1000 * value, 3) for side, value in medians.items()}
        result[name]["share"] = round(medians["filter"] / medians["detector"], 4)
        print(f"  {name}: {result[name]}")


def measure_thermal(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the filters on held-out thermal flights."""
    dataset = load_dataset(
        args.data / "hituav-val" / "annotations.json", args.data / "hituav-val" / "images", categories=CLASSES
    )
    count = 6 if args.rehearse else len(dataset.images)
    for tile, overlap in TILES.items():
        backend = open_model(model_path("thermal"), tile=tile, threads=args.threads)
        options = ScanOptions(overlap, score=0.3, coarse=None)
        for name, chosen in filters_for(args, backend, "thermal", args.data / "hituav-train", overlap).items():
            if any(row["tile"] == tile and row["filter"] == name for row in result.setdefault("rows", [])):
                continue  # of an earlier run
            kept, found = Counts(), np.zeros(2, int)
            for i in range(count):
                annotations = dataset.of_image(i)
                boxes = annotations.boxes[~annotations.ignore]
                with open_image(dataset, i) as scene:
                    plan = plan_scan(scene, backend.spec, options)
                    decisions = Decisions(plan)
                    filtered = collect(scan(backend, scene, plan, tile_filter=chosen, journal=decisions))
                    kept.add(boxes, plan, decisions)
                    dense = detect_scene(backend, scene, options) if name == "learned" else None
                if dense is not None:
                    found += hits(boxes, dense), hits(boxes, filtered)
            row = {"tile": tile, "filter": name, **kept.row()}
            if name == "learned":
                row |= {"found_dense": int(found[0]), "found": int(found[1])}
            result["rows"].append(row)
            print(f"  {row}")
            save()


def measure_scenes(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure recall and time on drawn scenes."""
    rows = result.setdefault("rows", [])
    done = {(row["kind"], row["tile"], row["occupancy"], row["layout"], row["filter"]) for row in rows}
    for tile, overlap in TILES.items():
        backend = open_model(model_path("thermal"), tile=tile, threads=args.threads)
        options = ScanOptions(overlap, score=0.3, coarse=None)
        chosen = filters_for(args, backend, "drawn", args.work / "drawn-train", overlap)
        for kind in KINDS[: 1 if args.rehearse else None]:
            dense, dense_cpu = seconds_per_tile(backend, DrawnScene(kind, 4 * PERIOD, 0), options)
            for occupancy in OCCUPANCY[2:3] if args.rehearse else OCCUPANCY:
                for layout in ("clustered", "scattered"):
                    for name, tile_filter in chosen.items():
                        if (kind, tile, occupancy, layout, name) in done:
                            continue
                        scene = DrawnScene(kind, args.side, seed=7, occupancy=occupancy, layout=layout)
                        plan = plan_scan(scene, backend.spec, options)
                        decisions = Decisions(plan)
                        began, cpu_began = time.perf_counter(), time.process_time()
                        found = collect(scan(backend, scene, plan, tile_filter=tile_filter, journal=decisions))
                        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
                        counts = Counts()
                        counts.add(scene.boxes, plan, decisions)
                        row = {
                            "kind": kind,
                            "tile": tile,
                            "occupancy": occupancy,
                            "layout": layout,
                            "filter": name,
                            **counts.row(),
                            "seconds": round(seconds, 2),
                            "dense_seconds": round(dense * plan.tiles, 2),
                            "speedup": round(dense * plan.tiles / seconds, 2),
                            "cpu_speedup": round(dense_cpu * plan.tiles / cpu, 2),
                            "model_share": round(found.busy / seconds, 3),
                        }
                        rows.append(row)
                        print(f"  {row}")
                        save()


def measure_places(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the filters on the plaza and on Brighton: of their kind, and of another kind."""
    plaza = args.data / "bigscene-plaza"
    dataset = load_dataset(plaza / "annotations.json", plaza / "images", categories=["person"])
    (mosaic,) = sorted((args.data / "bigscene-brighton-geotiff").rglob("*.tif"))[:1]
    boxes = dataset.of_image(0).boxes[~dataset.of_image(0).ignore]
    result["rows"] = []
    places = {"plaza": (dataset.image_path(0), boxes), "brighton": (mosaic, np.zeros((0, 4)))}
    for name, (path, objects) in places.items():
        for filter_name in ("rgb", "thermal"):
            for tile, overlap in TILES.items():
                backend = open_model(model_path("thermal"), tile=tile, threads=args.threads)
                learned = filter_of(args, filter_name, tile)
                with open_scene(path, stretch=backend.spec.stretch) as scene:
                    plan = plan_scan(scene, backend.spec, ScanOptions(overlap, coarse=None))
                    counts = Counts()
                    counts.add(objects, plan, Decisions.without_model(scene, plan, learned))
                row = {"place": name, "filter": filter_name, "tile": tile, **counts.row()}
                result["rows"].append(row)
                print(f"  {row}")
                save()


RUN: dict[str, Callable[[argparse.Namespace, dict[str, Any], Callable[[], None]], None]] = {
    "train": train_filters,
    "cost": measure_cost,
    "thermal": measure_thermal,
    "scenes": measure_scenes,
    "places": measure_places,
}


# ---------------------------------------------------------------------------------------------------------- filters


def filter_of(
    args: argparse.Namespace, name: str, tile: int, backend: str = "auto", threads: int | None = None
) -> LearnedFilter:
    """Open a filter that `train` made."""
    file = FilterFile.of(args.work / f"{name}.filter.onnx", backend)
    return file.open(tile, threads or ScanOptions().readers)


def filters_for(
    args: argparse.Namespace, backend: Backend, name: str, data: Path, overlap: int
) -> dict[str, TileFilter]:
    """Return the learned filter of this name, and the contrast filter calibrated on its training images."""
    measured = measure_contrasts(backend.spec, data / "annotations.json", data / "images", overlap=overlap)
    contrast = calibrate_contrast_filter(measured, tile=backend.spec.tile)
    return {"learned": filter_of(args, name, backend.spec.tile), "empty": contrast}


class Decisions:
    """A `RecordStore` that keeps which tiles of the full pass a filter skipped, and nothing else."""

    def __init__(self, plan: ScanPlan) -> None:
        self.run = np.zeros(len(plan.full.grid), bool)
        self.skipped = self.unfamiliar = 0

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        return iter(())

    def append(self, record: BatchRecord) -> None:
        self.run[record.tiles] = True
        self.skipped += len(record.filtered)
        self.unfamiliar += record.unfamiliar

    @classmethod
    def without_model(cls, scene: Scene, plan: ScanPlan, tile_filter: TileFilter) -> Decisions:
        """Return the decisions of a filter about a scene, without running a detector."""
        found = cls(plan)
        for tile in plan.full.grid.tiles:
            if not scene.is_empty(tile.x, tile.y, tile.width, tile.height):
                content = scene.read(tile.x, tile.y, tile.width, tile.height, plan.full.content_size)
                outcome = tile_filter(content)
                found.run[tile.index] = outcome != "filtered"
                found.skipped += outcome == "filtered"
                found.unfamiliar += outcome == "unfamiliar"
        return found


@dataclass
class Counts:
    """Counts over scenes."""

    objects: int = 0
    kept: int = 0
    tiles: int = 0
    skipped: int = 0
    unfamiliar: int = 0
    occupied: int = 0

    def add(self, boxes: np.ndarray, plan: ScanPlan, decisions: Decisions) -> None:
        """Count the tiles, and the objects (M, 4) of which a tile that holds them whole is kept."""
        grid = plan.full.grid
        bounds = grid.bounds(np.arange(len(grid)))
        occupied = np.zeros(len(grid), bool)
        for box in boxes:
            whole = (bounds[:, :2] <= box[:2]).all(1) & (bounds[:, 2:] >= box[2:]).all(1)
            if not whole.any():
                whole = (bounds[:, :2] < box[2:]).all(1) & (bounds[:, 2:] > box[:2]).all(1)
            occupied |= whole
            self.kept += bool(decisions.run[whole].any())
        self.objects += len(boxes)
        self.tiles += len(grid)
        self.skipped += decisions.skipped
        self.unfamiliar += decisions.unfamiliar
        self.occupied += int(occupied.sum())

    def row(self) -> dict[str, Any]:
        """Return the counts, and the recall with its interval."""
        missed = self.objects - self.kept
        low, high = interval(missed, self.objects)
        return {
            "objects": self.objects,
            "missed": missed,
            "recall": round(self.kept / max(self.objects, 1), 5),
            "recall_95": [low, high],
            "tiles": self.tiles,
            "occupied": round(self.occupied / self.tiles, 4),
            "skipped": round(self.skipped / self.tiles, 4),
            "unfamiliar": round(self.unfamiliar / self.tiles, 4),
        }


def interval(missed: int, count: int) -> tuple[float, float]:
    """Return the two-sided 95 % interval of a recall (Clopper and Pearson).

    >>> interval(0, 100), interval(5, 100)
    ((0.96378, 1.0), (0.88717, 0.98357))
    """
    if not count:
        return 0.0, 1.0
    low = recall_bound(missed, count, 0.975)
    high = 1.0 if missed == 0 else 1 - recall_bound(count - missed, count, 0.975)
    return round(low, 5), round(high, 5)


def seconds_per_tile(backend: Backend, scene: Scene, options: ScanOptions) -> tuple[float, float]:
    """Return the wall time and the CPU time of a dense scan for a tile, from the first tiles of a scene."""
    side = backend.spec.tile
    rows = max(1, LONGEST_DENSE * (side - (options.overlap or 0)) // scene.width)
    top = TopOfScene(scene, side + (rows - 1) * (side - (options.overlap or 0)))
    plan = plan_scan(top, backend.spec, options)
    collect(scan(backend, top, plan))  # warms up
    began, cpu_began = time.perf_counter(), time.process_time()
    collect(scan(backend, top, plan))
    return (time.perf_counter() - began) / plan.tiles, (time.process_time() - cpu_began) / plan.tiles


def hits(boxes: np.ndarray, found: SceneResult) -> int:
    """Count the boxes that have a detection with an IoU of 0.5 or more."""
    detections = found.detections.boxes.astype(float)
    return sum(1 for box in boxes if len(detections) and iou_of_pairs(box[None], detections).max() >= 0.5)


def record_of(record: Any) -> dict[str, Any]:
    """Return the fields of a record that a reader of the results needs."""
    names = ("reduction", "bound", "objects", "missed", "held_out", "skipped", "unfamiliar")
    return {name: getattr(record, name) for name in names}


# ----------------------------------------------------------------------------------------------------- drawn scenes


class TopOfScene(Scene):
    """The first `height` rows of pixels of a scene."""

    def __init__(self, scene: Scene, height: int) -> None:
        self.name, self.width, self.height = scene.name, scene.width, min(height, scene.height)
        self._scene = scene

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(x, y, width, height, size)

    def reopen(self) -> Scene:
        return self


class DrawnScene(Scene):
    """A sea, desert or coast with small figures, of any size: the ground repeats, the figures do not.

    Attributes:
        boxes: (M, 4) of the figures.
    """

    def __init__(self, kind: str, side: int, seed: int, *, occupancy: float = 0.0, layout: str = "scattered") -> None:
        """
        Args:
            occupancy: share of the tiles of 512 pixels that hold figures.
            layout: "scattered" puts one to three figures in each of them; "clustered" puts about ten in each of
                adjacent ones.
        """
        self.name, self.width, self.height = f"{kind} {side}", side, side
        rng = np.random.default_rng((seed, KINDS.index(kind)))
        self._ground = draw_ground(kind, rng)
        cells = side // 512
        count = max(1, round(occupancy * cells * cells)) if occupancy else 0
        if layout == "clustered" and count:
            edge = math.ceil(math.sqrt(count))
            x, y = rng.integers(0, max(cells - edge, 0) + 1, 2)
            chosen = [(x + i % edge, y + i // edge) for i in range(count)]
        else:
            chosen = [(i % cells, i // cells) for i in rng.permutation(cells * cells)[:count].tolist()]
        self.figures: list[tuple[int, int, Image, np.ndarray]] = []
        for x, y in chosen:
            for _ in range(int(rng.integers(1, 4) if layout == "scattered" else rng.integers(6, 15))):
                left, top = (int(512 * cell + rng.integers(0, 512 - 32)) for cell in (x, y))
                figure, mask = draw_figure(rng, self._ground[(top + 8) % PERIOD, (left + 8) % PERIOD])
                if left < side - 32 and top < side - 32:
                    self.figures.append((left, top, figure, mask))
        self.boxes = np.array(
            [(x, y, x + mask.shape[1], y + mask.shape[0]) for x, y, _, mask in self.figures], float
        ).reshape(-1, 4)

    def reopen(self) -> Scene:
        return self

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        rows, columns = (np.arange(start, start + count) % PERIOD for start, count in ((y, height), (x, width)))
        pixels = self._ground[np.ix_(rows, columns)]
        near = (
            (self.boxes[:, 0] < x + width)
            & (self.boxes[:, 2] > x)
            & (self.boxes[:, 1] < y + height)
            & (self.boxes[:, 3] > y)
        )
        for index in np.flatnonzero(near).tolist():
            left, top, figure, mask = self.figures[index]
            paste(pixels, figure, mask, left - x, top - y)
        if size != (width, height):
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return pixels


def draw_ground(kind: str, rng: np.random.Generator) -> Image:
    """Draw (PERIOD, PERIOD, 3) pixels of water, sand, or both."""
    shape = (PERIOD, PERIOD)

    def layers(*cells: tuple[float, float, float]) -> np.ndarray:
        return sum(strength * smooth_noise(rng, shape, cell, stretch) for cell, strength, stretch in cells)

    water = layers((60, 6, 3), (12, 5, 3), (4, 4, 2), (1, 3, 1))
    water += 40 * (smooth_noise(rng, shape, 7, 4) > 3.0)  # foam
    sand = layers((150, 12, 1), (25, 6, 4), (5, 3, 1), (1, 4, 1))
    stones = smooth_noise(rng, shape, 5) > 3.2
    sand -= 45 * stones
    share = {"sea": np.zeros(shape, np.float32), "desert": np.ones(shape, np.float32)}.get(kind)
    if share is None:
        line = PERIOD / 2 + 120 * smooth_noise(rng, (1, PERIOD), 300)
        share = np.clip((np.arange(PERIOD)[:, None] - line) / 12, 0, 1).astype(np.float32)
    level = share * (150 + sand) + (1 - share) * (90 + water)
    tint = share[..., None] * np.array((1.08, 1.0, 0.82)) + (1 - share[..., None]) * np.array((0.7, 0.95, 1.15))
    return np.clip(level[..., None] * tint, 0, 255).astype(np.uint8)


def draw_figure(rng: np.random.Generator, ground: np.ndarray) -> tuple[Image, np.ndarray]:
    """Draw a figure of 6 to 24 pixels: its pixels (H, W, 3) and how opaque they are (H, W).

    Args:
        ground: (3,) color that it differs from.
    """
    long, short = rng.uniform(7, 24), rng.uniform(0.3, 0.8)
    angle = rng.uniform(0, 180)
    canvas = np.zeros((48, 48), np.float32)
    axes = (max(2, round(long / 2)), max(2, round(long * short / 2)))
    cv2.ellipse(canvas, (24, 24), axes, angle, 0, 360, 1.0, -1, cv2.LINE_AA)
    rows, columns = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
    mask = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    color = ground.astype(float)
    while np.abs(color - ground).max() < LEAST_CONTRAST:
        color = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.full(3, rng.choice((25.0, 235.0)))
    figure = np.clip(color + rng.normal(0, 8, (*mask.shape, 3)), 0, 255).astype(np.uint8)
    return figure, mask


def paste(pixels: Image, figure: Image, mask: np.ndarray, x: int, y: int) -> None:
    """Put a figure into pixels at a position that may be partly outside."""
    height, width = mask.shape
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, pixels.shape[1]), min(y + height, pixels.shape[0])
    if left >= right or top >= bottom:
        return
    inside = slice(top - y, bottom - y), slice(left - x, right - x)
    opaque = mask[inside][..., None]
    window = pixels[top:bottom, left:right]
    window[:] = (opaque * figure[inside] + (1 - opaque) * window).astype(np.uint8)


def draw_dataset(folder: Path, count: int, *, seed: int) -> None:
    """Write `count` images of 1280 pixels of each kind, of other grounds than the scenes, as a COCO folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for kind in KINDS:
        for number in range(count):
            scene = DrawnScene(kind, PERIOD, seed + number, occupancy=0.6, layout="scattered")
            name = f"{kind}-{number}.png"
            start = 384
            pixels = scene.read(start, start, 1280, 1280)
            cv2.imwrite(str(folder / "images" / name), pixels[..., ::-1])
            images.append({"id": len(images) + 1, "file_name": name, "width": 1280, "height": 1280})
            for x1, y1, x2, y2 in scene.boxes - start:
                if min(x1, y1) < 0 or max(x2, y2) > 1280:
                    continue
                box = [x1, y1, x2 - x1, y2 - y1]
                common = {"image_id": len(images), "category_id": 1, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "bbox": box, **common})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    write_json(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data",
        help="folder of the datasets (default: ../shared/data)")  # fmt: skip
    add("--work", type=Path, default=Path("tile-filter-work"),
        help="folder for drawn images and filters (default: tile-filter-work)")  # fmt: skip
    add("--steps", type=names_from(STEPS), default=STEPS, help="steps to run (default: all)")
    add("--side", type=positive_int, default=16384, help="side of a drawn scene in pixels (default: 16384)")
    add("--epochs", type=positive_int, help="epochs of the training of a filter (default: that of the command)")
    add("--threads", type=positive_int, help="CPU threads (default: all)")
    add("--rehearse", action="store_true", help="run everything in small (default: in full)")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tile_filter.json",
        help="result file (default: benchmarks/results/tile_filter.json)")  # fmt: skip
    args = parser.parse_args(argv)
    if not (args.data / "hituav-val").is_dir():
        parser.error(f"{args.data / 'hituav-val'} does not exist; name the folder of the datasets with --data")
    if args.rehearse:  # with files of its own, so that the full run does not continue from it
        args.side, args.epochs = min(args.side, 4096), args.epochs or 2
        args.work, args.output = args.work / "rehearsal", args.output.with_suffix(".rehearsal.json")
    cv2.setNumThreads(1)
    return args


if __name__ == "__main__":
    sys.exit(main())
