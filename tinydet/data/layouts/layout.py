"""What the recognizers of layouts return: a name, and for each split where its files are and how to read them."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet.data.coco_rules import read_document
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.yolo_lines import Labels

SPLITS = ("train", "val", "test")
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_WORDS |= {"test": "test", "testing": "test", "dev": "val"}
_WORD = re.compile(rf"(?<![a-z])(?<!test[-_])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")


@dataclass(frozen=True)
class ReadOptions:
    """What a user may state about annotations that do not say it themselves; None: decided from the files.

    Attributes:
        classes: file of class names in the order of their ids.
        labels: YOLO: what the numbers of a line mean.
        first_pixel: Pascal VOC: 1 for pixel indices, 0 for edges.
    """

    classes: Path | None = None
    labels: Labels | None = None
    first_pixel: int | None = None


NOTHING_STATED = ReadOptions()


@dataclass(frozen=True)
class Reading:
    """Annotations as a COCO document, and notes for the user about how they were read."""

    document: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
        name: "train", "val" or "test"; None if the layout has no splits.
        annotations: annotation file or folder, for messages.
        images: folder that file names are relative to; None if only annotations were given.
        read: reads the annotations.
    """

    name: str | None
    annotations: Path
    images: Path | None
    read: Callable[[ReadOptions], Reading]


@dataclass(frozen=True)
class Layout:
    """A recognized dataset.

    Attributes:
        name: of the layout, such as "COCO folder".
        form: the format of its annotations, as `tinydet data convert --from` calls it; "coco" needs no conversion.
        splits: at most one of each name.
        missing: splits that a file of the dataset names, but which are not there, with a message for each.
        validation: folder of the validation data, if the dataset has one next to its own.
    """

    name: str
    form: str
    splits: tuple[Split, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    validation: Path | None = None


def split_name(text: str) -> str | None:
    """Return the split that a name of a file or folder says: "train", "val", "test", or None.

    >>> split_name("instances_train2017"), split_name("valid"), split_name("trainval"), split_name("test-dev")
    ('train', 'val', None, 'test')
    """
    found = {_WORDS[word] for word in _WORD.findall(text.lower())}
    return found.pop() if len(found) == 1 else None


def split_of(place: Path, root: Path) -> str | None:
    """Return the split that a path below `root` says; the name nearest to its end decides."""
    names = place.relative_to(root).parts if place.is_relative_to(root) else ()
    return next(filter(None, map(split_name, reversed(names))), None)


def split_order(name: str | None) -> int:
    """Return the position of a split in their usual order: train, val, test, then a dataset without splits."""
    return SPLITS.index(name) if name in SPLITS else len(SPLITS)


def coco_reader(path: Path) -> Callable[[ReadOptions], Reading]:
    """Return the `Split.read` of a COCO file."""
    return lambda _: Reading(read_document(path))


def reader(read: Callable[[ReadOptions], CocoBuilder]) -> Callable[[ReadOptions], Reading]:
    """Return the `Split.read` of annotations in another format."""

    def read_all(options: ReadOptions) -> Reading:
        with _without_garbage_collection():
            coco = read(options)
            document = coco.to_coco()
        return Reading(document, tuple(coco.notes))

    return read_all


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles, which takes a third of the time where millions of objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def folders_below(root: Path, depth: int) -> list[Path]:
    """Return a folder and the folders in it, to a depth; hidden ones are left out."""
    found = [root]
    for folder in found:
        if len(folder.relative_to(root).parts) < depth:
            found += sorted(each for each in folder.iterdir() if not each.name.startswith(".") and each.is_dir())
    return found
