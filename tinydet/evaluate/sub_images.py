"""Merge detections on the sub-images of the TinyPerson benchmark exactly as the benchmark does.

The originals are `COCOSplitImage` and `COCOMergeResult` of ucas-vg/TinyBenchmark (sub-images of 640 x 512 pixels,
50 pixels overlap) and the compiled CPU NMS of its maskrcnn_benchmark. tinydet's own tiles are in
`tinydet.geometry.tiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco_entries import Entries, raise_first
from tinydet.geometry.boxes import iou_by_coordinates
from tinydet.geometry.nms import resolve
from tinydet.geometry.overlaps import candidate_pairs

if TYPE_CHECKING:
    from tinydet.data.sub_images import Corner

MERGE_IOU = 0.5


def corners_by_file(corner_file: Any, *, source: str = "corner file") -> dict[str, list[Corner]]:
    """Return the corners of the sub-images of each image file, in the order of a corner file of the benchmark.

    Raises:
        ValueError: a missing entry.
    """
    _sub_images(corner_file, source)
    corners: dict[str, list[Corner]] = {}
    for entry in corner_file["images"]:
        x1, y1, x2, y2 = (int(value) for value in entry["corner"])
        corners.setdefault(entry["file_name"], []).append((x1, y1, x2, y2))
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
    image_of, offset, place = _sub_images(corner_file, sources[0])
    if not isinstance(detections, list):
        raise ValueError(f"{sources[1]}: expected a list of COCO results, got {type(detections).__name__}")
    for n, entry in enumerate(detections):
        if not isinstance(entry, Mapping) or "image_id" not in entry or "score" not in entry:
            raise ValueError(f"{sources[1]}[{n}] is not a COCO result with image_id, category_id, bbox and score")
        if entry["image_id"] not in place:
            raise ValueError(
                f"{sources[1]}[{n}] is on image {entry['image_id']!r}, which {sources[0]} does not list; "
                "give the corner file of the sub-images that the detections were made on"
            )
    entries = sorted(detections, key=lambda entry: place[entry["image_id"]])  # stable
    xywh, _ = Entries("results", entries, raise_first(sources[1])).boxes()
    shift = np.array([offset[entry["image_id"]] for entry in entries], np.float64).reshape(-1, 2)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) + np.tile(shift, 2)
    images = [image_of[entry["image_id"]] for entry in entries]
    if suppress:
        group = np.unique([place[entry["image_id"]][0] for entry in entries], return_inverse=True)[1]
        boxes = boxes.astype(np.float32)
        kept = suppress_pixels(boxes, np.array([entry["score"] for entry in entries], np.float32), group).tolist()
        boxes, entries, images = boxes[kept], [entries[n] for n in kept], [images[n] for n in kept]
    merged = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return [
        {**entry, "image_id": image, "bbox": box} for entry, image, box in zip(entries, images, merged, strict=True)
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


def _sub_images(
    corner_file: Any, source: str
) -> tuple[dict[Any, Any], dict[Any, tuple[float, float]], dict[Any, tuple[int, int]]]:
    """Return by sub-image id: the id of its image, its upper left corner, and its sort key in the merge."""
    for key in ("images", "old_images"):
        if not isinstance(corner_file, Mapping) or not isinstance(corner_file.get(key), list):
            raise ValueError(
                f"{source}: has no list {key!r}; expected a corner file of the benchmark, with the sub-images in "
                "'images' and the images that they were cut from in 'old_images'"
            )
    original = {entry["file_name"]: (n, entry["id"]) for n, entry in enumerate(corner_file["old_images"])}
    image_of, offset, place = {}, {}, {}
    for n, entry in enumerate(corner_file["images"]):
        missing = [key for key in ("id", "file_name", "corner") if key not in entry]
        if missing:
            raise ValueError(f"{source}: images[{n}] has no {missing[0]!r}; sub-images need id, file_name and corner")
        if entry["file_name"] not in original:
            raise ValueError(f"{source}: images[{n}] is cut from {entry['file_name']!r}, which is not in 'old_images'")
        order, image_of[entry["id"]] = original[entry["file_name"]]
        offset[entry["id"]] = entry["corner"][0], entry["corner"][1]
        place[entry["id"]] = order, n
    return image_of, offset, place
