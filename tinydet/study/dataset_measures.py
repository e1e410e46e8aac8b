"""Measures of the objects of a dataset: sizes, shapes, density, crowding and pyramid levels.

Ignore regions are left out. The size of an object is sqrt(width * height) in pixels, as in the papers on tiny objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.geometry.boxes import area, intersection
from tinydet.geometry.overlaps import candidate_pairs
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import Counting
from tinydet.salpha.factors import FusionStatistics

# Size ranges in pixels, lower bound inclusive. The paper defines those from 2 to 32.
RANGES = {
    "under 2": (0.0, 2.0),
    "tiny1": (2.0, 8.0),
    "tiny2": (8.0, 12.0),
    "tiny3": (12.0, 20.0),
    "small": (20.0, 32.0),
    "larger": (32.0, np.inf),
}
QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
CROWDED = 0.5  # overlap above which NMS or merging may take two objects for one


@dataclass(frozen=True, eq=False)
class DatasetMeasures:
    """Measures of the N objects and I images of a dataset.

    Attributes:
        dataset: the measured dataset.
        boxes: (N, 4) xyxy of the objects, pixels of their images.
        image_index: (N,) index into `dataset.images`, ascending.
        sizes: (N,) pixels.
        ratios: (N,) height / width.
        per_image: (I,) number of objects of each image.
        megapixels: (I,) size of each image.
        crowded_by_ios: share of objects with a neighbor of their class at an IOS above `CROWDED`; see `crowding`.
        crowded_by_iou: share of objects with a neighbor of their class at an IoU above `CROWDED`.
        fusion: object counts by level and fusion factors, on whole images.
    """

    dataset: Dataset
    boxes: NDArray[np.float64]
    image_index: NDArray[np.int64]
    sizes: NDArray[np.float64]
    ratios: NDArray[np.float64]
    per_image: NDArray[np.int64]
    megapixels: NDArray[np.float64]
    crowded_by_ios: float
    crowded_by_iou: float
    fusion: FusionStatistics

    @property
    def image_sizes(self) -> NDArray[np.int64]:
        """(I, 2) width and height of each image in pixels."""
        return np.array([(image.width, image.height) for image in self.dataset.images], np.int64)

    def by_range(self) -> dict[str, int]:
        """Count the objects in each of `RANGES`."""
        return {name: int(((self.sizes >= low) & (self.sizes < high)).sum()) for name, (low, high) in RANGES.items()}

    def by_class(self) -> dict[str, int]:
        """Count the objects of each class."""
        labels = self.dataset.labels[self.dataset.objects]
        counts = np.bincount(labels, minlength=len(self.dataset.classes))
        return dict(zip(self.dataset.classes, counts.tolist(), strict=True))

    def densest(self) -> tuple[str, int] | None:
        """Return file name and object count of the image with the most objects; None if there are no objects."""
        if not len(self.sizes):
            return None
        n = int(self.per_image.argmax())
        return self.dataset.images[n].file_name, int(self.per_image[n])

    def to_json(self) -> dict[str, Any]:
        """Return the measures as JSON values; those that need an object are None without one."""
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
            "share_with_ios_above_half": self.crowded_by_ios,
            "share_with_iou_above_half": self.crowded_by_iou,
            "salpha": self.fusion.to_json(),
        }

    def size_histogram(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return counts and bin edges in pixels, with six bins per doubling."""
        if not len(self.sizes):
            return np.zeros(0, np.int64), np.zeros(0)
        low, high = np.floor(np.log2(self.sizes.min()) * 6), np.floor(np.log2(self.sizes.max()) * 6) + 1
        edges = 2 ** (np.arange(low, high + 1) / 6)
        edges[0], edges[-1] = (
            min(edges[0], self.sizes.min()),
            max(edges[-1], self.sizes.max()),
        )  # include sizes that rounding put outside
        return np.histogram(self.sizes, edges)[0].astype(np.int64), edges


def measure_dataset(dataset: Dataset, counting: Counting) -> DatasetMeasures:
    """Measure the objects of a dataset, and the counts per level of a detector."""
    boxes, index = dataset.boxes[dataset.objects], dataset.image_index[dataset.objects]
    sides = boxes[:, 2:] - boxes[:, :2]
    ios, iou = crowding(boxes, index * max(len(dataset.classes), 1) + dataset.labels[dataset.objects])
    return DatasetMeasures(
        dataset=dataset,
        boxes=boxes,
        image_index=index,
        sizes=np.sqrt(sides.prod(axis=1)),
        ratios=sides[:, 1] / sides[:, 0],
        per_image=np.bincount(index, minlength=len(dataset.images)).astype(np.int64),
        megapixels=np.array([image.width * image.height / 1e6 for image in dataset.images]),
        crowded_by_ios=ios,
        crowded_by_iou=iou,
        fusion=statistics_of(dataset, counting),
    )


def crowding(boxes: NDArray[np.float64], group: NDArray[np.int64]) -> tuple[float, float]:
    """Return the shares of boxes with a neighbor of their group at an IOS, and at an IoU, above `CROWDED`.

    IOS is the intersection over the smaller area, by which common slicing tools merge boxes by default.

    Args:
        boxes: (N, 4) xyxy.
        group: (N,) boxes of different groups are not compared.
    """
    order = np.argsort(group, kind="stable")
    boxes, group = boxes[order], group[order]
    areas = area(boxes)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    crowded = np.zeros((2, len(boxes)), bool)  # by IOS, by IoU
    for first, second in candidate_pairs(xywh, group, xywh, group):
        once = first < second
        first, second = first[once], second[once]
        shared = area(intersection(boxes[first], boxes[second]))
        smaller, union = np.minimum(areas[first], areas[second]), areas[first] + areas[second] - shared
        for marks, close in zip(crowded, (shared > CROWDED * smaller, shared > CROWDED * union), strict=True):
            marks[first[close]] = marks[second[close]] = True
    ios, iou = crowded.mean(axis=1).tolist() if len(boxes) else (0.0, 0.0)
    return ios, iou


def quantiles(values: NDArray[Any]) -> dict[str, float] | None:
    """Return the percentiles `QUANTILES` as "p0" (minimum) to "p100" (maximum), and "mean"; None without values."""
    if not len(values):
        return None
    found = np.percentile(values, QUANTILES).tolist()
    return {f"p{q}": value for q, value in zip(QUANTILES, found, strict=True)} | {"mean": float(values.mean())}
