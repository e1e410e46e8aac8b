"""Datasets with one text or JSON file per image: VisDrone-DET, DOTA and labelme."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tinydet.data.image_files import list_files, list_images
from tinydet.data.layouts.coco_files import json_files, kind_of
from tinydet.data.layouts.layout import (
    Layout,
    ReadOptions,
    Split,
    folders_below,
    reader,
    split_name,
    split_of,
    split_order,
)
from tinydet.data.layouts.yolo_files import labels_layout, looks_like_yolo
from tinydet.data.readers import dota, labelme, visdrone
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import numbered_lines
from tinydet.data.readers.yolo import NOT_LABELS

_DOTA_LABELS = re.compile(r"labelTxt|annfiles$|annotations$|labels$")  # the second is of MMRotate
Read = Callable[[ReadOptions], CocoBuilder]


def find_visdrone(root: Path) -> Layout | None:
    """Return the layout of VisDrone-DET folders, each with `images` and `annotations`; None without any.

    A folder such as `VisDrone2019-DET-train` is validated on its neighbor `VisDrone2019-DET-val`.
    """
    found = [
        folder
        for folder in folders_below(root, 2)  # archives unpacked into folders of their name
        if (folder / "images").is_dir() and text_format(folder / "annotations") == "visdrone"
    ]
    if not found:
        return None
    splits = [
        (split_of(folder, root), folder / "annotations", folder / "images", _visdrone(folder)) for folder in found
    ]
    validation = None
    if len(found) == 1 and split_name(root.absolute().name) == "train":
        beside = root.absolute().with_name(root.absolute().name.replace("train", "val"))
        validation = beside if beside.is_dir() else None
    return Layout("VisDrone-DET", "visdrone", _splits(root, splits), validation=validation)


def find_dota(root: Path) -> Layout | None:
    """Return the layout of DOTA folders, each with `images` and `labelTxt` (or `annfiles`); None without any."""
    found = []
    for folder in folders_below(root, 1):
        for labels in sorted(each for each in folder.iterdir() if _DOTA_LABELS.match(each.name)):
            if (folder / "images").is_dir() and text_format(labels) == "dota":
                found.append((folder, labels))
    if not found:
        return None
    every = [labels for _, labels in found]
    splits = [
        (split_of(folder, root), labels, folder / "images", _dota(labels, folder / "images", every))
        for folder, labels in found
    ]
    return Layout("DOTA", "dota", _splits(root, splits))


def find_labelme(root: Path) -> Layout | None:
    """Return the layout of labelme files next to their images, None without any."""
    found = [folder for folder, files in json_files(root) if any(kind_of(path) == "labelme" for path in files[:3])]
    if not found:
        return None
    splits = []
    for folder in found:
        beside = (folder, folder.parent / "images", folder.parent)
        images = next((each for each in beside if each.is_dir() and list_images(each)), folder)
        splits.append((split_of(folder, root), folder, images, _labelme(folder, images, found)))
    return Layout("labelme files", "labelme", _splits(root, splits))


def text_layout(folder: Path, images: Path) -> Layout | None:
    """Return the layout of a folder of text files and one of images, None if the files have no known format."""
    match text_format(folder):
        case "visdrone":
            split = Split(None, folder, images, reader(lambda _: visdrone.read(folder, images)))
            return Layout("VisDrone-DET", "visdrone", (split,))
        case "dota":
            return Layout("DOTA", "dota", (Split(None, folder, images, reader(_dota(folder, images, [folder]))),))
        case "yolo":
            return labels_layout(folder, images)
    return None


def video_annotations(root: Path) -> str | None:
    """Return what kind of annotations of videos a folder has, one file per video: MOT or VisDrone-VID; or None."""
    for folder in folders_below(root, 2):
        if (folder / "gt" / "gt.txt").is_file():
            return "MOT, gt/gt.txt"
        if (folder / "sequences").is_dir() and (folder / "annotations").is_dir():
            return "VisDrone-VID, sequences"
    return None


def text_format(folder: Path) -> str | None:
    """Return "visdrone", "dota" or "yolo" by the first line of the text files of a folder; None for anything else."""
    if not folder.is_dir():
        return None
    texts = [folder / file for file in list_files(folder, (".txt",)) if file.name not in NOT_LABELS]
    for text in texts[:100]:
        for _, line in numbered_lines(text):
            if line.lower().startswith(("imagesource:", "gsd:")):
                continue
            if line.count(",") >= 7 and _numbers(line.removesuffix(",").split(",")):
                return "visdrone"
            fields = line.split()
            if len(fields) in (9, 10) and _numbers(fields[:8]) and not _numbers(fields[8:9]):
                return "dota"
            return "yolo" if looks_like_yolo(line) else None
    return None


def _numbers(fields: Sequence[str]) -> bool:
    try:
        return all(float(field) is not None for field in fields)
    except ValueError:
        return False


def _visdrone(folder: Path) -> Read:
    return lambda _: visdrone.read(folder / "annotations", folder / "images")


def _dota(labels: Path, images: Path, every: Sequence[Path]) -> Read:
    def read(options: ReadOptions) -> CocoBuilder:
        classes = None if options.classes is None else read_class_names(options.classes)
        also = {name for each in every if each != labels for name in dota.class_names(each)} if classes is None else ()
        return dota.read(labels, images, classes=classes, also=also)

    return read


def _labelme(folder: Path, images: Path, every: Sequence[Path]) -> Read:
    def read(_: ReadOptions) -> CocoBuilder:
        also = {name for each in every if each != folder for name in labelme.class_names(each)}
        return labelme.read(folder, images, also=also)

    return read


def _splits(root: Path, found: Sequence[tuple[str | None, Path, Path, Read]]) -> tuple[Split, ...]:
    """Return splits in their usual order.

    Raises:
        ValueError: two folders have the same split, or one has none.
    """
    names = [name for name, *_ in found]
    if len(set(names)) < len(names) or (len(names) > 1 and None in names):
        listed = ", ".join(str(annotations.relative_to(root)) for _, annotations, *_ in found[:8])
        raise ValueError(f"{root} has several folders of annotations that may be meant: {listed}; name one of them")
    ordered = sorted(found, key=lambda each: split_order(each[0]))
    return tuple(Split(name, annotations, images, reader(read)) for name, annotations, images, read in ordered)
