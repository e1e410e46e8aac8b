"""What merges do to crowds where tiles meet: ours, SAHI's and supervision's, on a detector without a fault.

    python benchmarks/seams.py

A scene of 3000 x 3000 pixels is cut into 36 tiles of 640 that share 128. Each tile gives a box for whatever it shows
more than 30 % of, cut at its edges, off by 0.4 pixels (normal, each edge), and scored 0.5 to 1, less for a part. No two
objects have an IoU of 0.5, so that NMS could tell all of them apart. All merges get the same boxes. So what differs is
the merge alone: a real detector adds faults of its own. `tinydet seamtest` measures those on your scene and model.

SAHI and supervision bring another OpenCV than tinydet, so keep them in a venv of their own:
`python -m venv .seams; .seams/bin/pip install -e . sahi supervision; .seams/bin/python benchmarks/seams.py`.
Without them only ours are measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from environment import ROOT, environment

from tinydet._internal.atomic import write_json
from tinydet.geometry.boxes import area, iou_of_pairs
from tinydet.runtime import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import MERGES, Stitcher

SIZE, TILE, OVERLAP = 3000, 640, 128
JITTER, VISIBLE, SAME = 0.4, 0.3, 0.5


class Kind(NamedTuple):
    """Objects of a scene: sides, how many, in groups of 30 with this spread (pixels), or anywhere."""

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


class Views(NamedTuple):
    """Boxes (N, 4) xyxy of all tiles in scene pixels, their scores, and the tile of each."""

    boxes: np.ndarray
    scores: np.ndarray
    tiles: np.ndarray


def main() -> int:
    args = arguments()
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
            f"\n{scene}\n| merge | recall | extra boxes an object | µs a box |\n| --- | --: | --: | --: |", flush=True
        )
        row: dict[str, Any] = {"scene": scene, **kind._asdict(), "merges": {}}
        cases = [(truth := objects(seed, kind), look(truth, grid, seed)) for seed in range(args.seeds)]
        row["objects"], row["views"] = sum(len(t) for t, _ in cases), sum(len(v.boxes) for _, v in cases)
        for name, merge in merges.items():
            scored, seconds = [], 0.0
            for truth, views in cases:
                start = time.process_time()
                boxes, scores = merge(views)
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


Merger = Callable[[Views], tuple[np.ndarray, np.ndarray]]


def available_merges(grid: TileGrid) -> Iterator[tuple[str, Merger]]:
    """Each merge by name: views in, boxes and scores of the scene out."""
    for merge in MERGES:
        yield f"tinydet {merge}", lambda views, merge=merge: ours(views, grid, merge)
    try:
        from sahi.postprocess.combine import GreedyNMMPostprocess, NMSPostprocess
        from sahi.prediction import ObjectPrediction

        def sahi(views: Views, make: Callable[..., Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
            predictions = [
                ObjectPrediction(box, 0, "object", score=score, full_shape=[SIZE, SIZE])
                for box, score in zip(views.boxes.tolist(), views.scores.tolist(), strict=True)
            ]
            merged = make(match_threshold=0.5, match_metric=metric, class_agnostic=False)(predictions)
            return (
                np.array([p.bbox.to_xyxy() for p in merged], float).reshape(-1, 4),
                np.array([p.score.value for p in merged]),
            )

        yield "SAHI default (GREEDYNMM, IOS)", lambda views: sahi(views, GreedyNMMPostprocess, "IOS")
        yield "SAHI NMS (IOU)", lambda views: sahi(views, NMSPostprocess, "IOU")
    except ImportError as error:
        print(f"SAHI is not measured: {error}. Run: pip install sahi supervision, in a venv of its own")
    try:
        import supervision

        def slicer(views: Views) -> tuple[np.ndarray, np.ndarray]:
            """What InferenceSlicer does with the boxes of its slices by default."""
            labels = np.zeros(len(views.boxes), int)
            found = supervision.Detections(xyxy=views.boxes.copy(), confidence=views.scores, class_id=labels)
            merged = found.with_nms(threshold=0.5)
            return merged.xyxy, merged.confidence

        yield "supervision default (NMS, IOU)", slicer
    except ImportError as error:
        print(f"supervision is not measured: {error}. Run: pip install sahi supervision, in a venv of its own")


def ours(views: Views, grid: TileGrid, merge: str) -> tuple[np.ndarray, np.ndarray]:
    stitcher = Stitcher(grid, nms_iou=None, merge=merge, score=0.3)
    labels = np.zeros(len(views.boxes), np.int32)
    boxes = Detections(views.boxes, views.scores, labels, {"tile": views.tiles})
    found = stitcher.add(range(len(grid)), boxes).by_score()
    return found.boxes.astype(float), found.scores


def objects(seed: int, kind: Kind) -> np.ndarray:
    """(N, 4) boxes inside the scene, no two of which have an IoU of 0.5."""
    rng = np.random.default_rng(seed)
    found = np.zeros((0, 4))
    while len(found) < kind.count:
        if kind.spread is None:
            centre = rng.uniform(0, SIZE, (1, 2))
        else:
            centre = rng.uniform(0, SIZE, 2) + rng.normal(0, kind.spread, (30, 2))
        side = rng.uniform(kind.smallest, kind.largest, (len(centre), 1))
        side = side * np.exp(rng.uniform(-0.25, 0.25, (len(centre), 1)) * [1, -1])
        for box in np.concatenate([centre - side / 2, centre + side / 2], axis=1):
            if box.min() >= 0 and box.max() <= SIZE and not (iou_of_pairs(box, found) >= SAME).any():
                found = np.concatenate([found, box[None]])
    return found


def look(truth: np.ndarray, grid: TileGrid, seed: int) -> Views:
    """What a detector without a fault sees on each tile."""
    parts = []
    for tile in grid.tiles:
        rng = np.random.default_rng((seed, tile.index))
        low, high = np.array([tile.x, tile.y] * 2), np.array([tile.x + tile.width, tile.y + tile.height] * 2)
        seen = np.clip(truth, low, high)
        share = area(seen) / area(truth)
        which = np.flatnonzero(share > VISIBLE)
        boxes = np.clip(seen[which] + rng.normal(0, JITTER, (len(which), 4)), low, high)
        scores = rng.uniform(0.5, 1, len(which)) * (0.5 + 0.5 * share[which])
        parts.append(Views(boxes, scores.astype(np.float32), np.full(len(which), tile.index)))
    return Views(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def recall_and_extra(truth: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Share of objects with a box of IoU 0.5 of their own, best score first; boxes beyond these for each object."""
    free = np.ones(len(truth), bool)
    for i in np.argsort(-scores, kind="stable"):
        overlap = np.where(free, iou_of_pairs(boxes[i], truth), 0)
        best = int(overlap.argmax())
        free[best] &= overlap[best] < SAME
    found = int((~free).sum())
    return found / len(truth), (len(boxes) - found) / len(truth)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="scenes of each kind (default 3)")
    parser.add_argument("--quick", dest="seeds", action="store_const", const=1, help="the same as --seeds 1")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "seams.json",
                        help="JSON file (default benchmarks/results/seams.json)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
