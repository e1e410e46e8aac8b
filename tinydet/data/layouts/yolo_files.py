"""YOLO datasets: a data.yaml of Ultralytics, obj.data of Darknet and CVAT, or folders of images and labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tinydet.data.image_files import list_files
from tinydet.data.layouts.layout import Layout, ReadOptions, Split, folders_below, reader, split_name, split_order
from tinydet.data.readers import yolo
from tinydet.data.readers.class_names import DataFile, read_class_names, read_data_file
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import YAML_SUFFIXES, numbered_lines, pair_with_images, read_text
from tinydet.data.readers.yaml_files import read_yaml
from tinydet.data.readers.yolo_lines import LabelForm
from tinydet.runtime.scenes.sources import IMAGES

_KEY = re.compile(r"""^["']?([a-z]+)["']?\s*:""", re.MULTILINE)  # at the top level of a YAML file
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def find_yaml(root: Path) -> Layout | None:
    """Return the layout that the data.yaml of a folder describes, None without one.

    Raises:
        ValueError: there are several.
    """
    found = []
    for path in sorted(each for each in root.iterdir() if each.suffix.lower() in YAML_SUFFIXES and each.is_file()):
        try:
            keys = set(_KEY.findall(read_text(path)))
        except ValueError:  # another file; the data.yaml of a dataset is UTF-8
            if path.name in yolo.DATA_FILES:
                raise
            continue
        if keys & {"names", "nc"} and keys & {"train", "val", "valid", "validation", "test"}:
            found.append(path)
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ValueError(f"{root} has several descriptions of a dataset: {listed}; name one of them")
    return yaml_layout(found[0]) if found else None


def yaml_layout(path: Path) -> Layout:
    """Return the layout that a data.yaml describes.

    Paths are relative to its `path`, which is relative to its folder, or to its folder. Exports name folders of other
    machines; the end of such a path that exists in the folder is used. Ultralytics takes `path` relative to a folder
    `datasets`.

    Raises:
        ValueError: the file is not a data.yaml; the message names the line.
    """
    content: Mapping[str, Any] = read_yaml(path)
    data = read_data_file(path)
    base = content.get("path")
    bases = [path.parent]
    stated = isinstance(base, str) and base not in ("", ".", "./", "null", "~")
    if stated and (place := _dataset_folder(str(base), path.parent)) is not None:
        bases.insert(0, place)
    splits, missing = [], {}
    for name, keys in _KEYS.items():
        value: Any = next((content[key] for key in keys if content.get(key)), None)
        if value is None or value in ("null", "~"):
            continue
        entries: Any = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{path}: {name} must be a folder, a .txt file or a list of them; correct it")
        places = [_resolve(entry, bases) for entry in entries]
        if lost := [entry for entry, place in zip(entries, places, strict=True) if place is None]:
            lead = f" and path {base}, which is not here" if stated and len(bases) == 1 else ""
            missing[name] = f"{path}: {name} is {lost[0]}{lead}, which does not exist in {bases[0]}; correct it"
            continue
        splits.append(_split(name, path, [place for place in places if place is not None], bases, data))
    if not splits:
        raise ValueError(next(iter(missing.values()), f"{path}: no train, val or test; add the folder of the images"))
    return Layout("Ultralytics YOLO dataset", "yolo", tuple(splits), missing)


def _dataset_folder(text: str, parent: Path) -> Path | None:
    """Return the folder that `path` of a data.yaml in `parent` names, None if there is none near it."""
    text = text.strip().replace("\\", "/")
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..") and not part.endswith(":")]
    places = [parent / text]
    for near in (parent, parent / "datasets", parent.parent, parent.parent / "datasets"):
        places += [near.joinpath(*parts[n:]) for n in range(len(parts))]
    above = [parent.absolute(), *list(parent.absolute().parents)[:1]]  # the folder itself, if that is its name
    places += [folder for folder in above if parts and folder.name == parts[-1]]
    found = next((each for each in places if each.is_dir()), None)
    return None if found is None else Path(os.path.normpath(found))


def find_darknet(root: Path) -> Layout | None:
    """Return the layout that an obj.data describes, such as of a YOLO 1.1 export of CVAT; None without one."""
    path = root / "obj.data"
    if not path.is_file():
        return None
    lines = (line.partition("=") for _, line in numbered_lines(path))
    values = {key.strip(): value.strip() for key, _, value in lines}
    names_file = _resolve(values.get("names", "obj.names"), [root]) or root / "obj.names"
    if not names_file.is_file():
        raise ValueError(f"{path}: names is {values.get('names', 'missing')}, which does not exist; correct it")
    data = DataFile(names_file, read_class_names(names_file))
    splits, missing = [], {}
    for name, keys in _KEYS.items():
        entry = next((values[key] for key in keys if values.get(key)), None)
        if entry is None:
            continue
        place = _resolve(entry, [root])
        if place is None:
            missing[name] = f"{path}: {name} is {entry}, which does not exist; export the dataset with its images"
        else:
            splits.append(_split(name, path, [place], [root], data))
    if not splits:
        raise ValueError(next(iter(missing.values()), f"{path}: names no train or valid; correct it"))
    return Layout("Darknet YOLO dataset (CVAT YOLO 1.1)", "yolo", tuple(splits), missing)


def find_folders(root: Path) -> Layout | None:
    """Return the layout of folders of images and YOLO labels without a description, None if there are none.

    These are `images` and `labels`, with a folder for each split in both or without; `train/images` and `train/labels`;
    or images and labels in one folder.
    """
    pairs: list[tuple[str | None, Path, Path]] = []
    images, labels = root / "images", root / "labels"
    if images.is_dir() and labels.is_dir():
        named = [each for each in sorted(images.iterdir()) if each.is_dir() and split_name(each.name)]
        pairs = [(split_name(each.name), each, labels / each.name) for each in named if (labels / each.name).is_dir()]
        pairs = pairs or [(None, images, labels)]
    else:
        for each in folders_below(root, 1)[1:]:
            if (name := split_name(each.name)) and (each / "images").is_dir() and (each / "labels").is_dir():
                pairs.append((name, each / "images", each / "labels"))
    if not pairs:
        for each in folders_below(root, 1):
            if _has_labels(each):
                pairs.append((None if each == root else split_name(each.name), each, each))
    names = [name for name, _, _ in pairs]
    if not pairs or not any(_has_labels(each, everything=True) for _, _, each in pairs):
        return None
    if len(set(names)) < len(names) or (len(names) > 1 and None in names):
        listed = ", ".join(str(each.relative_to(root)) for _, each, _ in pairs[:8])
        raise ValueError(f"{root} has several folders of images with YOLO labels: {listed}; name one of them")
    splits = sorted(pairs, key=lambda pair: split_order(pair[0]))
    return Layout("YOLO folders", "yolo", tuple(_folder_split(*each) for each in splits))


def labels_layout(labels: Path, images: Path) -> Layout:
    """Return the layout of a folder of labels and one of images."""
    return Layout("YOLO labels", "yolo", (_folder_split(None, images, labels),))


def _folder_split(name: str | None, images: Path, labels: Path) -> Split:
    def read(options: ReadOptions) -> CocoBuilder:
        return yolo.read(labels, images, classes=options.classes, labels=options.labels, orphans=True)

    return Split(name, labels, images, reader(read))


def _split(name: str, path: Path, places: Sequence[Path], bases: Sequence[Path], data: DataFile) -> Split:
    """Return a split that a description names by folders and lists of images."""
    folders = [place if place.is_dir() else None for place in places]
    only = folders[0] if len(places) == 1 else None
    root = only or Path(os.path.commonpath([os.path.abspath(place if place.is_dir() else place.parent)
                                            for place in places]))  # fmt: skip
    if only is None and not all(folders):
        root = Path(os.path.abspath(bases[0]))

    def read(options: ReadOptions) -> CocoBuilder:
        names = data.names if options.classes is None else read_class_names(options.classes)
        pairs: dict[Path, Path | None] = {}
        notes: list[str] = []
        for place in places:
            if place.is_dir():
                found, unmatched, more = pair_with_images(_labels_of(place), place, skip=yolo.NOT_LABELS, orphans=True)
                pairs.update({_relative(place / image, root): text for text, image in found})
                pairs.update({_relative(place / image, root): None for image in unmatched})
                notes += more
            else:
                pairs.update(_listed(place, root, bases))
        everything = [(text, image) for image, text in pairs.items()]
        return yolo.read_pairs(path, root, everything, names, LabelForm(options.labels, data), notes)

    return Split(name, path, root, reader(read))


def _listed(path: Path, root: Path, bases: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield the images of a list, relative to `root`, with their label files."""
    places = list(dict.fromkeys((path.parent, *bases)))
    lead: tuple[Path, int] | None = None  # how the first image was found
    for number, line in numbered_lines(path):
        text = line.replace("\\", "/")
        found = None
        if lead is not None:
            guess = lead[0].joinpath(*PurePosixPath(text).parts[lead[1] :])
            found = guess if guess.is_file() else None
        if found is None:
            found = _resolve(text, places)
            if found is None or not found.is_file():
                raise ValueError(f"{path} line {number}: no image {line[:200]} in {places[-1]}; correct the list")
            lead = next(
                (
                    (place, skipped)
                    for place in places
                    for skipped in range(len(PurePosixPath(text).parts))
                    if place.joinpath(*PurePosixPath(text).parts[skipped:]) == found
                ),
                None,
            )
        labels = _labels_of(found.parent) / f"{found.stem}.txt"
        yield _relative(found, root), labels if labels.is_file() else None


def _labels_of(images: Path) -> Path:
    """Return the folder of the labels of a folder of images: `labels` in place of the last `images`, or the same."""
    parts = list(Path(os.path.abspath(images)).parts)
    for n in range(len(parts) - 1, 0, -1):
        if parts[n] == "images":
            found = Path(*parts[:n], "labels", *parts[n + 1 :])
            return found if found.is_dir() else images
    return images


def _relative(path: Path, root: Path) -> Path:
    text = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if text.startswith(".."):
        raise ValueError(f"{path} is outside {root}; move the images into the folder of the dataset")
    return Path(text)


def _resolve(text: str, bases: Sequence[Path]) -> Path | None:
    """Return the file or folder that a description names, None if there is none.

    The path is tried as written, then without `../` in front, then by its end.
    """
    text = text.strip().replace("\\", "/")
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..") and not part.endswith(":")]
    if not parts:
        return next((base for base in bases if text in (".", "./")), None)
    candidates = [base / text for base in bases] + [base.joinpath(*parts) for base in bases]
    for skipped in range(1, len(parts)):
        end = parts[skipped:]
        if len(end) > 1 or split_name(end[0]) or PurePosixPath(end[0]).suffix:
            candidates += [base.joinpath(*end) for base in bases]
    found = next((each for each in candidates if each.exists()), None)
    return None if found is None else Path(os.path.normpath(found))


def _has_labels(folder: Path, *, everything: bool = False) -> bool:
    """Return whether a folder has text files that look like YOLO labels, next to images unless `everything`."""
    if not folder.is_dir():
        return False
    if everything:
        texts = [folder / each for each in list_files(folder, (".txt",))]
    else:
        files = sorted(each for each in folder.iterdir() if each.is_file())
        stems = {each.stem for each in files if each.suffix.lower() in IMAGES}
        texts = [each for each in files if each.suffix.lower() == ".txt" and each.stem in stems]
    for text in [each for each in texts if each.name not in yolo.NOT_LABELS][:50]:
        lines = [line for _, line in numbered_lines(text)]
        if lines:
            return looks_like_yolo(lines[0])
    return bool(texts)


def looks_like_yolo(line: str) -> bool:
    """Return whether a line has a class number and at least four numbers.

    >>> looks_like_yolo("0 0.5 0.5 0.1 0.1"), looks_like_yolo("684,8,273,116,0,0,0,0")
    (True, False)
    """
    first, *others = line.split()
    try:
        values = [float(each) for each in others]
    except ValueError:
        return False
    return first.isdecimal() and len(values) >= 4
