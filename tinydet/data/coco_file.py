"""Annotation files with all of their fields, for tools that write one dataset from another.

A `Dataset` holds what training and scoring use. A tool must also carry over fields that it does not know: licenses,
flags of TinyPerson, visible boxes of CityPersons. It therefore edits the entries of the file itself, after the checks
of `load_dataset`.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset, ImageRecord, build_dataset, find_dataset, open_image, read_pixels
from tinydet.data.coco_rules import normalize, read_document
from tinydet.runtime.scenes import Scene
from tinydet.spec import STRETCH

logger = logging.getLogger(__name__)

Entry = dict[str, Any]  # an image or an annotation, as written


@dataclass(frozen=True, eq=False)
class Document:
    """A checked annotation file.

    Attributes:
        content: the JSON of the file, as `normalize` writes it, with images in the order of the file.
        dataset: the same as arrays, with images sorted by id.
    """

    content: dict[str, Any]
    dataset: Dataset

    @property
    def images(self) -> list[Entry]:
        """Image entries in the order of the file."""
        return self.content["images"]  # type: ignore[no-any-return]

    def annotations(self, image: Entry) -> list[Entry]:
        """Return the annotations of an image, in the order of the file."""
        return self._by_image.get(image["id"], [])

    @property
    def records(self) -> dict[int, ImageRecord]:
        """The checked fields of the images, by id."""
        return {record.id: record for record in self.dataset.images}

    def open(
        self, image: Entry, *, stretch: tuple[float, float] = STRETCH, bands: Sequence[int] | None = None
    ) -> AbstractContextManager[Scene]:
        """Open an image, see `open_image`."""
        return open_image(self.dataset, self._index[image["id"]], stretch=stretch, bands=bands)

    def pixels(self, image: Entry) -> NDArray[np.uint8]:
        """Return the pixels of an image: (H, W, 3) RGB.

        Raises:
            ValueError: the file is unreadable, or its size contradicts the annotation file.
        """
        return read_pixels(self.dataset, self._index[image["id"]])

    def image_path(self, image: Entry) -> Path:
        return self.dataset.image_path(self._index[image["id"]])

    def rewritten(self, images: list[Entry], annotations: list[Entry]) -> dict[str, Any]:
        """Return the content with other images and annotations.

        A category that had only ignore regions is removed with the last of them; without annotations it would be
        taken for a class.
        """
        used = {entry["category_id"] for entry in annotations}.union(self.dataset.category_ids)
        roots = self.dataset.roots
        categories = [entry for entry in self.content["categories"] if entry["id"] in used or entry["name"] in roots]
        return {**self.content, "annotations": annotations, "images": images, "categories": categories}

    @cached_property
    def _by_image(self) -> dict[int, list[Entry]]:
        """Annotations by image id."""
        found = defaultdict(list)
        for entry in self.content["annotations"]:
            found[entry["image_id"]].append(entry)
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
    return build_document(read_document(source), source, images, allow_corner_file=allow_corner_file)


def build_document(
    content: dict[str, Any], source: Path, images: Path | None = None, *, allow_corner_file: bool = False
) -> Document:
    """Check the content of the annotation file `source`, normalize it in place and return it; see `load_document`."""
    document = Document(content, build_dataset(content, source, images))
    normalize(content)
    if document.dataset.is_cut and not allow_corner_file:
        raise ValueError(
            f"{source}: a corner file, whose images are tiles of the image files; use the annotation file of the full "
            "images, or write the tiles first: "
            f"{tinydet_command('data', 'cut')} CORNERS.json --images DIR --output FOLDER"
        )
    return document


def is_ignored(annotation: Entry) -> bool:
    """Return whether an annotation of a `Document` is an ignore region."""
    return annotation.get("ignore") == 1 or annotation.get("iscrowd") == 1


def boxes_of(annotations: list[Entry]) -> NDArray[np.float64]:
    """Return (M, 4) xyxy, pixels, as written."""
    xywh = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """Return a box as a polygon in TinyPerson's order: from the upper left corner downwards."""
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file atomically; compress it if the name ends with `.gz`.

    NaN and infinity, which JSON does not have, are written as null with a warning. They can only be in fields that no
    tool of tinydet reads.
    """
    try:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        content = json.loads(json.dumps(content))  # a copy
        logger.warning(f"{path}: {replace_non_finite(content)} numbers that JSON does not have are written as null")
        text = json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which only an escape can write
        encoded = (json.dumps(content, allow_nan=False) + "\n").encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(encoded, 6, mtime=0) if Path(path).suffix == ".gz" else encoded)


def replace_non_finite(value: Any) -> int:
    """Replace NaN and infinities by None at any depth of a JSON value; return how many."""
    count = 0
    waiting = [value]
    while waiting:
        value = waiting.pop()
        items: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(inner, float) and not math.isfinite(inner):
                value[key] = None
                count += 1
            elif isinstance(inner, dict | list):
                waiting.append(inner)
    return count
