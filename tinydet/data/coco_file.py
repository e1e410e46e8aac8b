"""Annotation files with all of their fields, for the tools that write one data set from another.

A `Dataset` holds what training and scoring look at. A tool must also carry over what it does not know: licences, flags
of TinyPerson, the visible boxes of CityPersons. So it changes the entries of the file, which the reader has checked.
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
from tinydet.data.coco import Dataset, load_dataset, read_pixels
from tinydet.data.coco_rules import read_document

Entry = dict[str, Any]  # an image or an annotation, as written
VISIBLE_BOXES = ("vis_bbox", "vis")  # x, y, width, height of what is seen of an object (CityPersons)


@dataclass(frozen=True, eq=False)
class Document:
    """A checked annotation file.

    Attributes:
        content: the JSON of the file.
        dataset: the same as arrays; its images are sorted by id, those of `content` are in the order of the file.
    """

    content: dict[str, Any]
    dataset: Dataset

    @property
    def images(self) -> list[Entry]:
        return self.content["images"]  # type: ignore[no-any-return]

    @property
    def is_cut(self) -> bool:
        """Whether this is a corner file: an image is a part of the picture that it names."""
        return any(record.corner is not None for record in self.dataset.images)

    def annotations(self, image: Entry) -> list[Entry]:
        """The annotations of an image, in the order of the file."""
        return self._by_image.get(int(image["id"]), [])

    def pixels(self, image: Entry) -> NDArray[np.uint8]:
        """(H, W, 3) RGB.

        Raises:
            ValueError: where the file is unreadable, or of another size than the annotation file says.
        """
        return read_pixels(self.dataset, self._place[int(image["id"])])

    def image_path(self, image: Entry) -> Path:
        return self.dataset.image_path(self._place[int(image["id"])])

    def rewritten(self, images: list[Entry], annotations: list[Entry]) -> dict[str, Any]:
        """The content with other images and annotations.

        A category of ignore regions that lost all of them goes too: without annotations it would pass for a class.
        """
        used = {int(entry["category_id"]) for entry in annotations}.union(self.dataset.category_ids)
        categories = [entry for entry in self.content["categories"] if int(entry["id"]) in used]
        return {**self.content, "annotations": annotations, "images": images, "categories": categories}

    @cached_property
    def _by_image(self) -> dict[int, list[Entry]]:
        found = defaultdict(list)
        for entry in self.content["annotations"]:
            found[int(entry["image_id"])].append(entry)
        return dict(found)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {record.id: n for n, record in enumerate(self.dataset.images)}


def load_document(source: Path, images: Path | None = None, *, pieces: bool = False) -> Document:
    """Read and check an annotation file or a COCO folder, as `load_dataset` does, and keep all of it.

    Args:
        pieces: whether a corner file, whose images are pieces of pictures, will do too.

    Raises:
        ValueError: as `load_dataset`; a corner file where none will do.
    """
    dataset = load_dataset(source, images)
    document = Document(read_document(dataset.source), dataset)
    if document.is_cut and not pieces:
        raise ValueError(
            f"{dataset.source}: a corner file, whose images are pieces of pictures; use the annotation file of the "
            "whole pictures, or write the pieces first: tinydet data cut CORNERS.json --images DIR --output FOLDER"
        )
    return document


def is_ignored(annotation: Entry) -> bool:
    """Whether the annotation is an ignore region to the reader."""
    return bool(annotation.get("ignore") or annotation.get("iscrowd"))


def boxes_of(annotations: list[Entry]) -> NDArray[np.float64]:
    """(M, 4) xyxy, pixels, as written."""
    xywh = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A box as the polygon that TinyPerson writes: from the upper left corner downwards."""
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file, atomically; `.gz` compresses it."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".gz":
            temporary.write_bytes(gzip.compress(text.encode(), 6, mtime=0))
        else:
            temporary.write_text(text, encoding="utf-8")
