"""How much contrast objects have at least, measured on annotated images; which tiles may be passed over follows."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.infer.skip import Gate, contrast, spots
from tinydet.runtime.scan import OVERLAP, plan_tiles, seen_size
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.sources import coco_sources
from tinydet.spec import ModelSpec

RECALL = 0.995  # of objects, on the calibration set
CONFIDENCE = 0.95
MARGIN = 0.7  # of the threshold: other images may be fainter than those that it was measured on
DEFAULT_SIZE = 12.0  # pixels, where a model does not say how large its objects are
MOVED = 2  # an object that moved by a part of its side changes less than one that came


@dataclass(frozen=True)
class Looks:
    """What a set of annotated images looks like, tile by tile.

    Attributes:
        size: side of the objects that were looked for, in pixels of the model.
        tiles: contrast of each tile.
        objects: of each object the contrast of the tile that shows it best.
        changes: by how much each object changes the spots where there was only what surrounds it.
        bands: of the images; None for those that call themselves red, green and blue.
    """

    size: float
    tiles: list[int]
    objects: list[int]
    changes: list[int]
    bands: tuple[int, ...] | None = None

    def recall(self, threshold: int) -> float:
        """Share of the objects whose tile is run."""
        return sum(look >= threshold for look in self.objects) / len(self.objects)

    def saving(self, threshold: int) -> float:
        """Share of the tiles that are passed over."""
        return sum(look < threshold for look in self.tiles) / len(self.tiles)

    def motion_recall(self, threshold: int) -> float:
        """Share of the objects that are noticed where they come."""
        return sum(change >= threshold for change in self.changes) / len(self.changes)


def look_at(
    spec: ModelSpec,
    annotations: Path,
    images: Path | None = None,
    *,
    scale: float = 1.0,
    overlap: int = OVERLAP,
    bands: tuple[int, ...] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Looks:
    """Measure the contrast of tiles and objects.

    An object counts as looked at where some tile that holds all of it is run. Objects marked `ignore` or `iscrowd` do
    not count.

    Args:
        annotations: COCO file of images.
        images: their folder.
        bands: of them, see `open_scene`.
        progress: called with 1 for each image.

    Raises:
        ValueError: no COCO file, or one without objects.
    """
    size = DEFAULT_SIZE if spec.object_sizes is None else spec.object_sizes[1]
    sources = coco_sources(annotations, images)
    truth = _boxes_by_image(annotations)
    tile_looks: list[int] = []
    object_looks: list[int] = []
    changes: list[int] = []
    for source in sources:
        with open_scene(source.path, stretch=spec.stretch, bands=bands) as scene:
            plan = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=scale)
            looks = [
                contrast(scene.read(tile.x, tile.y, tile.width, tile.height, seen_size(plan)), size)
                for tile in plan.grid.tiles
            ]
            boxes = truth.get(source.image_id, ())
            changes += [_change_by(scene, box, size, scale) for box in boxes]
        tile_looks += looks
        bounds = plan.grid.bounds(np.arange(len(plan.grid)))
        for box in boxes:
            object_looks.append(max((looks[i] for i in _holding(bounds, box)), default=0))
        if progress is not None:
            progress(1)
    if not object_looks:
        raise ValueError(f"{annotations} has no objects to measure by; name a file with boxes")
    return Looks(size, tile_looks, object_looks, changes, bands)


def calibrate(looks: Looks, *, tile: int, scale: float = 1.0, recall: float = RECALL) -> Gate:
    """The gate at which `recall` of the objects are still looked at, also where they are fainter by `MARGIN`.

    Args:
        looks: at images that the model was not trained on, and that are like those to come.
        tile, scale: with which they were looked at.
    """
    threshold = int(MARGIN * highest_threshold(looks.objects, recall))
    motion = max(highest_threshold(looks.changes, recall) // MOVED, 1)
    missed = sum(look < threshold for look in looks.objects)
    return Gate(
        threshold,
        looks.size,
        tile,
        scale,
        looks.recall(threshold),
        recall_bound(missed, len(looks.objects)),
        len(looks.objects),
        len(looks.tiles),
        looks.saving(threshold),
        motion,
        looks.motion_recall(motion),
        looks.bands,
    )


def highest_threshold(looks: Sequence[int], recall: float) -> int:
    """The highest threshold that at least the share `recall` of the looks reaches.

    >>> highest_threshold([3, 50, 60, 70], 0.75), highest_threshold([3, 50, 60, 70], 0.76)
    (50, 3)
    """
    may_miss = math.floor(len(looks) * (1 - recall) + 1e-9)
    return sorted(looks)[may_miss]


def recall_bound(missed: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The lower bound of a recall of which `missed` of `count` were seen to be missed (Clopper and Pearson).

    >>> round(recall_bound(0, 597), 4)
    0.995
    """
    if missed >= count:
        return 0.0

    def at_most_missed(rate: float) -> float:
        terms = (
            math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
            + i * math.log(rate) + (count - i) * math.log1p(-rate)
            for i in range(missed + 1)
        )  # fmt: skip
        return sum(map(math.exp, terms))

    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most_missed(middle) > 1 - confidence else (low, middle)
    return 1 - low


def _change_by(scene: Scene, box: NDArray[np.float64], size: float, scale: float) -> int:
    """By how much an object changes the spots where there was only what surrounds it."""
    margin = math.ceil(2 * size / scale)
    low = np.clip(np.floor(box[:2]) - margin, 0, (scene.width - 1, scene.height - 1)).astype(int)
    high = np.clip(np.ceil(box[2:]) + margin, low + 1, (scene.width, scene.height)).astype(int)
    width, height = (max(1, round(float(side) * scale)) for side in high - low)
    with_it = scene.read(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]), (width, height))
    inside = np.zeros((height, width), np.uint8)
    x1, y1 = np.floor((box[:2] - low) * scale).astype(int).tolist()
    x2, y2 = np.ceil((box[2:] - low) * scale).astype(int).tolist()
    inside[max(y1, 0) : y2, max(x1, 0) : x2] = 1
    without = np.asarray(cv2.inpaint(with_it, inside, 3, cv2.INPAINT_TELEA), np.uint8)
    return int(cv2.absdiff(spots(with_it, size), spots(without, size)).max())


def _holding(bounds: NDArray[np.float64], box: NDArray[np.float64]) -> list[int]:
    """Tiles that hold a box whole; where none does, those that see a part of it."""
    whole = (bounds[:, :2] <= box[:2]).all(axis=1) & (bounds[:, 2:] >= box[2:]).all(axis=1)
    if not whole.any():
        whole = (bounds[:, :2] < box[2:]).all(axis=1) & (bounds[:, 2:] > box[:2]).all(axis=1)
    return [int(i) for i in np.flatnonzero(whole)]


def _boxes_by_image(path: Path) -> dict[int, list[NDArray[np.float64]]]:
    """xyxy of the objects that count."""
    data = path.read_bytes()
    document = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    boxes: dict[int, list[NDArray[np.float64]]] = {}
    try:
        for entry in _counting(document.get("annotations", [])):
            x, y, width, height = map(float, entry["bbox"])
            boxes.setdefault(int(entry["image_id"]), []).append(np.array([x, y, x + width, y + height]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: an annotation without image_id and bbox ({error!r}); see tinydet data check"
        ) from error
    return boxes


def _counting(annotations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (entry for entry in annotations if not (entry.get("ignore") or entry.get("iscrowd")))
