"""Where a dataset is: what the data options of a command name, as one value that loads, prints and is recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinydet.data.coco import Dataset, build_dataset
from tinydet.data.coco_file import Document, build_document
from tinydet.data.layouts import Layout, Split, recognize
from tinydet.data.synthetic import builtin_dataset


@dataclass(frozen=True)
class DataSource:
    """Where a dataset is.

    Attributes:
        path: dataset folder or annotation file; None for the built-in dataset.
        images: image folder, if it is given apart.
        split: "train", "val" or "test"; None for the only one.
    """

    path: Path | None
    images: Path | None = None
    split: str | None = None

    @property
    def is_builtin(self) -> bool:
        """True for the built-in dataset."""
        return self.path is None

    @property
    def annotations(self) -> Path:
        """The annotation file or folder."""
        return self.chosen.annotations

    @property
    def image_dir(self) -> Path | None:
        """The image folder; None if only annotations were given."""
        return self.chosen.images

    @cached_property
    def layout(self) -> Layout:
        """The layout of the folder or file.

        Raises:
            ValueError: it does not exist or is not recognized.
        """
        if self.path is None:
            return recognize(builtin_dataset(self.split or "train"))
        return recognize(self.path, self.images)

    @cached_property
    def chosen(self) -> Split:
        """The split that this source names.

        Raises:
            ValueError: there is no such split, or there are several and none is named.
        """
        splits = self.layout.splits
        if self.path is None or (len(splits) == 1 and splits[0].name is None and self.split is None):
            return splits[0]
        names = [split.name for split in splits]
        if self.split is None and len(splits) == 1:
            return splits[0]
        if self.split not in names or self.split is None:
            held = ", ".join(name for name in names if name) or "no splits"
            wanted = "name one with --split" if self.split is None else f"not {self.split!r}"
            raise ValueError(f"{self.path} ({self.layout.name}) has {held}; {wanted}")
        return splits[names.index(self.split)]

    def read(self) -> dict[str, Any]:
        """Read the annotations as a COCO document, unchecked."""
        return self.chosen.read()

    def load(self, *, categories: Sequence[str] | None = None, boxes_only: bool = False) -> Dataset:
        """Read and check the dataset; see `tinydet.data.coco.load_dataset`.

        Args:
            categories: names of the classes to keep; None for all.
            boxes_only: leave the images out; they may be missing.
        """
        images = None if boxes_only else self.image_dir
        return build_dataset(self.read(), self.annotations, images, categories=categories, read_again=self.read)

    def load_document(self, *, allow_corner_file: bool = False) -> Document:
        """Read and check the dataset with all fields of its files; see `tinydet.data.coco_file.load_document`."""
        return build_document(self.read(), self.annotations, self.image_dir, allow_corner_file=allow_corner_file)

    def describe(self) -> str:
        """Return one line: the recognized layout, the split and the annotations."""
        if self.path is None:
            return f"built-in dataset, split {self.split or 'train'}"
        split = f", split {self.chosen.name}" if self.chosen.name else ""
        return f"{self.layout.name}{split}: {self.annotations}"

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return a record of plain values.

        Args:
            folder: where the record will be stored; paths are also written relative to it.
        """
        record: dict[str, Any] = {"builtin": self.path is None, "split": self.split}
        for name in ("path", "images"):
            value = getattr(self, name)
            record[name] = None if value is None else _both(value, folder)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], folder: Path) -> DataSource:
        """Return the source of a record of `to_json`.

        Args:
            folder: where the record is stored. A path that exists relative to it precedes the absolute one.

        Raises:
            ValueError: the data are at neither place, or the record is malformed.
        """
        try:
            builtin, split = record["builtin"], record["split"]
            if builtin:
                return cls(None, split=split)
            places = {name: record[name] and tuple(map(str, record[name])) for name in ("path", "images")}
            found = {name: _existing(*both, folder=folder) if both else None for name, both in places.items()}
        except (KeyError, TypeError) as error:
            raise ValueError(f"the record of a dataset is malformed: {record!r}") from error
        return cls(found["path"], found["images"], split=split)


def find_source(
    data: Path | None, annotations: Path | None = None, images: Path | None = None, *, split: str | None = None
) -> DataSource:
    """Return the source that the options of a command name, after checking that it exists and is recognized.

    Args:
        data: `--data`: folder or file. `annotations`, `images`: the same in two parts.
        split: "train", "val" or "test"; None for the only one.

    Raises:
        ValueError: nothing or too much is named, it does not exist, or it is not recognized.
    """
    if data is not None and annotations is not None:
        raise ValueError(
            "--data names a folder with its own annotations; give either --data, or --annotations and --images"
        )
    path = data if data is not None else annotations
    if path is None:
        raise ValueError("--images is the image folder of --annotations; name both" if images else "name a dataset")
    source = DataSource(Path(path), images and Path(images), split=split)
    _ = source.chosen
    return source


def builtin_source(split: str) -> DataSource:
    """Return a split of the built-in dataset, "train" or "val", which is generated when it is first loaded."""
    return DataSource(None, split=split)


def _both(path: Path, folder: Path) -> list[str]:
    """Return an absolute path, and the path relative to a folder."""
    absolute = Path(os.path.abspath(path))
    try:
        relative = os.path.relpath(absolute, os.path.abspath(folder))
    except ValueError:  # on another drive
        relative = str(absolute)
    return [str(absolute), Path(relative).as_posix()]


def _existing(absolute: str, relative: str, *, folder: Path) -> Path:
    for path in (Path(folder) / relative, Path(absolute)):
        if path.exists():
            return path
    raise ValueError(f"{absolute} does not exist any more, nor {relative} relative to {folder}; name the data again")
