"""Merge detections on the sub-images of the TinyPerson benchmark exactly as the benchmark does.

The originals are `COCOSplitImage` and `COCOMergeResult` of ucas-vg/TinyBenchmark (sub-images of 640 x 512 pixels,
50 pixels overlap) and the compiled CPU NMS of its maskrcnn_benchmark. tinydet's own tiles are in
`tinydet.geometry.tiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco_entries import Entries, raise_first, short
from tinydet.data.coco_rules import FILE_NAME, read_corner
from tinydet.data.image_paths import image_name
from tinydet.evaluate.tables import read_results
from tinydet.geometry.boxes import iou_by_coordinates
from tinydet.geometry.nms import resolve
from tinydet.geometry.overlaps import candidate_pairs
from tinydet.runtime.scenes.window import Corner

MERGE_IOU = 0.5


def corners_by_file(corner_file: Any, *, source: str = "corner file") -> dict[str, list[Corner]]:
    """Return the corners of the sub-images of each image file, in the order of a corner file of the benchmark.

    Raises:
        ValueError: a missing entry.
    """
    cut = _sub_images(corner_file, source)
    corners: dict[str, list[Corner]] = {}
    for name, corner in zip(cut.files, cut.corners, strict=True):
        corners.setdefault(name, []).append(corner)
    return corners


def merge_sub_images(
    corner_file: Any,
    detections: Any,
    *,
    suppress: bool = True,
    sources: tuple[str, str] = ("corner file", "detections"),
) -> list[dict[str, Any]]:
    """Convert COCO results on sub-images to COCO results on the images that these were cut from.

    Boxes are shifted by the corner of their sub-image. Greedy NMS then runs on each image: class-agnostic, at an IoU
    of 0.5 or more, with pixel-inclusive sides, in float32. The remaining boxes keep their order, by sub-image, then as
    in `detections`; their number is not limited. Two 4-pixel people 1.5 pixels apart become one.

    Args:
        corner_file: COCO ground truth whose images have a `corner` (x1, y1, x2, y2) and the `file_name` of one of
            `old_images`.
        suppress: False shifts the boxes without NMS.
        sources: names of the two files for messages.

    Raises:
        ValueError: a missing entry; a detection on a sub-image that the file does not list.
    """
    cut = _sub_images(corner_file, sources[0])
    results = read_results(detections, sources[1])
    detections = results.entries
    sub_image, _ = results.references("image_id", cut.ids, strings=True)
    if (sub_image < 0).any():
        n = int(np.flatnonzero(sub_image < 0)[0])
        raise ValueError(
            f"{sources[1]}: entry {n} is on image {short(detections[n]['image_id'])}, which {sources[0]} does not "
            "list; give the corner file of the sub-images that the detections were made on"
        )
    order = np.lexsort((sub_image, cut.image[sub_image]))  # stable
    entries, sub_image = results.select(order), sub_image[order]
    xywh, _ = entries.boxes()
    scores, _ = entries.numbers("score", missing="results need one; is this a ground-truth file?")
    image, shift = cut.image[sub_image], cut.offset[sub_image]
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) + np.tile(shift, 2)
    if suppress:
        boxes = boxes.astype(np.float32)
        with np.errstate(over="ignore"):  # a score beyond float32 is infinite
            ranked = scores.astype(np.float32)
        kept = suppress_pixels(boxes, ranked, np.unique(image, return_inverse=True)[1])
        boxes, entries, image = boxes[kept], entries.select(kept), image[kept]
    merged = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return [
        {**entry, "image_id": cut.image_ids[n], "bbox": box}
        for entry, n, box in zip(entries.entries, image.tolist(), merged, strict=True)
    ]


def suppress_pixels(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], group: NDArray[np.int64], iou: float = MERGE_IOU
) -> NDArray[np.int64]:
    """Return the ascending indices of the boxes that greedy NMS keeps, with pixel-inclusive sides x2 - x1 + 1.

    A box is suppressed at an IoU of `iou` or more with a better box that is kept. Of equal scores, the earlier box is
    better.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        group: (N,) ascending; boxes of different groups do not suppress each other.
    """
    rank = np.empty(len(boxes), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(boxes))
    better, worse = _conflicts(boxes, group, rank, np.float32(iou))
    kept = resolve(rank[better], rank[worse], np.zeros(len(boxes), bool)).kept  # by rank
    return np.flatnonzero(kept[rank])


def _conflicts(
    boxes: NDArray[np.float32], group: NDArray[np.int64], rank: NDArray[np.int64], iou: np.float32
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of boxes that cannot both be kept, as (better, worse) indices."""
    # Candidates are searched two pixels wider than the convention: float32 rounding must not hide one.
    wide = np.concatenate([boxes[:, :2] - 1, boxes[:, 2:] - boxes[:, :2] + 3], axis=1).astype(np.float64)
    pairs = [np.zeros((2, 0), np.int64)]
    for one, two in candidate_pairs(wide, group, wide, group):
        ranked = rank[one] < rank[two]
        better, worse = one[ranked], two[ranked]
        # The better box comes first, as in the original: float32 sums depend on the order.
        alike = iou_by_coordinates(tuple(boxes[better].T), tuple(boxes[worse].T), pixel_inclusive=True) >= iou
        pairs.append(np.stack([better[alike], worse[alike]]))
    better, worse = np.concatenate(pairs, axis=1)
    return better, worse


@dataclass(frozen=True)
class _SubImages:
    """The sub-images of a corner file.

    Attributes:
        ids: of the S sub-images, in the order of the file.
        files: the file that each one is cut from.
        corners: of each one, in pixels of that file.
        image: (S,) index into `image_ids`.
        image_ids: of the uncut images.
    """

    ids: list[Any]
    files: list[str]
    corners: list[Corner]
    image: NDArray[np.int64]
    image_ids: list[Any]

    @property
    def offset(self) -> NDArray[np.float64]:
        """(S, 2) upper left corners."""
        return np.array([corner[:2] for corner in self.corners], np.float64).reshape(-1, 2)


def _sub_images(corner_file: Any, source: str) -> _SubImages:
    """Read a corner file by the rules of `tinydet.data.coco_entries`."""
    for key in ("images", "old_images"):
        if not isinstance(corner_file, Mapping) or not isinstance(corner_file.get(key), list):
            raise ValueError(
                f"{source}: has no list {key!r}; expected a corner file of the benchmark, with the sub-images in "
                "'images' and the images that they were cut from in 'old_images'"
            )
    cut = Entries("images", corner_file["images"], raise_first(source))
    uncut = Entries("old_images", corner_file["old_images"], raise_first(source))
    for entries in (cut, uncut):
        entries.read_ids(strings=True)
        entries.check_unique()
    files, originals = (
        [image_name(name) for name in entries.strings("file_name", FILE_NAME)[0]] for entries in (cut, uncut)
    )
    corners = [read_corner(value) for value in cut.column("corner", missing="sub-images need one")[0]]
    form = "it must be [x1, y1, x2, y2] of the image in its file"
    cut.check(
        "image with a wrong corner",
        [n for n, corner in enumerate(corners) if corner is None],
        lambda n: f"has the corner {short(cut.entries[n]['corner'])}",
        form,
    )
    place = {name: n for n, name in enumerate(originals)}
    cut.check(
        "sub-image of an image that is not listed",
        [n for n, name in enumerate(files) if name not in place],
        lambda n: f"is cut from {short(files[n])}, which is not in 'old_images'",
        "add it there",
    )
    image = np.array([place[name] for name in files], np.int64)
    return _SubImages(cut.ids, files, [corner for corner in corners if corner is not None], image, uncut.ids)
