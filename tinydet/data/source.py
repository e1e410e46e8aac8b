"""Where a dataset is: what the data options of a command name, as one value that loads, prints and is recorded."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinydet.data.coco import Dataset, build_dataset
from tinydet.data.coco_file import Document, build_document
from tinydet.data.holdout import divide, group_images, groups_by, hold_out
from tinydet.data.layouts.coco_files import image_folder
from tinydet.data.layouts.layout import NOTHING_STATED, Layout, Reading, ReadOptions, Split, split_name
from tinydet.data.layouts.recognize import recognize
from tinydet.data.synthetic import builtin_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part of a dataset: the images that are held out for validation, or the others.

    Attributes:
        role: "val" for the images that are held out, "train" for the others.
        fraction: share of the images to hold out; None: a fold.
        seed: of the choice. The same seed finds the same images again.
        fold: number of the fold to hold out, from 1, and the number of folds; None: a share.
        group_by: what says which images belong together, see `tinydet.data.holdout.groups_by`; None: the file names.
    """

    role: str
    fraction: float | None = None
    seed: int = 0
    fold: tuple[int, int] | None = None
    group_by: str | None = None

    def __post_init__(self) -> None:
        if self.fold is not None:
            object.__setattr__(self, "fold", tuple(self.fold))  # a list, from JSON
        share = self.fraction is not None and 0 < self.fraction < 1
        number, count = self.fold or (0, 0)
        if self.role not in ("train", "val") or share is (self.fold is not None) or (not share and number < 1):
            raise ValueError(f"a part is train or val, with a fraction between 0 and 1 or a fold; got {self}")
        if number > count:
            raise ValueError(f"fold {number} of {count} does not exist")

    def held(self, groups: Sequence[str]) -> frozenset[str]:
        """Return the groups to hold out, of those of all images."""
        if self.fold is not None:
            return divide(groups, self.fold[1], self.seed)[self.fold[0] - 1]
        assert self.fraction is not None
        return hold_out(groups, self.fraction, self.seed)

    def __str__(self) -> str:
        if self.fold is not None:
            held = f"fold {self.fold[0]} of {self.fold[1]} of its images"
        else:
            held = f"the {100 * (self.fraction or 0):.3g} % of its images that are held out"
        return held if self.role == "val" else f"all but {held}"


@dataclass(frozen=True)
class NameRecord:
    """The file names of the images of a dataset, to notice when others are there.

    Attributes:
        count: number of images.
        sha256: of the sorted names.
    """

    count: int
    sha256: str

    @classmethod
    def of(cls, dataset: Dataset) -> NameRecord:
        """Return the record of a dataset."""
        names = sorted(record.file_name for record in dataset.images)
        return cls(len(names), hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True)
class DataSource:
    """Where a dataset is.

    Attributes:
        path: dataset folder, annotation file, or description such as data.yaml; None for the built-in dataset.
        images: image folder, if it is given apart.
        split: "train", "val" or "test"; None for the only one.
        part: which part of the images; None for all.
        options: what the user states about the annotations.
        recorded: the images that were there when the source was recorded, see `load`; None: any.
    """

    path: Path | None
    images: Path | None = None
    split: str | None = None
    part: Part | None = None
    options: ReadOptions = NOTHING_STATED
    recorded: NameRecord | None = None

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
        if self.path is None or (self.split is None and len(splits) == 1):
            return splits[0]
        names = [split.name for split in splits]
        if self.split in names and self.split is not None:
            return splits[names.index(self.split)]
        if self.split in self.layout.missing:
            raise ValueError(self.layout.missing[self.split or ""])
        held = ", ".join(name for name in names if name) or "no splits"
        wanted = "name one with --split" if self.split is None else f"not {self.split!r}"
        raise ValueError(f"{self.path} ({self.layout.name}) has {held}; {wanted}")

    def read(self) -> dict[str, Any]:
        """Read the annotations as a COCO document, unchecked."""
        return self._reading().document

    def load(
        self, *, categories: Sequence[str] | None = None, boxes_only: bool = False, allow_absent: bool = False
    ) -> Dataset:
        """Read and check the dataset; see `tinydet.data.coco.load_dataset`.

        Args:
            categories: names of the classes to keep; None for all.
            boxes_only: leave the images out; they may be missing.
            allow_absent: pass over `categories` that the annotations do not have, if they have at least one.

        Raises:
            ValueError: the annotations break a rule, or are not those that a part was chosen from. Other images than
                recorded of a source without a part are a warning.
        """
        images = None if boxes_only else self.image_dir
        reading = self._reading(part=False)
        document = reading.document
        if self.part is not None:
            if categories is None:  # those of the whole dataset: every part has the same classes
                categories = build_dataset(document, self.annotations).classes
            document = self._part_of(document)
        if categories is not None and allow_absent:
            known = _names_of(document)
            categories = [name for name in categories if name in known] or categories
        # Reading again is slow if it opens a file per image.
        kept = self.layout.form != "coco" and len(document["annotations"]) < _FEW
        dataset = build_dataset(
            document,
            self.annotations,
            images,
            categories=categories,
            reading=reading.notes,
            read_again=(lambda: document) if kept else self.read,
        )
        if self.recorded is not None and self.recorded != NameRecord.of(dataset):
            self._report_others(self.recorded.count, len(dataset.images))
        return dataset

    def _report_others(self, then: int, count: int) -> None:
        """Warn that the images are not those of the record; raise ValueError if they were held out of others."""
        what = f"{count} images, {then} then" if count != then else f"{count} images with other names"
        if self.part is not None:
            raise ValueError(
                f"{self.annotations}: images were added or removed since the training ({what}), so it is not known any "
                "more which of them were held out; name images that the model was not trained on: --data PATH"
            )
        logger.warning(f"{self.annotations}: other images than when the model was trained ({what})")

    def load_document(self, *, allow_corner_file: bool = False) -> Document:
        """Read and check the dataset with all fields of its files; see `tinydet.data.coco_file.load_document`."""
        return build_document(self.read(), self.annotations, self.image_dir, allow_corner_file=allow_corner_file)

    def describe(self) -> str:
        """Return one line: the recognized layout, the split and the annotations."""
        if self.path is None:
            return f"built-in dataset, split {self.split or 'train'}"
        split = f", split {self.chosen.name}" if self.chosen.name else ""
        part = "" if self.part is None else f", {self.part}"
        return f"{self.layout.name}{split}{part}: {self.annotations}"

    def with_split(self, split: str | None) -> DataSource:
        """Return the source of another split of the same dataset."""
        source = replace(self, split=split)
        if self.path is not None:  # the layout of all splits is recognized once
            source.__dict__["layout"] = self.layout
        return source

    def hold_out(
        self,
        fraction: float | None = None,
        seed: int = 0,
        *,
        fold: tuple[int, int] | None = None,
        group_by: str | None = None,
    ) -> tuple[DataSource, DataSource]:
        """Return the training and the validation part of this source; see `Part`."""
        train, val = (
            replace(self, part=Part(role, fraction, seed, fold=fold, group_by=group_by)) for role in ("train", "val")
        )
        return train, val

    def held_groups(self) -> tuple[tuple[str, ...], int]:
        """Return the names of the groups that the part of this source holds out, and the number of all groups.

        Raises:
            ValueError: an image has no group, or there are too few of them.
        """
        assert self.part is not None
        groups = self._groups(self._reading(part=False).document)
        return tuple(sorted(self.part.held(list(groups.values())))), len({*groups.values()})

    def to_json(self, folder: Path, dataset: Dataset | None = None) -> dict[str, Any]:
        """Return a record of plain values.

        Args:
            folder: where the record will be stored; paths are also written relative to it.
            dataset: what `load` returned; its images are recorded, too.
        """
        names = self.recorded if dataset is None else NameRecord.of(dataset)
        record: dict[str, Any] = {
            "builtin": self.path is None,
            "split": self.split,
            "part": None if self.part is None else asdict(self.part),
            "names": None if names is None else asdict(names),
        }
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
            part = None if record.get("part") is None else Part(**record["part"])
            names = None if record.get("names") is None else NameRecord(**record["names"])
            if builtin:
                return cls(None, split=split, part=part)
            places = {name: record[name] and tuple(map(str, record[name])) for name in ("path", "images")}
            found = {name: _existing(*both, folder=folder) if both else None for name, both in places.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the record of a dataset is malformed: {record!r}") from error
        return cls(found["path"], found["images"], split=split, part=part, recorded=names)

    def _reading(self, *, part: bool = True) -> Reading:
        reading = self.chosen.read(self.options)
        if self.part is None or not part:
            return reading
        return Reading(self._part_of(reading.document), reading.notes)

    def _part_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document with the images of the part only."""
        assert self.part is not None
        groups = self._groups(document)
        held, wanted = self.part.held(list(groups.values())), self.part.role == "val"
        ids = {image for image, group in groups.items() if (group in held) is wanted}
        kept = {key: [entry for entry in document[key] if entry[name] in ids] for key, name in _BY_IMAGE.items()}
        return {**document, **kept}

    def _groups(self, document: dict[str, Any]) -> dict[int, str]:
        """Return the group of each image by its id."""
        records = build_dataset(document, self.annotations).images  # checks the document first
        if self.part is not None and self.part.group_by is not None:
            entries = {entry["id"]: entry for entry in document["images"]}
            named = [{**entries[record.id], "file_name": record.file_name} for record in records]
            groups = groups_by(named, self.part.group_by)
        else:
            groups, _ = group_images([record.file_name for record in records])
        return {record.id: group for record, group in zip(records, groups, strict=True)}


_FEW = 200_000  # annotations that are kept in memory
_SHOWN = 6  # groups that a message names
_BY_IMAGE = {"images": "id", "annotations": "image_id"}


def find_source(
    data: Path | None,
    annotations: Path | None = None,
    images: Path | None = None,
    *,
    split: str | None = None,
    prefer: Sequence[str] = (),
    needs_images: bool = False,
    options: ReadOptions | None = None,
) -> DataSource:
    """Return the source that the options of a command name, after checking that it exists and is recognized.

    Args:
        data: `--data`: folder or file. `annotations`, `images`: the same in two parts.
        split: "train", "val" or "test"; None for the only one.
        prefer: the splits to choose from, in this order, if there are several and none is named.
        needs_images: the images are needed: look for them near an annotation file that is named alone.

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
    source = DataSource(Path(path), images and Path(images), split=split, options=options or NOTHING_STATED)
    layout = source.layout
    if split is None and len(layout.splits) > 1:
        names = [each.name for each in layout.splits]
        source = source.with_split(next((name for name in prefer if name in names), None))
    if needs_images and source.image_dir is None:
        annotation_file = source.annotations
        root = annotation_file.parent
        root = root.parent if root.name.lower() in ("annotations", "labels") else root
        found = image_folder(annotation_file, root, split_name(annotation_file.name))
        if found is None:
            raise ValueError(f"{annotation_file}: its images are not near it; name their folder with --images DIR")
        source = replace(source, images=found)
    _ = source.chosen
    return source


def builtin_source(split: str) -> DataSource:
    """Return a split of the built-in dataset, "train" or "val", which is generated when it is first loaded."""
    return DataSource(None, split=split)


def validation_of(train: DataSource) -> DataSource | None:
    """Return the validation data that belong to training data: their split "val", or a folder next to theirs.

    Raises:
        ValueError: the dataset names validation data that are not there.
    """
    if "val" in train.layout.missing:
        raise ValueError(train.layout.missing["val"])
    if any(split.name == "val" for split in train.layout.splits) and train.chosen.name != "val":
        return train.with_split("val")
    beside = train.layout.validation
    return None if beside is None else find_source(beside, needs_images=True)


def announce(source: DataSource) -> DataSource:
    """Log what was recognized, unless it is a plain COCO folder or file; return the source."""
    if not source.is_builtin and source.layout.name not in ("COCO folder", "COCO file"):
        logger.info(source.describe())
    return source


def describe_hold_out(source: DataSource, train: Dataset, val: Dataset) -> str:
    """Return one line about the images that were held out: how many, and their groups.

    Args:
        source: the one of `val`, which has a part.
    """
    assert source.part is not None
    names = [[image.file_name for image in dataset.images] for dataset in (train, val)]
    images = f"{len(names[1])} of {len(names[0]) + len(names[1])} images held out"
    if source.part.fold is not None:
        images += f", fold {source.part.fold[0]} of {source.part.fold[1]}"
    if source.part.group_by is not None:
        held, count = source.held_groups()
        shown = ", ".join(held[:_SHOWN]) + (f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else "")
        return f"{images}: {len(held)} of {count} groups by {source.part.group_by} ({shown})"
    groups, shown_by_names = group_images([*names[0], *names[1]])
    if not shown_by_names:
        return f"{images}, chosen one by one, because file names show no groups"
    count, held_count = len({*groups}), len({*groups[len(names[0]) :]})
    return f"{images}: {held_count} of {count} groups by file name (videos, flights, folders)"


def _names_of(document: Mapping[str, Any]) -> set[str]:
    entries = document.get("categories")
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {name for name in names if isinstance(name, str)}


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
            short = Path(os.path.normpath(path))  # without `..`, which means another folder behind a link
            return short if short.exists() and short.samefile(path) else path
    raise ValueError(f"neither {absolute} nor {Path(folder) / relative} exists")
