"""Calibrate the contrast filter: measure contrasts on annotated images and choose thresholds from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._internal.progress import Progress
from tinydet.data.coco_file import boxes_of, is_ignored
from tinydet.evaluate.tile_filter import RECALL, recall_bound
from tinydet.infer.coco_images import load_images
from tinydet.infer.contrast_filter import ContrastFilter, contrast, spots
from tinydet.runtime.plan import OVERLAP, plan_tiles
from tinydet.runtime.scenes import Scene
from tinydet.spec import ModelSpec

MARGIN = 0.7  # factor on the threshold: other images may be fainter than the calibration images
DEFAULT_SIZE = 12.0  # pixels, for models that do not state their object sizes
MOTION_DIVISOR = 2  # an object that moves by part of its side changes less than one that appears


@dataclass(frozen=True)
class Contrasts:
    """Contrasts measured on a set of annotated images, each 0 to 255.

    Attributes:
        size: side of the objects to look for, in pixels of the model's input.
        tiles: contrast of each tile.
        objects: for each object, the contrast of the tile that shows it best.
        changes: for each object, how much it changes the spots compared with the background alone.
        bands: 1-based band indices that were read; None for the RGB bands.
    """

    size: float
    tiles: list[int]
    objects: list[int]
    changes: list[int]
    bands: tuple[int, ...] | None = None

    def recall(self, threshold: int) -> float:
        """Return the share of the objects whose tile is not skipped."""
        return sum(value >= threshold for value in self.objects) / len(self.objects)

    def saving(self, threshold: int) -> float:
        """Return the share of the tiles that are skipped."""
        return sum(value < threshold for value in self.tiles) / len(self.tiles)

    def motion_recall(self, threshold: int) -> float:
        """Return the share of the objects that are noticed when they appear."""
        return sum(change >= threshold for change in self.changes) / len(self.changes)


def measure_contrasts(
    spec: ModelSpec,
    annotations: Path,
    images: Path | None = None,
    *,
    scale: float = 1.0,
    overlap: int = OVERLAP,
    bands: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> Contrasts:
    """Measure the contrast of all tiles and objects of annotated images.

    An object counts as covered if at least one tile that contains it completely is run. Objects marked `ignore` or
    `iscrowd` do not count.

    Args:
        annotations: COCO file.
        images: folder of its images; see `load_images` for the default.
        bands: 1-based band indices to read, see `open_scene`.
        progress: called with 1 after each image.

    Raises:
        ValueError: as `load_images`, or the file has no objects.
    """
    size = DEFAULT_SIZE if spec.object_sizes is None else spec.object_sizes[1]
    document = load_images(annotations, images)
    tile_contrasts: list[int] = []
    object_contrasts: list[int] = []
    changes: list[int] = []
    for image in document.images:
        with document.open(image, stretch=spec.stretch, bands=bands) as scene:
            plan = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=scale)
            in_scene = [
                contrast(scene.read(tile.x, tile.y, tile.width, tile.height, plan.content_size), size)
                for tile in plan.grid.tiles
            ]
            boxes = boxes_of([entry for entry in document.annotations(image) if not is_ignored(entry)])
            changes += [_change_by(scene, box, size, scale) for box in boxes]
        tile_contrasts += in_scene
        bounds = plan.grid.bounds(np.arange(len(plan.grid)))
        for box in boxes:
            object_contrasts.append(max((in_scene[i] for i in _tiles_of(bounds, box)), default=0))
        if progress is not None:
            progress(1)
    if not object_contrasts:
        raise ValueError(f"{annotations} has no objects to calibrate on; name a file with boxes")
    return Contrasts(size, tile_contrasts, object_contrasts, changes, bands)


def calibrate_contrast_filter(
    contrasts: Contrasts, *, tile: int, scale: float = 1.0, recall: float = RECALL
) -> ContrastFilter:
    """Return the filter that keeps `recall` of the objects, with a `MARGIN` for fainter images.

    Args:
        contrasts: of images that the model was not trained on and that resemble those to scan.
        tile, scale: tile size and resize factor of the measurement.
    """
    threshold = int(MARGIN * highest_threshold(contrasts.objects, recall))
    motion = max(highest_threshold(contrasts.changes, recall) // MOTION_DIVISOR, 1)
    missed = sum(value < threshold for value in contrasts.objects)
    return ContrastFilter(
        threshold,
        contrasts.size,
        tile,
        scale,
        contrasts.recall(threshold),
        recall_bound(missed, len(contrasts.objects)),
        len(contrasts.objects),
        len(contrasts.tiles),
        contrasts.saving(threshold),
        motion,
        contrasts.motion_recall(motion),
        contrasts.bands,
    )


def highest_threshold(values: Sequence[int], recall: float) -> int:
    """Return the highest threshold that at least the share `recall` of the values reaches.

    >>> highest_threshold([3, 50, 60, 70], 0.75), highest_threshold([3, 50, 60, 70], 0.76)
    (50, 3)
    """
    may_miss = math.floor(len(values) * (1 - recall) + 1e-9)
    return sorted(values)[may_miss]


def _change_by(scene: Scene, box: NDArray[np.float64], size: float, scale: float) -> int:
    """Return how much an object changes the spots compared with inpainted background, 0 to 255."""
    margin = math.ceil(2 * size / scale)
    low = np.clip(np.floor(box[:2]) - margin, 0, (scene.width - 1, scene.height - 1)).astype(int)
    high = np.clip(np.ceil(box[2:]) + margin, low + 1, (scene.width, scene.height)).astype(int)
    width, height = (max(1, round(float(side) * scale)) for side in high - low)
    with_object = scene.read(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]), (width, height))
    inside = np.zeros((height, width), np.uint8)
    x1, y1 = np.floor((box[:2] - low) * scale).astype(int).tolist()
    x2, y2 = np.ceil((box[2:] - low) * scale).astype(int).tolist()
    inside[max(y1, 0) : y2, max(x1, 0) : x2] = 1
    background = np.asarray(cv2.inpaint(with_object, inside, 3, cv2.INPAINT_TELEA), np.uint8)
    return int(cv2.absdiff(spots(with_object, size), spots(background, size)).max())


def _tiles_of(bounds: NDArray[np.float64], box: NDArray[np.float64]) -> list[int]:
    """Return the tiles that contain a box completely, or if there are none, those that overlap it."""
    chosen = (bounds[:, :2] <= box[:2]).all(axis=1) & (bounds[:, 2:] >= box[2:]).all(axis=1)
    if not chosen.any():
        chosen = (bounds[:, :2] < box[2:]).all(axis=1) & (bounds[:, 2:] > box[:2]).all(axis=1)
    return [int(i) for i in np.flatnonzero(chosen)]
