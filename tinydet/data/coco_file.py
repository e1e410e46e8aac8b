"""Annotation files with all of their fields, for tools that write one dataset from another.

A `Dataset` holds what training and scoring use. A tool must also carry over fields that it does not know: licenses,
flags of TinyPerson, visible boxes of CityPersons. It therefore edits the entries of the file itself, after the checks
of `load_dataset`.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet.data.coco import Dataset, build_dataset, find_dataset, read_pixels
from tinydet.data.coco_rules import read_document

Entry = dict[str, Any]  # an image or an annotation, as written
VISIBLE_BOXES = ("vis_bbox", "vis")  # x, y, width, height of the visible part of an object (CityPersons)


@dataclass(frozen=True, eq=False)
class Document:
    """A checked annotation file.

    Attributes:
        content: the JSON of the file, with images in the order of the file.
        dataset: the same as arrays, with images sorted by id.
    """

    content: dict[str, Any]
    dataset: Dataset

    @property
    def images(self) -> list[Entry]:
        """Image entries in the order of the file."""
        return self.content["images"]  # type: ignore[no-any-return]

    @property
    def is_cut(self) -> bool:
        """True for a corner file, whose images are tiles of the image files."""
        return any(record.corner is not None for record in self.dataset.images)

    def annotations(self, image: Entry) -> list[Entry]:
        """Return the annotations of an image, in the order of the file."""
        return self._by_image.get(int(image["id"]), [])

    def pixels(self, image: Entry) -> NDArray[np.uint8]:
        """Return the pixels of an image: (H, W, 3) RGB.

        Raises:
            ValueError: the file is unreadable, or its size contradicts the annotation file.
        """
        return read_pixels(self.dataset, self._index[int(image["id"])])

    def image_path(self, image: Entry) -> Path:
        return self.dataset.image_path(self._index[int(image["id"])])

    def rewritten(self, images: list[Entry], annotations: list[Entry]) -> dict[str, Any]:
        """Return the content with other images and annotations.

        A category that had only ignore regions is removed with the last of them; without annotations it would be
        taken for a class.
        """
        used = {int(entry["category_id"]) for entry in annotations}.union(self.dataset.category_ids)
        categories = [entry for entry in self.content["categories"] if int(entry["id"]) in used]
        return {**self.content, "annotations": annotations, "images": images, "categories": categories}

    @cached_property
    def _by_image(self) -> dict[int, list[Entry]]:
        """Annotations by image id."""
        found = defaultdict(list)
        for entry in self.content["annotations"]:
            found[int(entry["image_id"])].append(entry)
        return dict(found)

    @cached_property
    def _index(self) -> dict[int, int]:
        """Index into `dataset.images` by image id."""
        return {record.id: n for n, record in enumerate(self.dataset.images)}


def load_document(source: Path, images: Path | None = None, *, allow_corner_file: bool = False) -> Document:
    """Read and check an annotation file or a COCO folder, as `load_dataset` does, and keep all of its fields.

    Args:
        allow_corner_file: accept a corner file, whose images are tiles of the image files.

    Raises:
        ValueError: as `load_dataset`; or it is a corner file and those are not allowed.
    """
    source = Path(source)
    if images is None and source.is_dir():
        source, images = find_dataset(source)
    content = read_document(source)
    document = Document(content, build_dataset(content, source, images))
    if document.is_cut and not allow_corner_file:
        raise ValueError(
            f"{source}: a corner file, whose images are tiles of the image files; use the annotation file of the full "
            "images, or write the tiles first: tinydet data cut CORNERS.json --images DIR --output FOLDER"
        )
    return document


def is_ignored(annotation: Entry) -> bool:
    """Return whether an annotation is an ignore region."""
    return bool(annotation.get("ignore") or annotation.get("iscrowd"))


def boxes_of(annotations: list[Entry]) -> NDArray[np.float64]:
    """Return (M, 4) xyxy, pixels, as written."""
    xywh = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """Return a box as a polygon in TinyPerson's order: from the upper left corner downwards."""
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file atomically; compress it if the name ends with `.gz`."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".gz":
            temporary.write_bytes(gzip.compress(text.encode(), 6, mtime=0))
        else:
            temporary.write_text(text, encoding="utf-8")
