"""Which images are trained on, and in which batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.data.samples import TrainingTiles, epoch_batches
from tinydet.geometry.tiles import Tile


def without_dense(dataset: Dataset, limit: int) -> Dataset:
    """The data set without the images that have more than `limit` annotations, of whatever kind.

    Raises:
        ValueError: where no image is left.
    """
    counts = np.bincount(dataset.image_index, minlength=len(dataset.images))
    if not (counts <= limit).any():
        raise ValueError(
            f"{dataset.source}: every image has more than {limit} annotations; raise the limit of dense images"
        )
    return with_images(dataset, counts <= limit)


def with_images(dataset: Dataset, kept: NDArray[np.bool_]) -> Dataset:
    """The part of a data set that (I,) says, with the boxes of these images."""
    boxes = kept[dataset.image_index]
    number = np.cumsum(kept) - 1
    return dataclasses.replace(
        dataset,
        images=tuple(image for image, keep in zip(dataset.images, kept, strict=True) if keep),
        boxes=dataset.boxes[boxes],
        labels=dataset.labels[boxes],
        image_index=number[dataset.image_index[boxes]],
        ignore=dataset.ignore[boxes],
    )


def without_empty(tiles: TrainingTiles) -> list[tuple[int, Tile]]:
    """The tiles that show an object.

    Raises:
        ValueError: where none does.
    """
    kept = [tile for index, tile in enumerate(tiles.tiles) if tiles.boxes_in(index)[1].any()]
    if not kept:
        raise ValueError(f"{tiles.dataset.source}: no tile shows an object; train on all of them")
    return kept


def shapes_of(tiles: TrainingTiles) -> list[bool]:
    """Whether each tile is wider than high: tiles of one kind pad each other little."""
    return [tile.width > tile.height for _, tile in tiles.tiles]


def grouped_batches(wide: Sequence[bool], batch: int, *, seed: int, epoch: int) -> list[list[int]]:
    """`epoch_batches` in which no batch mixes wide tiles with others; the last batch of either kind may be short.

    Batches come in the order in which they are full, so that the two kinds stay mixed over the epoch.
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
