"""What the objects of a data set look like: sizes, shapes, density, crowding, levels. Ignore regions do not count.

Size is sqrt(width * height) in pixels, as in the papers on tiny objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.boxes import area, intersection
from tinydet.geometry.overlaps import candidate_pairs
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.factors import FusionStatistics

# The paper's size ranges, pixels, from (inclusive) and to; sizes under 2 pixels are in none of them.
RANGES = {
    "under 2": (0.0, 2.0),
    "tiny1": (2.0, 8.0),
    "tiny2": (8.0, 12.0),
    "tiny3": (12.0, 20.0),
    "small": (20.0, 32.0),
    "larger": (32.0, np.inf),
}
QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
CROWDED = 0.5  # overlap with a neighbour above which suppression or merging may take two objects for one


@dataclass(frozen=True, eq=False)
class Survey:
    """The objects of a data set, as arrays and counts.

    Attributes:
        dataset: what was looked at.
        boxes: (N, 4) xyxy of the objects, pixels of their images.
        image_index: (N,) index into `dataset.images`, ascending.
        sizes: (N,) pixels.
        ratios: (N,) height / width.
        per_image: (I,) objects of each image.
        megapixels: (I,) of each image.
        hidden_by_ios: share of objects of which a neighbour of their class covers more than `CROWDED` of the smaller.
        hidden_by_iou: share of objects whose IoU with such a neighbour is above `CROWDED`.
        fusion: counts by level and fusion factors, on whole images.
    """

    dataset: Dataset
    boxes: NDArray[np.float64]
    image_index: NDArray[np.int64]
    sizes: NDArray[np.float64]
    ratios: NDArray[np.float64]
    per_image: NDArray[np.int64]
    megapixels: NDArray[np.float64]
    hidden_by_ios: float
    hidden_by_iou: float
    fusion: FusionStatistics

    @property
    def image_sizes(self) -> NDArray[np.int64]:
        """(I, 2) width and height."""
        return np.array([(image.width, image.height) for image in self.dataset.images], np.int64)

    def by_range(self) -> dict[str, int]:
        """Objects in each of `RANGES`."""
        return {name: int(((self.sizes >= low) & (self.sizes < high)).sum()) for name, (low, high) in RANGES.items()}

    def by_class(self) -> dict[str, int]:
        labels = self.dataset.labels[self.dataset.objects]
        counts = np.bincount(labels, minlength=len(self.dataset.classes))
        return dict(zip(self.dataset.classes, counts.tolist(), strict=True))

    def densest(self) -> tuple[str, int] | None:
        """File and objects of the image with most of them; None without objects."""
        if not len(self.sizes):
            return None
        n = int(self.per_image.argmax())
        return self.dataset.images[n].file_name, int(self.per_image[n])

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; what does not exist without objects is None."""
        width, height = self.image_sizes.T
        counts, edges = self.size_histogram()
        densest = self.densest()
        return {
            "source": self.dataset.source.name,
            "images": len(self.dataset.images),
            "images_without_objects": int((self.per_image == 0).sum()),
            "objects": len(self.sizes),
            "ignore_regions": int(self.dataset.ignore.sum()),
            "clipped": self.dataset.clipped,
            "classes": self.by_class(),
            "image_width": quantiles(width),
            "image_height": quantiles(height),
            "size": quantiles(self.sizes),
            "size_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "size_ranges": self.by_range(),
            "relative_size": quantiles(self.sizes / np.sqrt(self.megapixels[self.image_index] * 1e6)),
            "aspect_ratio": quantiles(self.ratios),
            "objects_per_image": quantiles(self.per_image),
            "objects_per_megapixel": quantiles(self.per_image / self.megapixels),
            "densest_image": None if densest is None else {"file_name": densest[0], "objects": densest[1]},
            "share_with_ios_above_half": self.hidden_by_ios,
            "share_with_iou_above_half": self.hidden_by_iou,
            "salpha": self.fusion.to_json(),
        }

    def size_histogram(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Counts and edges in pixels, six bins to a doubling."""
        if not len(self.sizes):
            return np.zeros(0, np.int64), np.zeros(0)
        low, high = np.floor(np.log2(self.sizes.min()) * 6), np.floor(np.log2(self.sizes.max()) * 6) + 1
        edges = 2 ** (np.arange(low, high + 1) / 6)
        edges[0], edges[-1] = min(edges[0], self.sizes.min()), max(edges[-1], self.sizes.max())  # rounding
        return np.histogram(self.sizes, edges)[0].astype(np.int64), edges


def survey(dataset: Dataset, design: AnchorDesign) -> Survey:
    """Look at the objects of a data set; levels are those of the anchors of `design`."""
    boxes, index = dataset.boxes[dataset.objects], dataset.image_index[dataset.objects]
    sides = boxes[:, 2:] - boxes[:, :2]
    ios, iou = crowding(boxes, index * max(len(dataset.classes), 1) + dataset.labels[dataset.objects])
    return Survey(
        dataset=dataset,
        boxes=boxes,
        image_index=index,
        sizes=np.sqrt(sides.prod(axis=1)),
        ratios=sides[:, 1] / sides[:, 0],
        per_image=np.bincount(index, minlength=len(dataset.images)).astype(np.int64),
        megapixels=np.array([image.width * image.height / 1e6 for image in dataset.images]),
        hidden_by_ios=ios,
        hidden_by_iou=iou,
        fusion=statistics_of(dataset, design),
    )


def crowding(boxes: NDArray[np.float64], group: NDArray[np.int64]) -> tuple[float, float]:
    """Shares of boxes (N, 4) xyxy that have a neighbour of their group at IOS, and at IoU, above `CROWDED`.

    IOS is the intersection over the smaller area: what merging by IOS, the default of common slicing tools, looks at.
    """
    order = np.argsort(group, kind="stable")
    boxes, group = boxes[order], group[order]
    areas = area(boxes)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    close = np.zeros((2, len(boxes)), bool)
    for one, other in candidate_pairs(xywh, group, xywh, group):
        apart = one < other
        one, other = one[apart], other[apart]
        shared = area(intersection(boxes[one], boxes[other]))
        smaller, union = np.minimum(areas[one], areas[other]), areas[one] + areas[other] - shared
        for marks, near in zip(close, (shared > CROWDED * smaller, shared > CROWDED * union), strict=True):
            marks[one[near]] = marks[other[near]] = True
    ios, iou = close.mean(axis=1).tolist() if len(boxes) else (0.0, 0.0)
    return ios, iou


def quantiles(values: NDArray[Any]) -> dict[str, float] | None:
    """{"p0": the least, "p50": the median, ..., "mean": ...}; None without values."""
    if not len(values):
        return None
    found = np.percentile(values, QUANTILES).tolist()
    return {f"p{q}": value for q, value in zip(QUANTILES, found, strict=True)} | {"mean": float(values.mean())}
