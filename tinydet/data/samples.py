"""Training samples: tiles of the data set's images, cut by the same `TileGrid` as at inference, flipped at random.

Or by the TinyPerson benchmark's cutter: then the samples are those that its cut files hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tinydet.data.coco import Dataset, read_pixels
from tinydet.geometry.boxes import area
from tinydet.geometry.tiles import Tile, TileGrid

VISIBLE = 0.7  # an object belongs to a tile if sqrt(visible area / area) is at least this (the benchmark's cutter)

Slivers = Literal["ignore", "drop"]  # what a box becomes in a tile that shows less of it
Cut = Callable[[int, int], Sequence[Tile]]  # the tiles of an image of this width and height


@dataclass(frozen=True)
class Sample:
    """One tile: pixels (h, w, 3) uint8 RGB; boxes xyxy float32 in its pixels; labels; ignore regions."""

    pixels: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]  # (M, 4)
    labels: npt.NDArray[np.int64]  # (M,)
    regions: npt.NDArray[np.float32]  # (R, 4)


class TrainingTiles:
    """All training tiles of a data set, in a fixed order; an image that fits into a tile is one tile.

    What a sample looks like depends on (seed, epoch, index) alone, so a resumed run sees what an uninterrupted one
    would have seen.

    Args:
        cache_bytes: decoded images are kept up to this size, the longest unused is dropped first.
        cut: where to cut instead, such as `tinydet.data.sub_images.benchmark_tiles`; None: by `TileGrid`.
        slivers: "ignore" keeps a sliver of an object as an ignore region, and the visible part of an ignore region
            however small; "drop" keeps neither, as the benchmark, for which what lies outside the image is hidden too.
        transform: changes each sample before it is flipped, such as `tinydet.data.scale_match.ScaleMatch`. Its
            generator follows from (seed, epoch, index) too.
    """

    def __init__(
        self,
        dataset: Dataset,
        tile: int,
        overlap: int,
        *,
        flip: bool = True,
        cache_bytes: int = 2 << 30,
        cut: Cut | None = None,
        slivers: Slivers = "ignore",
        transform: Callable[[Sample, np.random.Generator], Sample] | None = None,
    ) -> None:
        if slivers not in ("ignore", "drop"):
            raise ValueError(f"slivers are 'ignore' or 'drop', got {slivers!r}")
        self.dataset = dataset
        self.flip = flip
        self.slivers = slivers
        self.transform = transform
        self.tiles: list[tuple[int, Tile]] = [
            (index, piece)
            for index, image in enumerate(dataset.images)
            for piece in (
                TileGrid(image.width, image.height, tile, overlap).tiles
                if cut is None
                else cut(image.width, image.height)
            )
        ]
        self._cache: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0

    def __len__(self) -> int:
        return len(self.tiles)

    def sample(self, index: int, *, seed: int, epoch: int) -> Sample:
        """Tile `index` as seen in `epoch`.

        Raises:
            ValueError: naming the image, where it cannot be read.
        """
        image, tile = self.tiles[index]
        pixels = self._pixels(image)[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
        boxes, objects, regions = self.shown(index)
        sample = Sample(
            pixels,
            boxes[objects].astype(np.float32),
            self.dataset.of_image(image).labels[objects],
            boxes[regions].astype(np.float32),
        )
        if self.transform is not None:
            sample = self.transform(sample, np.random.default_rng((seed, epoch, index, 1)))
        if self.flip and np.random.default_rng((seed, epoch, index)).random() < 0.5:
            sample = flip_horizontally(sample)
        return sample

    def shown(self, index: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """What tile `index` shows of its image's boxes: (M, 4) clipped, in its pixels; which are its objects (M,), and
        which its ignore regions (M,)."""
        image, tile = self.tiles[index]
        found = self.dataset.of_image(image)
        boxes, visible = clip_to_tile(found.boxes, tile, found.areas if self.slivers == "drop" else None)
        return boxes, *share_out(found.ignore, visible, self.slivers)

    def _pixels(self, image: int) -> npt.NDArray[np.uint8]:
        if image in self._cache:
            self._cache.move_to_end(image)
            return self._cache[image]
        pixels = read_pixels(self.dataset, image)
        self._cache[image] = pixels
        self._cached += pixels.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return pixels


def clip_to_tile(
    boxes: npt.NDArray[np.float64], tile: Tile, areas: npt.NDArray[np.float64] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Boxes (M, 4) in image pixels -> clipped boxes in tile pixels, and sqrt(visible area / area) of each.

    Args:
        areas: (M,) square pixels to compare with; None for those of `boxes`.
    """
    local = boxes - np.array([tile.x, tile.y, tile.x, tile.y], dtype=np.float64)
    clipped = local.copy()
    clipped[:, 0::2] = local[:, 0::2].clip(0, tile.width)
    clipped[:, 1::2] = local[:, 1::2].clip(0, tile.height)
    of_whole = area(local) if areas is None else areas
    return clipped, np.sqrt(area(clipped) / np.maximum(of_whole, np.finfo(np.float64).tiny))


def share_out(
    ignore: npt.NDArray[np.bool_], visible: npt.NDArray[np.float64], slivers: Slivers
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which boxes are objects of a tile and which are its ignore regions, from how much of each it shows."""
    objects = ~ignore & (visible >= VISIBLE)
    if slivers == "drop":
        return objects, ignore & (visible >= VISIBLE)
    # A sliver of an object is neither an object nor background; nor is an ignore region.
    return objects, (ignore | (visible < VISIBLE)) & (visible > 0)


def flip_horizontally(sample: Sample) -> Sample:
    """The mirror image of a sample."""
    width = sample.pixels.shape[1]

    def mirrored(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result = boxes.copy()
        result[:, 0], result[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
        return result

    return Sample(sample.pixels[:, ::-1], mirrored(sample.boxes), sample.labels, mirrored(sample.regions))


def epoch_batches(count: int, batch: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The sample indices of each step of an epoch: a shuffle that depends on (seed, epoch); the last may be short."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [order[start : start + batch].tolist() for start in range(0, count, batch)]


def pad_together(pixels: Sequence[npt.NDArray[np.uint8]], pad: Sequence[int], multiple: int) -> npt.NDArray[np.uint8]:
    """Images (h_i, w_i, 3) -> (B, H, W, 3), padded right and below with `pad`; H and W multiples of `multiple`."""
    height = -(-max(p.shape[0] for p in pixels) // multiple) * multiple
    width = -(-max(p.shape[1] for p in pixels) // multiple) * multiple
    batch = np.empty((len(pixels), height, width, 3), dtype=np.uint8)
    batch[:] = np.asarray(pad, dtype=np.uint8)
    for slot, image in zip(batch, pixels, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return batch


def stream(tiles: TrainingTiles, batches: Sequence[Sequence[int]], *, seed: int, epoch: int) -> Iterator[list[Sample]]:
    """The samples of each batch, one batch read ahead by a thread."""
    from concurrent.futures import ThreadPoolExecutor

    def load(batch: Sequence[int]) -> list[Sample]:
        return [tiles.sample(index, seed=seed, epoch=epoch) for index in batch]

    with ThreadPoolExecutor(1) as reader:
        pending = None
        for batch in batches:
            following = reader.submit(load, batch)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
