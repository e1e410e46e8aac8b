"""Similarities of boxes for tiny objects, pair by pair. numpy only; `tinydet.models.assign.similarity` is in torch.

Each takes boxes (..., 4) and anchors (..., 4), xyxy in pixels, which broadcast, and returns (...) values from 0 to 1.
For one anchor shape all are highest at the cell nearest to the box's center (`tinydet.geometry.cells`).

Sources: NWD Wang et al. 2021, DotD Xu et al. 2021, RFD Xu et al. 2022 (RFLA), SimD Shi et al. 2024; formulas and
constants as in the code released with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import iou_of_pairs

Boxes = NDArray[np.float64]
PairSimilarity = Callable[[Boxes, Boxes], Boxes]

NWD_SCALE = DOTD_SCALE = 12.7  # pixels, the mean object size of AI-TOD
EPS = 1e-6  # square pixels under the roots


def nwd(boxes: Boxes, anchors: Boxes, scale: float = NWD_SCALE) -> Boxes:
    """Return the normalized Wasserstein distance of the Gaussians that two boxes stand for, as a similarity.

    >>> round(float(nwd(np.array([10.0, 10, 18, 18]), np.array([12.0, 10, 20, 18]))), 4)
    0.8543
    """
    shift, sides, anchor_sides = _differences(boxes, anchors)
    squared = (shift**2).sum(-1) + EPS + ((sides - anchor_sides) ** 2).sum(-1) / 4
    result: Boxes = np.exp(-np.sqrt(squared) / scale)
    return result


def dotd(boxes: Boxes, anchors: Boxes, scale: float = DOTD_SCALE) -> Boxes:
    """Return the dot distance as a similarity: it depends on the distance of the centers alone."""
    shift, _, _ = _differences(boxes, anchors)
    result: Boxes = np.exp(-np.sqrt((shift**2).sum(-1) + EPS) / scale)
    return result


def rfd(boxes: Boxes, anchors: Boxes) -> Boxes:
    """Return 1 / (1 + KL divergence of the anchor's Gaussian from the box's), the receptive field distance of RFLA.

    >>> round(float(rfd(np.array([10.0, 10, 18, 18]), np.array([12.0, 10, 20, 18]))), 4)
    0.8889
    """
    shift, sides, anchor_sides = _differences(boxes, anchors)
    ratio = (anchor_sides / sides) ** 2
    divergence = (ratio - np.log(ratio) - 1 + 4 * (shift / sides) ** 2).sum(-1) / 2
    result: Boxes = 1 / (1 + divergence)
    return result


def simd(boxes: Boxes, anchors: Boxes, factors: tuple[float, float]) -> Boxes:
    """Return the similarity distance of SimD: center and size differences relative to the summed sizes.

    Args:
        factors: weights of x and y, those of the dataset (`simd_factors`).
    """
    shift, sides, anchor_sides = _differences(boxes, anchors)
    weight = np.asarray(factors) / (sides + anchor_sides)
    distance = [np.sqrt(((weight * each) ** 2).sum(-1)) for each in (shift, sides - anchor_sides)]
    result: Boxes = np.exp(-(distance[0] + distance[1]))
    return result


def simd_factors(images: Iterable[tuple[Boxes, Boxes]]) -> tuple[float, float]:
    """Return the factors of SimD for a dataset: the mean over all pairs of |center difference| / summed sides.

    Args:
        images: the objects (M, 4) and anchors (N, 4) of each image.

    Raises:
        ValueError: there is no pair.
    """
    total, pairs = np.zeros(2), 0
    for boxes, anchors in images:
        for box in boxes:
            shift, sides, anchor_sides = _differences(box, anchors)
            total += (np.abs(shift) / (sides + anchor_sides)).sum(0)
        pairs += len(boxes) * len(anchors)
    if not pairs:
        raise ValueError("the factors of SimD are means over pairs of an object and an anchor, and there is none")
    return float(total[0] / pairs), float(total[1] / pairs)


SIMILARITIES: Mapping[str, PairSimilarity] = {"iou": iou_of_pairs, "nwd": nwd, "rfd": rfd, "dotd": dotd}


def _differences(boxes: Boxes, anchors: Boxes) -> tuple[Boxes, Boxes, Boxes]:
    """Return center differences, sides of the boxes and sides of the anchors, each (..., 2): x and y."""
    shift = ((boxes[..., :2] + boxes[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / 2
    return shift, boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
