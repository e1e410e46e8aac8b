"""Which anchors learn which objects.

An assigner is an object that is called with the objects of a batch and the anchors of its images and returns `Matches`.
It takes a `Similarity` of objects and anchors, so that IoU can be replaced by another measure.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign


class Matches(NamedTuple):
    """Flat indices into the (B * N) anchors of a batch, N anchors per image; all other anchors are background."""

    positive: Tensor  # (P,) anchors that learn an object
    objects: Tensor  # (P,) index of that object into the boxes of the batch
    ignored: Tensor  # (I,) anchors that learn nothing


class Assigner(Protocol):
    """Decides which anchors learn which objects."""

    def __call__(
        self, boxes: Tensor, owner: Tensor, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]
    ) -> Matches:
        """Match the objects of a batch with the anchors of its images.

        Args:
            boxes: (M, 4) xyxy in input pixels, float32.
            owner: (M,) index of the image that each object belongs to.
            design: of the anchors; it has the grid of each level, so that no (M, N) matrix is needed.
            anchors: (N, 4) of all levels of `design` for `size`, finest first, xyxy in input pixels.
            size: (height, width) of the input.
        """
        ...


class Similarity(Protocol):
    """How well an anchor fits an object, 0 to 1. For one anchor shape it must not grow with the center distance."""

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(P, 4) and (P, 4) xyxy -> (P,) similarity of row i with row i."""
        ...

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        """Return how far centers may be apart on each axis for a similarity of at least `least`.

        Args:
            sizes: (M, 1, 2) width and height of the objects; `shapes`: (A, 2) of the anchors of a cell.
            least: (M, 1) the similarity, above 0.

        Returns:
            (M, A, 2) float64, distances in pixels in x and y; negative where no distance is enough. May be slightly too
            large, never too small.
        """
        ...
