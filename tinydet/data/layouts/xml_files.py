"""Pascal VOC datasets: VOCdevkit, exports of Roboflow, CVAT and others; and CVAT for images."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from tinydet.data.image_files import list_files, list_images
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
from tinydet.data.readers import cvat, voc
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import numbered_lines

_DEPTH = 3
_IMAGES = ("JPEGImages", "images", "Images", "imgs", "img")


def find_voc(root: Path) -> Layout | None:
    """Return the layout of the Pascal VOC files of a folder, None without any.

    Raises:
        ValueError: several folders may be meant, or the images are missing.
    """
    found = [folder for folder in folders_below(root, _DEPTH) if _has_annotations(folder)]
    if not found:
        return None
    for folder in folders_below(root, _DEPTH):  # an `Annotations` may have folders of its own
        inside = [each for each in found if each.is_relative_to(folder)]
        if (
            folder.name.lower() == "annotations"
            and len(inside) > 1
            and not all(split_name(each.name) for each in inside)
        ):
            found = [each for each in found if each not in inside] + [folder]
    if len(found) == 1:
        return _one_folder(found[0])
    named = {folder: split_of(folder, root) for folder in found}
    if None in named.values() or len(set(named.values())) < len(found):
        listed = ", ".join(str(folder.relative_to(root)) for folder in found[:8])
        raise ValueError(f"{root} has several folders of Pascal VOC files: {listed}; name one, or the folder above it")
    every = tuple((folder, None) for folder in found)
    splits = [
        _split(name, folder, _images_of(folder), None, every)
        for folder, name in sorted(named.items(), key=lambda item: split_order(item[1]))
    ]
    return Layout("Pascal VOC folders", "voc", tuple(splits))


def voc_layout(annotations: Path, images: Path | None) -> Layout:
    """Return the layout of a folder of XML files and one of images."""
    return Layout("Pascal VOC files", "voc", (_split(None, annotations, images, None, ((annotations, None),)),))


def find_cvat(root: Path) -> Layout | None:
    """Return the layout of an `annotations.xml` of CVAT for images, None without one."""
    path = root / "annotations.xml"
    return cvat_layout(path, None) if path.is_file() and is_cvat(path) else None


def is_cvat(path: Path) -> bool:
    """Return whether an XML file is of CVAT for images."""
    with path.open("rb") as file:
        return b"<annotations" in file.read(4096)


def cvat_layout(path: Path, images: Path | None) -> Layout:
    """Return the layout of an `annotations.xml` of CVAT; its subsets are splits if their names say so."""
    names = cvat.subsets(path)
    splits = {name: split_name(name) for name in names}
    known = bool(names) and None not in splits.values() and len(set(splits.values())) == len(names)
    folder = images
    if folder is None:
        choices = [each for each in folders_below(path.parent, 2) if each.name != "labels"]
        wanted = [entry["file_name"] for entry in cvat.read(path).images[:3]]
        folder = next((each for each in choices if all((each / name).is_file() for name in wanted)), None)
    chosen: list[tuple[str | None, str | None]] = [(splits[name], name) for name in names] if known else [(None, None)]
    return Layout(
        "CVAT for images",
        "cvat",
        tuple(
            Split(name, path, folder, reader(lambda _, subset=subset: cvat.read(path, subset)))  # type: ignore[misc]
            for name, subset in chosen
        ),
    )


def _one_folder(annotations: Path) -> Layout:
    """Return the layout of one folder of XML files, with the splits of `ImageSets/Main` if it has them."""
    images = _images_of(annotations)
    lists = annotations.parent / "ImageSets" / "Main"
    train = "train.txt" if (lists / "train.txt").is_file() else "trainval.txt"
    splits = []
    for name, file in (("train", train), ("val", "val.txt"), ("test", "test.txt")):
        only = _listed(lists / file) if (lists / file).is_file() else None
        if only and any((annotations / f"{stem}.xml").is_file() for stem in only):
            splits.append(_split(name, annotations, images, only, ((annotations, None),)))
    if not splits:
        splits = [_split(None, annotations, images, None, ((annotations, None),))]
    published = annotations.parent.parent.name == "VOCdevkit" or annotations.parent.name.startswith("VOC2")
    return Layout("Pascal VOC dataset" if lists.is_dir() or published else "Pascal VOC files", "voc", tuple(splits))


def _listed(path: Path) -> frozenset[str]:
    """Return the names in a list of `ImageSets`, which may have a number after each."""
    lines = (line for _, line in numbered_lines(path))
    names = (line.rsplit(None, 1)[0] if line.endswith((" 1", " -1", " 0")) else line for line in lines)
    return frozenset(str(Path(name).with_suffix("")) if Path(name).suffix.lower() in (".jpg", ".png") else name
                     for name in names)  # fmt: skip


def _split(
    name: str | None,
    annotations: Path,
    images: Path | None,
    only: Collection[str] | None,
    every: tuple[tuple[Path, Collection[str] | None], ...],
) -> Split:
    """Return a split; `every`: the folders of all splits, whose classes have the same numbers in each."""

    @cache
    def names() -> frozenset[str]:
        return frozenset().union(*(voc.class_names(folder, of) for folder, of in every))

    def read(options: ReadOptions) -> CocoBuilder:
        classes = None if options.classes is None else read_class_names(options.classes)
        also = names() if classes is None and (only is not None or len(every) > 1) else ()
        return voc.read(annotations, images, first_pixel=options.first_pixel, classes=classes, only=only, also=also)

    return Split(name, annotations, images, reader(read))


def _has_annotations(folder: Path) -> bool:
    """Return whether a folder has Pascal VOC files, by the first XML file in it."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".xml" and not each.name.startswith("."))
    if not files or not files[0].is_file():
        return False
    with files[0].open("rb") as file:
        content = file.read(4096)
    return b"<annotation>" in content or (b"<annotation" in content and b"<annotations" not in content)


def _images_of(annotations: Path) -> Path:
    """Return the folder of the images of a folder of XML files."""
    name = annotations.name
    for place in (annotations.parent, annotations.parent.parent):
        for images in _IMAGES:
            for folder in (place / images / name, place / images):
                if folder.is_dir() and folder != annotations and list_images(folder):
                    return folder
    if list_images(annotations):
        return annotations
    if list_images(annotations.parent):
        return annotations.parent
    raise ValueError(f"{annotations}: no folder of images, such as JPEGImages, next to it; name it with --images DIR")


def xml_folder(folder: Path) -> bool:
    """Return whether a folder has Pascal VOC files, at any depth."""
    files = list_files(folder, (".xml",))
    return bool(files) and _has_annotations((folder / files[0]).parent)
