"""COCO files and their images: COCO folders, COCO2017, exports of Roboflow and CVAT, and one JSON file anywhere."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tinydet._internal.json_files import GZIP_MAGIC
from tinydet.data.coco import ANNOTATION_NAMES
from tinydet.data.coco_rules import read_document
from tinydet.data.image_paths import image_name, leaves_folder
from tinydet.data.layouts.layout import Layout, Split, coco_reader, folders_below, reader, split_of, split_order
from tinydet.data.readers import tinyperson

Kind = Literal["coco", "datumaro", "labelme", "label studio", "via", "other"]

_HEAD = 1 << 20  # bytes of a file that decide what it is
_DEPTH = 3  # of folders that are searched
_SAMPLES = 5  # file names that must exist in the image folder
_FEW = 20  # JSON files in a folder; with more, they are annotations of single images
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def find_coco(root: Path) -> Layout | None:
    """Return the layout of the COCO files of a folder, None without any.

    Raises:
        ValueError: several files may be meant, or several image folders.
    """
    native = [root / name for name in ANNOTATION_NAMES if (root / name).is_file()]
    if len(native) > 1:
        raise ValueError(f"{root} has both {' and '.join(ANNOTATION_NAMES)}; remove one, or name one of them")
    files = native or list(_coco_files(root))
    if not files:
        return None
    chosen: dict[str | None, list[Path]] = {}
    for path in files:
        chosen.setdefault(split_of(path, root), []).append(path)
    for name, paths in chosen.items():  # the file nearest to the folder, if it is the only one there
        depth = min(len(path.parts) for path in paths)
        chosen[name] = [path for path in paths if len(path.parts) == depth]
    if {"train", "val"} <= set(chosen):  # their union
        chosen[None] = [path for path in chosen.get(None, []) if "trainval" not in path.name.lower()]
        chosen = {name: paths for name, paths in chosen.items() if paths}
    if len(chosen) > 1 and None in chosen:
        chosen.setdefault("", []).extend(chosen.pop(None))
    unclear = sorted(path for name, paths in chosen.items() if len(paths) > 1 or name == "" for path in paths)
    if unclear:
        listed = ", ".join(str(path.relative_to(root)) for path in (unclear if len(unclear) > 1 else sorted(files))[:8])
        raise ValueError(f"{root} has several annotation files that may be meant: {listed}; name one of them")
    splits = []
    for name in sorted(chosen, key=split_order):
        (path,) = chosen[name]
        splits.append(Split(name, path, image_folder(path, root, name), coco_reader(path)))
    return Layout(_layout_name(splits, bool(native)), "coco", tuple(splits))


def find_tinyperson(root: Path) -> Layout | None:
    """Return the layout of the published folder of TinyPerson (`tiny_set`), None if it is another one.

    The splits are the files of full images with both classes and without dense images, `tiny_set_train.json` and
    `tiny_set_test.json`. `erase_with_uncertain_dataset` has the first only. Other files, such as sub-images (`corner`)
    and single classes (`task`), must be named.

    Raises:
        ValueError: the folder of the images is missing.
    """
    folder = root / "annotations"
    splits = []
    for name in ("train", "test"):
        file = folder / f"tiny_set_{name}.json"
        if not file.is_file():
            continue
        images = root / name
        if not images.is_dir():
            raise ValueError(f"{file}: its images are not in {images}; unpack them there, or name them with --images")
        splits.append(Split(name, file, images, reader(lambda _, file=file: tinyperson.read(file))))  # type: ignore[misc]
    return Layout("TinyPerson", "tinyperson", tuple(splits)) if splits else None


def image_folder(annotations: Path, root: Path, split: str | None = None) -> Path | None:
    """Return the folder below `root` that has the images of an annotation file, None if there is none.

    Raises:
        ValueError: several folders have images with the names in the file.
    """
    beside = annotations.parent
    names = _file_names(annotations)
    if not names:
        return next((folder for folder in (beside / "images", root / "images") if folder.is_dir()), None)
    ranks: dict[int, list[Path]] = {}
    for folder in dict.fromkeys((beside / "images", beside, *folders_below(root, _DEPTH))):
        if all((folder / name).is_file() for name in names):
            named = split_of(folder, root)
            if folder in (beside / "images", beside):
                rank = 0 if folder != beside else 1
            else:
                rank = 2 if named == split else 3 if named is None else 4
            ranks.setdefault(rank, []).append(folder)
    if not ranks:
        fallback = (beside / "images", *([root / "images"] if beside != root else []))
        return next((folder for folder in fallback if folder.is_dir()), None)
    nearest = min(len(folder.parts) for folder in ranks[min(ranks)])
    best = [folder for folder in ranks[min(ranks)] if len(folder.parts) == nearest]
    if len({tuple((folder / name).stat().st_size for name in names) for folder in best}) > 1:
        listed = ", ".join(map(str, best[:5]))
        raise ValueError(f"{annotations}: several folders have its images: {listed}; name one with --images DIR")
    return best[0]


def kind_of(path: Path) -> Kind:
    """Return what a JSON file holds, by its first and last megabyte."""
    text = _ends(path)
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start == "[":
        label_studio = '"data"' in text and ('"annotations"' in text or '"completed_by"' in text)
        return "label studio" if label_studio else "other"
    if '"_via_' in text or '"region_attributes"' in text:
        return "via"
    if re.search(r'"shapes"\s*:', text) and ('"imagePath"' in text or '"imageHeight"' in text):
        return "labelme"
    if re.search(r'"items"\s*:\s*\[', text) and '"label_id"' in text:
        return "datumaro"
    keys = [re.search(rf'"{key}"\s*:\s*\[', text) for key in ("images", "annotations", "categories")]
    boxes = '"bbox"' in text or '"segmentation"' in text or re.search(r'"annotations"\s*:\s*\[\s*\]', text)
    complete = len(text) < 2 * _HEAD
    if start != "{" or '"score"' in text or '"segments_info"' in text or '"caption"' in text or not boxes:
        return "other"
    return "coco" if (all(keys[:2]) if complete else any(keys)) else "other"


def is_tinyperson(path: Path) -> bool:
    """Return whether a COCO file has the flags of TinyPerson."""
    text = _ends(path)
    return '"uncertain"' in text and '"logo"' in text and '"in_dense_image"' in text


def json_files(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with JSON files, and these files."""
    for folder in folders_below(root, _DEPTH):
        found = sorted(
            each
            for each in folder.iterdir()
            if each.name.lower().endswith((".json", ".json.gz")) and not each.name.startswith(".") and each.is_file()
        )
        if found:
            yield folder, found


def _coco_files(root: Path) -> Iterator[Path]:
    for _, found in json_files(root):
        if len(found) > _FEW and not any(kind_of(path) == "coco" for path in found[:3]):
            continue  # annotations of single images
        coco = [path for path in found if not path.name.endswith(".detections.json") and kind_of(path) == "coco"]
        instances = [path for path in coco if path.name.startswith("instances_")]
        others = ("instances_", "person_keypoints_", "captions_", "panoptic_", "stuff_", "image_info_")
        yield from (path for path in coco if not instances or path in instances or not path.name.startswith(others))


def _layout_name(splits: Sequence[Split], native: bool) -> str:
    names = {split.annotations.name for split in splits}
    if native:
        return "COCO folder"
    if names <= set(ANNOTATION_NAMES):
        return "COCO folders"
    if names == {"_annotations.coco.json"}:
        return "Roboflow COCO export"
    if all(name.startswith("instances_") for name in names):
        return "CVAT COCO export" if names == {"instances_default.json"} else "COCO2017 layout"
    return "COCO annotations"


def _file_names(annotations: Path) -> list[str]:
    """Return some of the file names in an annotation file, without those outside the image folder."""
    found = _FILE_NAME.findall(_ends(annotations))
    if found:
        names = []
        for text in found:
            try:
                names.append(json.loads(text))
            except ValueError:
                continue
    else:
        entries = read_document(annotations).get("images")
        names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)] if entries else []
    texts = [image_name(name) for name in dict.fromkeys(names) if isinstance(name, str) and name and "\0" not in name]
    inside = [name for name in texts if not leaves_folder(name)]
    return inside[:: max(1, len(inside) // _SAMPLES)][:_SAMPLES]


def _ends(path: Path) -> str:
    """Return the first and the last megabyte of a file as text, decompressed; all of it if it is smaller."""
    with path.open("rb") as file:
        if file.read(2) == GZIP_MAGIC:
            file.seek(0)
            try:
                with gzip.GzipFile(fileobj=file) as packed:
                    return packed.read(_HEAD).decode("utf-8", "replace")
            except (OSError, EOFError):
                return ""
        file.seek(0)
        head = file.read(_HEAD)
        size = file.seek(0, 2)
        file.seek(max(size - _HEAD, len(head)))
        content = head + file.read()
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    return content.decode("utf-8", "replace")
