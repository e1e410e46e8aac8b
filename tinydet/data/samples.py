"""Training samples: tiles of the images of a dataset, flipped at random.

Tiles are cut by the same `TileGrid` as at inference, or as in the TinyPerson benchmark; the samples then equal those
of its cut files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tinydet.data.coco import Dataset, read_pixels
from tinydet.data.resample import resample
from tinydet.geometry.boxes import area
from tinydet.geometry.tiles import MOST_TILES, Tile, TileGrid, check_tile_count

# A tile contains an object if sqrt(visible area / area) is at least this. Boxes below it are truncated. The value is
# that of the TinyPerson benchmark.
MIN_VISIBILITY = 0.7
LEAST_SIDE = 2.0  # pixels; an object that resizing makes smaller is ignored

Truncated = Literal["ignore", "drop"]  # what to do with the truncated boxes of a tile
Cut = Callable[[int, int], Sequence[Tile]]  # from the width and height of an image to its tiles


@dataclass(frozen=True)
class Sample:
    """One training tile with its objects and ignore regions; boxes are xyxy in pixels of the tile."""

    pixels: npt.NDArray[np.uint8]  # (h, w, 3) RGB
    boxes: npt.NDArray[np.float32]  # (M, 4)
    labels: npt.NDArray[np.int64]  # (M,) index of the class
    regions: npt.NDArray[np.float32]  # (R, 4) ignore regions


class TrainingTile(NamedTuple):
    """Where a training tile is cut: a window of an image, in its pixels, which is then resized by `scale`."""

    image: int
    window: Tile
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Width in pixels after resizing."""
        return round(self.window.width * self.scale)

    @property
    def height(self) -> int:
        """Height in pixels after resizing."""
        return round(self.window.height * self.scale)


class TrainingTiles:
    """All training tiles of a dataset, in a fixed order. An image that fits into a tile is one tile.

    A sample depends only on (seed, epoch, index), so a resumed run sees the same samples as an uninterrupted one.

    Args:
        tile: width and height of a tile, pixels.
        overlap: pixels that neighboring tiles share, at least.
        flip: flip half of the samples horizontally.
        cache_bytes: size of the cache of decoded images; the least recently used image is evicted first.
        cut: replaces `TileGrid`, for example with `tinydet.data.sub_images.benchmark_tiles`; `tile` and `overlap` are
            then unused.
        truncated: "ignore" turns truncated objects into ignore regions and keeps the visible part of every ignore
            region; "drop" removes truncated objects and regions, and counts parts outside the image as hidden. The
            benchmark drops.
        scales: the images are cut at each of these scales, and all of the tiles are in every epoch. At 2, windows of
            half a tile are enlarged to a whole tile. Objects that become smaller than `LEAST_SIDE` are ignored.
        transform: applied to each sample before the flip, for example `tinydet.data.scale_match.ScaleMatch`. Its
            generator is seeded with (seed, epoch, index).
        max_tiles: a dataset of more tiles is refused; `remedy` says how to raise the limit.
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
        truncated: Truncated = "ignore",
        scales: Sequence[float] = (1.0,),
        transform: Callable[[Sample, np.random.Generator], Sample] | None = None,
        max_tiles: int = MOST_TILES,
        remedy: str = "",
    ) -> None:
        if truncated not in ("ignore", "drop"):
            raise ValueError(f"truncated must be 'ignore' or 'drop', got {truncated!r}")
        self.dataset = dataset
        self.flip = flip
        self.truncated = truncated
        self.transform = transform
        self.tiles: list[TrainingTile] = []
        for scale in scales:
            side, shared = max(round(tile / scale), 1), round(overlap / scale)
            if cut is None:
                grids = [TileGrid(image.width, image.height, side, shared) for image in dataset.images]
                count = len(self.tiles) + sum(map(len, grids))
                check_tile_count(count, max_tiles, what=str(dataset.source), remedy=remedy)
            self.tiles += [
                TrainingTile(index, window, scale)
                for index, image in enumerate(dataset.images)
                for window in (grids[index].tiles if cut is None else cut(image.width, image.height))
            ]
        self._cache: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0

    def __len__(self) -> int:
        return len(self.tiles)

    def sample(self, index: int, *, seed: int, epoch: int) -> Sample:
        """Return tile `index` with the flip and the transform of `epoch`.

        Raises:
            ValueError: the image cannot be read; the message names it.
        """
        image, window, _ = tile = self.tiles[index]
        pixels = self._pixels(image)[window.y : window.y + window.height, window.x : window.x + window.width]
        pixels = resample(pixels, tile.width, tile.height)
        boxes, objects, regions = self.boxes_in(index)
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

    def boxes_in(self, index: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return all boxes of the image of tile `index`, clipped to the tile.

        Returns:
            Boxes (M, 4) xyxy in pixels of the tile, which of them are objects of the tile (M,), and which are its
            ignore regions (M,).
        """
        image, window, scale = tile = self.tiles[index]
        annotations = self.dataset.of_image(image)
        areas = annotations.areas if self.truncated == "drop" else None
        boxes, visibility = clip_to_tile(annotations.boxes, window, areas)
        objects, regions = objects_and_regions(annotations.ignore, visibility, self.truncated)
        if scale == 1:
            return boxes, objects, regions
        boxes = boxes * np.tile((tile.width / window.width, tile.height / window.height), 2)
        small = objects & ((boxes[:, 2:] - boxes[:, :2]) < LEAST_SIDE).any(axis=1)
        return boxes, objects & ~small, regions | small

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
    """Clip boxes to a tile.

    Args:
        boxes: (M, 4) xyxy in pixels of the image.
        areas: (M,) areas to compare with, in square pixels; None uses those of `boxes`.

    Returns:
        Clipped boxes (M, 4) xyxy in pixels of the tile, and their visibility (M,): sqrt(visible area / area).
    """
    local = boxes - np.array([tile.x, tile.y, tile.x, tile.y], dtype=np.float64)
    clipped = local.clip(0, np.tile((tile.width, tile.height), 2))
    full = area(local) if areas is None else areas
    return clipped, np.sqrt(area(clipped) / np.maximum(full, np.finfo(np.float64).tiny))


def objects_and_regions(
    ignore: npt.NDArray[np.bool_], visibility: npt.NDArray[np.float64], truncated: Truncated
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which boxes are objects of a tile and which are its ignore regions, (M,) each.

    Args:
        ignore: (M,) true for the ignore regions of the image.
        visibility: (M,) see `clip_to_tile`.
        truncated: see `TrainingTiles`.
    """
    objects = ~ignore & (visibility >= MIN_VISIBILITY)
    if truncated == "drop":
        return objects, ignore & (visibility >= MIN_VISIBILITY)
    # The visible part of a truncated object is neither an object nor background.
    return objects, (ignore | (visibility < MIN_VISIBILITY)) & (visibility > 0)


def flip_horizontally(sample: Sample) -> Sample:
    """Return the mirror image of a sample."""
    width = sample.pixels.shape[1]

    def mirror(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result = boxes.copy()
        result[:, 0], result[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
        return result

    return Sample(sample.pixels[:, ::-1], mirror(sample.boxes), sample.labels, mirror(sample.regions))


def epoch_batches(count: int, batch: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the sample indices of each batch of an epoch, shuffled by (seed, epoch). The last batch may be smaller."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [order[start : start + batch].tolist() for start in range(0, count, batch)]


def pad_together(pixels: Sequence[npt.NDArray[np.uint8]], pad: Sequence[int], multiple: int) -> npt.NDArray[np.uint8]:
    """Return images (h_i, w_i, 3) as one batch (B, H, W, 3); H and W are multiples of `multiple`.

    Args:
        pad: RGB color of the padding at the right and at the bottom.
    """
    height = -(-max(p.shape[0] for p in pixels) // multiple) * multiple
    width = -(-max(p.shape[1] for p in pixels) // multiple) * multiple
    batch = np.empty((len(pixels), height, width, 3), dtype=np.uint8)
    batch[:] = np.asarray(pad, dtype=np.uint8)
    for slot, image in zip(batch, pixels, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return batch


def stream(tiles: TrainingTiles, batches: Sequence[Sequence[int]], *, seed: int, epoch: int) -> Iterator[list[Sample]]:
    """Yield the samples of each batch. A thread loads one batch ahead."""
    from concurrent.futures import ThreadPoolExecutor

    def load(batch: Sequence[int]) -> list[Sample]:
        return [tiles.sample(index, seed=seed, epoch=epoch) for index in batch]

    with ThreadPoolExecutor(1) as executor:
        pending = None
        for batch in batches:
            following = executor.submit(load, batch)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
