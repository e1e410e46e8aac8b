"""Recall and extra boxes of tile merges in crowds, for tinydet, SAHI and supervision with a perfect detector.

    python benchmarks/seams.py

A scene of 3000 x 3000 pixels is cut into 36 tiles of 640 pixels that overlap by 128. The detector reports a box for
each object that is more than 30 % visible in a tile. The box is clipped to the tile, each of its edges has normal noise
of 0.4 pixels, and its score is between 0.5 and 1, lower for a part of an object. No two objects have an IoU of 0.5 or
more, so NMS could keep all of them. All merges receive the same boxes, so only the merges differ. A real detector adds
errors of its own; `tinydet seamtest` measures them on your scene and model.

Takes about half a minute. SAHI and supervision depend on another OpenCV package than tinydet, so install them in a
separate environment: `python -m venv .seams; .seams/bin/pip install -e . sahi supervision; .seams/bin/python
benchmarks/seams.py`. Without them, only the merges of tinydet are measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from environment import ROOT, environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.geometry.boxes import area, iou_of_pairs
from tinydet.runtime import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import MERGES, Stitcher

SIZE, TILE, OVERLAP = 3000, 640, 128
JITTER, VISIBLE, SAME = 0.4, 0.3, 0.5


class Kind(NamedTuple):
    """Objects of a scene: smallest and largest side in pixels, and their number.

    With a `spread` they are in groups of 30 with this standard deviation in pixels, otherwise anywhere.
    """

    smallest: float
    largest: float
    count: int
    spread: float | None


SCENES = {
    "scattered 8-20 px": Kind(8, 20, 1500, None),
    "tight crowd 8-20 px": Kind(8, 20, 1500, 12),
    "tight crowd 20-120 px": Kind(20, 120, 600, 12),
    "150-400 px, larger than the overlap": Kind(150, 400, 60, None),
}


class TileBoxes(NamedTuple):
    """Boxes (N, 4) xyxy of all tiles in scene pixels, their scores (N,), and the tile of each (N,)."""

    boxes: np.ndarray
    scores: np.ndarray
    tiles: np.ndarray


@command("benchmarks/seams.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    grid = TileGrid(SIZE, SIZE, TILE, OVERLAP)
    merges = dict(available_merges(grid))
    result: dict[str, Any] = {
        "command": "python benchmarks/seams.py",
        **environment(),
        "seeds": args.seeds,
        "scenes": [],
    }
    for scene, kind in SCENES.items():
        print(
            f"\n{scene}\n| merge | recall | extra boxes per object | µs per box |\n| --- | --: | --: | --: |",
            flush=True,
        )
        row: dict[str, Any] = {"scene": scene, **kind._asdict(), "merges": {}}
        cases = [(truth := objects(seed, kind), detect(truth, grid, seed)) for seed in range(args.seeds)]
        row["objects"], row["views"] = sum(len(t) for t, _ in cases), sum(len(found.boxes) for _, found in cases)
        for name, merge in merges.items():
            scored, seconds = [], 0.0
            for truth, found in cases:
                start = time.process_time()
                boxes, scores = merge(found)
                seconds += time.process_time() - start
                scored.append(recall_and_extra(truth, boxes, scores))
            recall, extra = ([float(value) for value in column] for column in zip(*scored, strict=True))
            row["merges"][name] = {
                "recall": [round(value, 5) for value in recall],
                "extra": [round(value, 5) for value in extra],
                "microseconds_per_box": round(seconds / row["views"] * 1e6, 1),
            }
            cells = f"{statistics.mean(recall):.4f} | {statistics.mean(extra):.4f}"
            print(f"| {name} | {cells} | {row['merges'][name]['microseconds_per_box']} |", flush=True)
        result["scenes"].append(row)
    write_json(args.output, result)
    print(f"\nwrote {args.output}")
    return 0


Merger = Callable[[TileBoxes], tuple[np.ndarray, np.ndarray]]


def available_merges(grid: TileGrid) -> Iterator[tuple[str, Merger]]:
    """Yield the installed merges by name. They take the boxes of the tiles and return boxes and scores of the scene."""
    for merge in MERGES:
        yield f"tinydet {merge}", lambda found, merge=merge: ours(found, grid, merge)
    try:
        from sahi.postprocess.combine import GreedyNMMPostprocess, NMSPostprocess
        from sahi.prediction import ObjectPrediction

        def sahi(found: TileBoxes, make: Callable[..., Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
            predictions = [
                ObjectPrediction(box, 0, "object", score=score, full_shape=[SIZE, SIZE])
                for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True)
            ]
            merged = make(match_threshold=0.5, match_metric=metric, class_agnostic=False)(predictions)
            return (
                np.array([p.bbox.to_xyxy() for p in merged], float).reshape(-1, 4),
                np.array([p.score.value for p in merged]),
            )

        yield "SAHI default (GREEDYNMM, IOS)", lambda found: sahi(found, GreedyNMMPostprocess, "IOS")
        yield "SAHI NMS (IOU)", lambda found: sahi(found, NMSPostprocess, "IOU")
    except ImportError as error:
        print(f"SAHI is skipped: {error}. Run in a separate environment: pip install sahi supervision")
    try:
        import supervision

        def slicer(found: TileBoxes) -> tuple[np.ndarray, np.ndarray]:
            """Merge as InferenceSlicer does by default."""
            labels = np.zeros(len(found.boxes), int)
            detections = supervision.Detections(xyxy=found.boxes.copy(), confidence=found.scores, class_id=labels)
            merged = detections.with_nms(threshold=0.5)
            return merged.xyxy, merged.confidence

        yield "supervision default (NMS, IOU)", slicer
    except ImportError as error:
        print(f"supervision is skipped: {error}. Run in a separate environment: pip install sahi supervision")


def ours(found: TileBoxes, grid: TileGrid, merge: str) -> tuple[np.ndarray, np.ndarray]:
    stitcher = Stitcher(grid, nms_iou=None, merge=merge, score=0.3)
    labels = np.zeros(len(found.boxes), np.int32)
    boxes = Detections(found.boxes, found.scores, labels, {"tile": found.tiles})
    merged = stitcher.add(range(len(grid)), boxes).by_score()
    return merged.boxes.astype(float), merged.scores


def objects(seed: int, kind: Kind) -> np.ndarray:
    """Return random boxes (N, 4) xyxy inside the scene, no two of them with an IoU of 0.5 or more."""
    rng = np.random.default_rng(seed)
    found = np.zeros((0, 4))
    while len(found) < kind.count:
        if kind.spread is None:
            center = rng.uniform(0, SIZE, (1, 2))
        else:
            center = rng.uniform(0, SIZE, 2) + rng.normal(0, kind.spread, (30, 2))
        side = rng.uniform(kind.smallest, kind.largest, (len(center), 1))
        side = side * np.exp(rng.uniform(-0.25, 0.25, (len(center), 1)) * [1, -1])
        for box in np.concatenate([center - side / 2, center + side / 2], axis=1):
            if box.min() >= 0 and box.max() <= SIZE and not (iou_of_pairs(box, found) >= SAME).any():
                found = np.concatenate([found, box[None]])
    return found


def detect(truth: np.ndarray, grid: TileGrid, seed: int) -> TileBoxes:
    """Return the boxes of a perfect detector on each tile."""
    parts = []
    for tile in grid.tiles:
        rng = np.random.default_rng((seed, tile.index))
        low, high = np.array([tile.x, tile.y] * 2), np.array([tile.x + tile.width, tile.y + tile.height] * 2)
        visible = np.clip(truth, low, high)
        share = area(visible) / area(truth)
        which = np.flatnonzero(share > VISIBLE)
        boxes = np.clip(visible[which] + rng.normal(0, JITTER, (len(which), 4)), low, high)
        scores = rng.uniform(0.5, 1, len(which)) * (0.5 + 0.5 * share[which])
        parts.append(TileBoxes(boxes, scores.astype(np.float32), np.full(len(which), tile.index)))
    return TileBoxes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def recall_and_extra(truth: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Match boxes with objects at IoU 0.5, by descending score; return recall and unmatched boxes per object."""
    free = np.ones(len(truth), bool)
    for i in np.argsort(-scores, kind="stable"):
        overlap = np.where(free, iou_of_pairs(boxes[i], truth), 0)
        best = int(overlap.argmax())
        free[best] &= overlap[best] < SAME
    found = int((~free).sum())
    return found / len(truth), (len(boxes) - found) / len(truth)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of scenes of each kind (default: 3)")
    parser.add_argument("--quick", dest="seeds", action="store_const", const=1, help="same as --seeds 1")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "seams.json",
                        help="result file (default: benchmarks/results/seams.json)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
