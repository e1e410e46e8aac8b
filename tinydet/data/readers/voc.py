"""Pascal VOC: an XML file for each picture.

Pixels count from 1 and the last one belongs to the box: a box from 1 to 4 is 4 pixels wide and begins at 0. Tools that
write the format often mean edges counted from 0 instead; `first_pixel` says which. `difficult` objects are left out of
the benchmark's scores, and become ignore regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from tinydet.data.image_files import list_pictures, picture_size
from tinydet.data.readers.collection import Collection

CATEGORIES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_FLAGS = ("truncated", "occluded", "difficult")
_DEEPEST = 50  # levels of elements; the format has four
_LONGEST = 1000  # characters of a text; the format has numbers and names


def read(
    source: Path, images: Path | None = None, *, first_pixel: int = 1, classes: Sequence[str] | None = None
) -> Collection:
    """A folder of XML files (or one of them), whose pictures need not be there if the files say their sizes.

    Args:
        images: folder of the pictures. A picture is the one that `filename` names, or else the file's namesake.
        first_pixel: 1, as published; 0 where the numbers are edges.
        classes: all names in the order of their ids; None: those that occur, numbered as published.

    Raises:
        ValueError: naming the file and the line.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist; name a folder of .xml files")
    files = sorted(source.rglob("*.xml")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source}: no .xml file in this folder; name the one that holds the annotations")
    pictures = None if images is None else _Pictures(images)
    found = Collection(source, [])
    edges = 0
    for path in files:
        root = parse_xml(path)
        if root.tag != "annotation":
            raise ValueError(f"{path} line {root.line}: <{root.tag}>; expected <annotation> of Pascal VOC")
        named = root.first("filename")
        name = Path(named.text.replace("\\", "/")).name if named is not None else ""
        if pictures is not None:
            name = pictures.take(path, path.relative_to(source) if source.is_dir() else Path(path.name), name)
        elif not name:
            raise ValueError(f"{path} line {root.line}: no <filename>; name the folder of the pictures with --images")
        image_id = found.add_image(name, _size(path, root, images / name if images is not None else None))
        for element in root.all("object"):
            box = element.one("bndbox", path)
            left, top, right, bottom = (_number(path, box.one(key, path)) for key in ("xmin", "ymin", "xmax", "ymax"))
            if right < left or bottom < top:
                what = f"a box from {left:g},{top:g} to {right:g},{bottom:g}"
                raise ValueError(f"{path} line {box.line}: {what}; xmin and ymin must be the smaller ones")
            edges += left < 1 or top < 1
            flags = {flag: _flag(path, element, flag) for flag in _FLAGS}
            pose = {"pose": pose.text} if (pose := element.first("pose")) is not None and pose.text else {}
            xywh = (left - first_pixel, top - first_pixel, right - left + first_pixel, bottom - top + first_pixel)
            kind = element.one("name", path)
            if not kind.text:
                raise ValueError(f"{path} line {kind.line}: an object without a name; give it its class")
            fields: dict[str, Any] = {**{key: flag for key, flag in flags.items() if flag is not None}, **pose}
            found.add_box(
                image_id, kind.text, xywh, f"{path} line {element.line}", ignore=bool(flags["difficult"]), **fields
            )
    found.number_categories(CATEGORIES, classes)
    if first_pixel and edges:
        found.notes.append(f"{edges} boxes begin before pixel 1, so they hardly count from 1; try --first-pixel 0")
    if pictures is not None and (alone := pictures.left()):
        found.notes.append(f"{alone} pictures of {images} have no annotation file and are left out")
    return found


@dataclass
class Element:
    """An XML element: its name, its line, the text before its first child, its children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> Element | None:
        return next(iter(self.all(tag)), None)

    def one(self, tag: str, path: Path) -> Element:
        """The first child of this name.

        Raises:
            ValueError: naming the file and the line, where there is none.
        """
        child = self.first(tag)
        if child is None:
            raise ValueError(f"{path} line {self.line}: <{self.tag}> has no <{tag}>; add it or remove the element")
        return child


def parse_xml(path: Path) -> Element:
    """The root element of a file without a document type: so it can define no entities, and load no other files.

    Raises:
        ValueError: naming the file and the line.
    """
    stack: list[Element] = []
    roots: list[Element] = []
    parser = expat.ParserCreate()

    def where() -> str:
        return f"{path} line {parser.CurrentLineNumber}"

    def refuse(*_: object) -> None:
        raise ValueError(f"{where()}: a document type (<!DOCTYPE>), which Pascal VOC does not have; remove it")

    def start(tag: str, _: dict[str, str]) -> None:
        if len(stack) >= _DEEPEST:
            raise ValueError(f"{where()}: elements in elements, more than {_DEEPEST} deep; this is not Pascal VOC")
        element = Element(tag, parser.CurrentLineNumber)
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def end(_: str) -> None:
        element = stack.pop()
        element.text = element.text.strip()

    def text(data: str) -> None:
        if stack and not stack[-1].children and len(stack[-1].text) < _LONGEST:
            stack[-1].text += data

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.buffer_text = True
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise ValueError(f"{path} line {error.lineno}: not XML ({reason}); write the file again") from error
    return roots[0]


class _Pictures:
    """The pictures of a folder, by name; each belongs to one annotation file."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images; check --images")
        self.folder = folder
        self.owner: dict[Path, Path | None] = dict.fromkeys(list_pictures(folder))
        self.named: dict[str, list[Path]] = {}
        for picture in self.owner:
            for name in (picture.name, picture.stem):
                self.named.setdefault(name, []).append(picture)

    def take(self, path: Path, relative: Path, name: str) -> str:
        """The picture of an annotation file: the one that it names, or its namesake; of several, in the same folder."""
        found = self.named.get(name) or self.named.get(path.stem) or []
        if len(found) > 1:
            found = [picture for picture in found if picture.with_suffix("") == relative.with_suffix("")]
        if len(found) != 1:
            raise ValueError(
                f"{path}: no picture {name!r}, and none of the file's name, in {self.folder}; check --images"
            )
        if (other := self.owner[found[0]]) is not None:
            raise ValueError(f"{path}: {other} is about the same picture, {found[0]}; remove one of the two")
        self.owner[found[0]] = path
        return found[0].as_posix()

    def left(self) -> int:
        return sum(owner is None for owner in self.owner.values())


def _size(path: Path, root: Element, picture: Path | None) -> tuple[int, int]:
    size = root.first("size")
    sides = [_number(path, size.one(key, path)) for key in ("width", "height")] if size is not None else [0.0, 0.0]
    if all(side > 0 and side.is_integer() for side in sides):
        return int(sides[0]), int(sides[1])
    if picture is None:  # some tools leave the size out, or write 0
        line = root.line if size is None else size.line
        raise ValueError(f"{path} line {line}: no size of the picture; name its folder with --images to read it there")
    return picture_size(picture)


def _number(path: Path, element: Element) -> float:
    try:
        value = float(element.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} line {element.line}: <{element.tag}> is {element.text[:40]!r}; expected a number")
    return value


def _flag(path: Path, parent: Element, tag: str) -> int | None:
    element = parent.first(tag)
    if element is None or element.text in ("", "Unspecified"):
        return None
    if element.text not in ("0", "1"):
        raise ValueError(f"{path} line {element.line}: <{tag}> is {element.text[:40]!r}; expected 0 or 1")
    return int(element.text)
