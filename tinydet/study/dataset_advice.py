"""What the objects of a data set ask for: anchors, image scale, tile and overlap, each with its reason in figures.

Advice on anchors and scale is a search, not a rule of thumb: the objects are matched against each candidate, and the
figure is the share of objects that some anchor overlaps at the IoU at which training calls it positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.tiles import TileGrid
from tinydet.salpha.parity import best_anchors
from tinydet.study.dataset_survey import Survey

POSITIVE = 0.5  # IoU with an anchor from which on it is positive in training (RetinaNet)
SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
FACTORS = tuple(2 ** (k / 3) for k in range(-6, 4))  # of the anchors' sizes: 0.25 to 2
TILES = (512, 640, 768, 1024)
TILE = 640  # the default of training and inference
WORTH = 0.02  # a gain in the share of matched objects, or a saving of pixels, below which the default stays
_SAMPLE = 4000  # objects that are matched; the error of a share is then below one percent
_CELL = 32


@dataclass(frozen=True)
class Advice:
    """A value for one setting, and why."""

    setting: str
    value: Any
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "reason": self.reason}


def advise(found: Survey, design: AnchorDesign) -> list[Advice]:
    """Overlap, tile, scale and anchors for a data set; nothing without objects."""
    if not len(found.sizes):
        return []
    overlap = advise_overlap(found)
    return [advise_tile(found, overlap.value), overlap, *advise_matching(found, design)]


def advise_overlap(found: Survey) -> Advice:
    """The least multiple of 32 pixels that holds 99.5 % of the objects."""
    longest = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1)
    most = float(np.quantile(longest, 0.995, method="inverted_cdf"))
    overlap = max(math.ceil(most / _CELL) * _CELL, _CELL)
    over = int((longest > overlap).sum())
    reason = (
        f"an object no larger than the overlap lies whole in some tile, and 99.5 % are no longer than {most:.0f} px; "
        + (f"{over:,} are longer than {overlap}, the longest {longest.max():.0f}" if over else "none is longer")
    )
    return Advice("overlap", overlap, reason)


def advise_tile(found: Survey, overlap: int) -> Advice:
    """One tile where every image fits into 640 pixels; else the tile of `TILES` that costs the fewest pixels."""
    largest = int(found.image_sizes.max())
    if largest <= TILE:
        tile = math.ceil(largest / _CELL) * _CELL
        return Advice(
            "tile", tile, f"every image fits into one: no side is longer than {largest} px, so there are no seams"
        )
    sizes, times = np.unique(found.image_sizes, axis=0, return_counts=True)
    pixels = float((sizes.prod(axis=1) * times).sum())
    costs: dict[int, float] = {}
    for tile in TILES:
        if overlap <= tile / 2:
            tiles = [len(TileGrid(width, height, tile, overlap)) for width, height in sizes.tolist()]
            costs[tile] = float((np.array(tiles) * times).sum()) * tile**2 / pixels
    if not costs:
        reason = f"the overlap of {overlap} px asks for a tile of at least twice as much; consider a smaller scale"
        return Advice("tile", math.ceil(2 * overlap / _CELL) * _CELL, reason)
    best = min(costs, key=costs.__getitem__)
    if TILE in costs and costs[TILE] <= costs[best] * (1 + 5 * WORTH):
        best = TILE
    listed = ", ".join(f"{tile}: {cost:.2f}" for tile, cost in costs.items())
    reason = f"pixels that the network sees for each pixel of the images, at an overlap of {overlap}: {listed}"
    return Advice("tile", best, reason)


def advise_matching(found: Survey, design: AnchorDesign) -> list[Advice]:
    """The scale at which the anchors of `design` fit, and the anchors that fit at scale 1."""
    step = max(len(found.boxes) // _SAMPLE, 1)
    boxes, index = found.boxes[::step], found.image_index[::step]
    used, index = np.unique(index, return_inverse=True)
    sizes = found.image_sizes[used]

    by_scale = {scale: matched_share(boxes, sizes, index, design, scale) for scale in SCALES}
    highest = max(by_scale.values())
    scale = 1.0 if by_scale[1.0] >= highest - WORTH else min(s for s in SCALES if by_scale[s] >= highest - WORTH)
    listed = ", ".join(f"{s:g}: {share:.1%}" for s, share in by_scale.items())
    resize = (
        f"share of objects that an anchor overlaps at IoU {POSITIVE} or more, by resize factor of the images: {listed}"
    )

    ratios = data_ratios(found.ratios)
    candidates = [(factor, chosen) for factor in FACTORS for chosen in (None, ratios)]
    shares = [matched_share(boxes, sizes, index, scaled_design(design, *candidate)) for candidate in candidates]
    now = by_scale[1.0]
    best = int(np.argmax(shares))
    if shares[best] <= now + WORTH:
        best = candidates.index((1.0, None))
        gain = f"the best of {len(candidates)} others would gain less than {WORTH:.0%}"
        reason = f"{now:.1%} of the objects have an anchor at IoU {POSITIVE} or more; {gain}"
    else:
        reason = (
            f"{shares[best]:.1%} of the objects have an anchor at IoU {POSITIVE} or more, {now:.1%} with the default"
        )
    chosen = scaled_design(design, *candidates[best])
    value = {
        "sizes": [[round(size, 2) for size in of_level] for of_level in _sizes(chosen)],
        "ratios": list(_ratios(chosen)),
    }
    return [Advice("scale", scale, resize), Advice("anchors", value, reason)]


def matched_share(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    index: NDArray[np.int64],
    design: AnchorDesign,
    scale: float = 1.0,
) -> float:
    """Share of boxes (M, 4) that an anchor overlaps at `POSITIVE` or more, with images of `sizes` (I, 2) resized."""
    rescaled = np.maximum(np.round(sizes * scale), 1).astype(np.int64)
    iou = best_anchors(boxes * np.tile((rescaled / sizes)[index], 2), rescaled, design, image_index=index).iou
    return float((iou >= POSITIVE).mean())


def data_ratios(ratios: NDArray[np.float64], count: int = 3) -> tuple[float, ...]:
    """Height / width in the middle of each of `count` equal shares of the objects."""
    middles = (np.arange(count) + 0.5) / count
    return tuple(round(value, 2) for value in np.quantile(ratios, middles).tolist())


def scaled_design(design: AnchorDesign, factor: float, ratios: Sequence[float] | None = None) -> AnchorDesign:
    """The anchors of a design with sizes times `factor`, and with other ratios."""
    sizes = [[size * factor for size in of_level] for of_level in _sizes(design)]
    return AnchorDesign.from_sizes(sizes, ratios or _ratios(design), design.levels, design.strides)


def _sizes(design: AnchorDesign) -> list[list[float]]:
    """The different sizes of each level."""
    return [sorted({round(math.sqrt(w * h), 6) for w, h in shapes}) for shapes in design.shapes]


def _ratios(design: AnchorDesign) -> tuple[float, ...]:
    return tuple(sorted({round(h / w, 6) for shapes in design.shapes for w, h in shapes}))
