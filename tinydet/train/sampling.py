"""Selection of images and tiles for training, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.data.samples import TrainingTile, TrainingTiles, epoch_batches


def without_dense(dataset: Dataset, limit: int) -> Dataset:
    """Remove images with more than `limit` annotations of any kind.

    Raises:
        ValueError: no image is left.
    """
    counts = np.bincount(dataset.image_index, minlength=len(dataset.images))
    if not (counts <= limit).any():
        raise ValueError(
            f"{dataset.source}: every image has more than {limit} annotations, and --dense leaves such images out; "
            "raise it: --dense N"
        )
    return with_images(dataset, counts <= limit)


def with_images(dataset: Dataset, kept: NDArray[np.bool_]) -> Dataset:
    """Select the images where (I,) `kept` is true, with their boxes."""
    boxes = kept[dataset.image_index]
    number = np.cumsum(kept) - 1
    return dataclasses.replace(
        dataset,
        images=tuple(image for image, keep in zip(dataset.images, kept, strict=True) if keep),
        boxes=dataset.boxes[boxes],
        labels=dataset.labels[boxes],
        image_index=number[dataset.image_index[boxes]],
        ignore=dataset.ignore[boxes],
        areas=dataset.areas[boxes],
    )


def without_empty(tiles: TrainingTiles) -> list[TrainingTile]:
    """Return the tiles with at least one object.

    Raises:
        ValueError: no tile has one.
    """
    kept = [tile for index, tile in enumerate(tiles.tiles) if tiles.boxes_in(index)[1].any()]
    if not kept:
        raise ValueError(f"{tiles.dataset.source}: no tile has an object; train on all tiles")
    return kept


def shapes_of(tiles: TrainingTiles) -> list[bool]:
    """Return whether each tile is wider than high: tiles of one kind need little padding together."""
    return [tile.width > tile.height for tile in tiles.tiles]


def grouped_batches(wide: Sequence[bool], batch: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return `epoch_batches` that never mix wide tiles with others; the last batch of either kind may be short.

    Batches are listed in the order in which they fill up, so that the two kinds stay mixed over the epoch.
    """
    (order,) = epoch_batches(len(wide), max(len(wide), 1), seed=seed, epoch=epoch)
    batches: list[list[int]] = []
    filling: dict[bool, list[int]] = {False: [], True: []}
    for index in order:
        group = filling[wide[index]]
        group.append(index)
        if len(group) == batch:
            batches.append(group.copy())
            group.clear()
    return batches + [group for group in filling.values() if group]
