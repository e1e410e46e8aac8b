"""Recognize how a dataset is laid out in a folder: its annotation files, its image folders and its splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinydet.data.coco import find_dataset
from tinydet.data.coco_rules import read_document


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
        name: "train", "val" or "test"; None if the layout has no splits.
        annotations: annotation file or folder, for messages.
        images: folder that file names are relative to; None if only annotations were given.
        read: reads the annotations as a COCO document, unchecked.
    """

    name: str | None
    annotations: Path
    images: Path | None
    read: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """A recognized dataset: the name of its layout and its splits."""

    name: str
    splits: tuple[Split, ...]


def recognize(path: Path, images: Path | None = None) -> Layout:
    """Recognize the layout of a dataset without reading its annotations.

    Args:
        path: folder or annotation file.
        images: image folder, if it is given apart.

    Raises:
        ValueError: `path` does not exist, or has no layout or several that are known.
    """
    path = Path(path)
    if path.is_dir():
        annotations, found = find_dataset(path)
        images = found if images is None else images
        name = "COCO folder"
    elif path.is_file():
        annotations, name = path, "COCO file"
    else:
        raise ValueError(f"{path} does not exist; name a dataset folder or an annotation file")
    if images is not None and not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise ValueError(f"{images}: the image folder of {annotations} {what}; check --images")
    return Layout(name, (Split(None, annotations, images, partial(read_document, annotations)),))
