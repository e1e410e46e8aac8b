"""Pascal VOC: one XML file per image.

Coordinates are pixel indices from 1, and the last pixel belongs to the box: a box from 1 to 4 starts at 0 and is 4
pixels wide. Many annotation tools write edges counted from 0 instead; `first_pixel` chooses between the two. The
benchmark does not evaluate `difficult` objects; they become ignore regions.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat

from tinydet._internal.console import plural
from tinydet._internal.errors import reason
from tinydet._internal.input_files import read_file
from tinydet._internal.progress import track
from tinydet.data.image_checks import check_image_folder
from tinydet.data.image_files import image_size, list_files, list_images
from tinydet.data.image_names import ImageNames
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import read_text, respelling_notes

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
_FLAG_VALUES = {"0": 0, "1": 1, "false": 0, "true": 1}
_DECLARATION = re.compile(rb"""<\?xml[^>]{0,100}?\sencoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]{0,40})["']""")
# Much faster than parsing; `class_names` reads the files of every split.
_OBJECT_NAME = re.compile(r"<object>\s*(?:<(?!name\b)[^>]*>[^<]*</[^>]*>\s*)*<name>([^<]*)</name>")
_FLAGS = ("truncated", "occluded", "difficult")
_MAX_DEPTH = 50  # of nested elements; the format needs four
_MAX_TEXT = 1000  # characters of an element's text; the format has only numbers and names


def read(
    source: Path,
    images: Path | None = None,
    *,
    first_pixel: int | None = None,
    classes: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    also: Iterable[str] = (),
) -> CocoBuilder:
    """Read an XML file or a folder of them.

    Args:
        images: folder of the images, which are found by `filename` or by the name of the XML file. None takes
            `filename` without a check; the files must then state the image sizes.
        first_pixel: 1 for pixel indices, as published; 0 for edges; None: 0 if a box starts before pixel 1 or most
            have fractions of a pixel, else 1.
        classes: all class names in the order of their ids; None takes those that occur, numbered as published.
        only: read the annotations of these images only, by names without suffix.
        also: class names that occur in other splits.

    Raises:
        ValueError: a file or element is invalid; the message names the file and the line.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist; name a folder of .xml files")
    root, files = (source, list_files(source, (".xml",))) if source.is_dir() else (source.parent, [Path(source.name)])
    if only is not None:
        files = [file for file in files if file.with_suffix("").as_posix() in only or file.stem in only]
    if not files:
        raise ValueError(f"{source}: no .xml file in this folder; name the folder of the annotations")
    index = None if images is None else _ImageIndex(source, images)
    coco = CocoBuilder(source, [])
    edges = 0  # boxes that cannot be pixel indices from 1
    fractions = 0  # boxes with a fraction of a pixel; the published dataset has a few
    corners = []
    size_locations = []
    for file in track(files, "file", "reading"):
        path = root / file
        annotation = parse_xml(path)
        if annotation.tag != "annotation":
            raise ValueError(f"{path} line {annotation.line}: <{annotation.tag}>; expected <annotation> of Pascal VOC")
        named = annotation.first("filename")
        name = named.text.replace("\\", "/") if named is not None else ""
        if index is not None:
            name = index.assign(path, file, name)
        elif not (name := PurePosixPath(name).name):
            line = annotation.line
            raise ValueError(f"{path} line {line}: no <filename>; name the folder of the images with --images")
        size, line = _size(path, annotation, images / name if images is not None else None)
        size_locations.append(f"{path} line {line}: <size>")
        image_id = coco.add_image(name, size)
        for element in annotation.all("object"):
            if element.first("polygon") is not None and element.first("bndbox") is None:
                raise ValueError(f"{path} line {element.line}: LabelMe XML, not Pascal VOC; export it as COCO or YOLO")
            box = element.require("bndbox", path)
            left, top, right, bottom = (
                _number(path, box.require(key, path)) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            if right < left or bottom < top:
                what = f"a box from {left:g},{top:g} to {right:g},{bottom:g}"
                raise ValueError(f"{path} line {box.line}: {what}; xmin and ymin must be at most xmax and ymax")
            edges += left < 1 or top < 1
            fractions += not all(map(float.is_integer, (left, top, right, bottom)))
            corners.append((left, top, right, bottom))
            flags = {flag: _flag(path, element, flag) for flag in _FLAGS}
            named_pose = element.first("pose")
            pose = {"pose": named_pose.text} if named_pose is not None and named_pose.text else {}
            category = element.require("name", path)
            if not category.text:
                raise ValueError(f"{path} line {category.line}: an object without a name; give it its class")
            fields: dict[str, Any] = {**{key: flag for key, flag in flags.items() if flag is not None}, **pose}
            coco.add_box(
                image_id,
                category.text,
                (0.0, 0.0, 0.0, 0.0),  # follows below
                f"{path} line {element.line}",
                ignore=bool(flags["difficult"]),
                **fields,
            )
    looks_like_edges = edges > 0 or fractions > len(corners) / 2
    origin = int(not looks_like_edges) if first_pixel is None else first_pixel
    for entry, (left, top, right, bottom) in zip(coco.annotations, corners, strict=True):
        width, height = right - left + origin, bottom - top + origin
        entry.update(bbox=[left - origin, top - origin, width, height], area=width * height)
    coco.number_categories(CATEGORIES, classes, also)
    if images is not None:
        coco.check_sizes(images, size_locations)
    if looks_like_edges and first_pixel is None:
        why = f"{edges} boxes start before pixel 1" if edges else f"{fractions} boxes have fractions of a pixel"
        coco.notes.append(f"coordinates are read as edges counted from 0, because {why}")
    elif edges and first_pixel:
        coco.notes.append(f"{edges} boxes start before pixel 1, so coordinates are probably edges; try --first-pixel 0")
    if index is not None:
        coco.notes += index.notes()
    if index is not None and only is None and (unmatched := index.count_unassigned()):
        coco.notes.append(f"{plural(unmatched, 'image')} of {images} left out, without an annotation file")
    return coco


def class_names(source: Path, only: Collection[str] | None = None) -> set[str]:
    """Return the class names that occur in a folder of XML files, which are not checked otherwise."""
    names: set[str] = set()
    for file in list_files(source, (".xml",)):
        if only is None or file.with_suffix("").as_posix() in only or file.stem in only:
            names.update(_OBJECT_NAME.findall(_xml_text(source / file)))
    return {html.unescape(name).strip() for name in names} - {""}


@dataclass(slots=True)
class Element:
    """An XML element with its line number and the text before its first child."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)

    def all(self, tag: str) -> list[Element]:
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> Element | None:
        for child in self.children:
            if child.tag == tag:
                return child
        return None

    def require(self, tag: str, path: Path) -> Element:
        """Return the first child with this tag.

        Raises:
            ValueError: there is none; the message names the file and the line.
        """
        child = self.first(tag)
        if child is None:
            raise ValueError(f"{path} line {self.line}: <{self.tag}> has no <{tag}>; add it or remove the element")
        return child


def parse_xml(path: Path) -> Element:
    """Return the root element of an XML file.

    A document type is an error, so a file can neither define entities nor load other files.

    Raises:
        ValueError: the file is invalid; the message names the file and the line.
    """
    root = Element("", 0)
    stack = [root]
    texts: list[str] = []  # since the last tag
    parser = expat.ParserCreate()

    def location() -> str:
        return f"{path} line {parser.CurrentLineNumber}"

    def reject_doctype(*_: object) -> None:
        raise ValueError(f"{location()}: a document type (<!DOCTYPE>) is not allowed in annotations; remove it")

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise ValueError(f"{location()}: elements nested more than {_MAX_DEPTH} deep; these are not annotations")
        parent = stack[-1]
        if not parent.children:
            parent.text = "".join(texts)
        texts.clear()
        element = Element(tag, parser.CurrentLineNumber, attributes=attributes)
        parent.children.append(element)
        stack.append(element)

    def end(_: str) -> None:
        element = stack.pop()
        if not element.children:
            element.text = "".join(texts)
        texts.clear()
        element.text = element.text[:_MAX_TEXT].strip()

    parser.StartDoctypeDeclHandler = reject_doctype
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = texts.append
    parser.buffer_text = True
    try:
        parser.Parse(_xml_text(path), True)
    except expat.ExpatError as error:
        raise ValueError(
            f"{path} line {error.lineno}: not XML ({expat.ErrorString(error.code)}); replace the file"
        ) from error
    finally:  # free the elements at once: parser and handlers refer to each other
        parser.StartDoctypeDeclHandler = parser.StartElementHandler = parser.EndElementHandler = None
    return root.children[0]


def _xml_text(path: Path) -> str:
    """Read an XML file in the encoding of its byte order mark or declaration."""
    content = read_file(path)
    declared = _DECLARATION.match(content)
    if declared is None:
        return read_text(path)
    encoding = declared[1].decode("ascii")
    try:
        return content.decode(encoding)
    except LookupError:
        raise ValueError(f"{path} line 1: the encoding {encoding!r} is unknown; save the file as UTF-8") from None
    except UnicodeError as error:
        raise ValueError(f"{path}: not {encoding} text ({reason(error)}); save the file as UTF-8") from error


class _ImageIndex:
    """The images of a folder by name. Each belongs to at most one annotation file."""

    def __init__(self, source: Path, folder: Path) -> None:
        check_image_folder(source, folder)
        self.folder = folder
        files = list_images(folder)
        self.owner: dict[Path, Path | None] = dict.fromkeys(files)
        self.names, self.stems = ImageNames(files), ImageNames(files, suffixes=False)
        self.respelled: list[str] = []
        self.renamed: list[str] = []

    def assign(self, path: Path, relative: Path, name: str) -> str:
        """Return the image of an annotation file: the one called `name`, or the one with the name of the file.

        Args:
            path: the annotation file.
            relative: `path` relative to the folder of annotations; it decides between images of the same name.
            name: from the file, with slashes; may be empty.

        Raises:
            ValueError: no such image, several, or it belongs to another file.
        """
        own = self.stems.find(relative.with_suffix("").as_posix()) or self.stems.find(relative.stem)
        named = self._find(name) if name else []
        found = named or own
        if len(found) > 1:
            same = [image for image in found if image.with_suffix("") == relative.with_suffix("")]
            found = same if len(same) == 1 else found
        if len(found) != 1:
            known = f"images {' and '.join(map(str, found[:2]))} have the name" if found else "no image"
            raise ValueError(
                f"{path}: {known} {name or relative.stem!r} or {path.stem!r} in {self.folder}; check --images"
            )
        (image,) = found
        if (other := self.owner[image]) is not None:
            raise ValueError(f"{path}: {other} annotates the same image, {image}; remove one of the two")
        self.owner[image] = path
        if named and own and image not in own:
            self.renamed.append(f"{path} to {image}")
        elif image.stem not in (PurePosixPath(name).stem, relative.stem):
            self.respelled.append(f"{path} to {image}")
        return image.as_posix()

    def count_unassigned(self) -> int:
        return sum(owner is None for owner in self.owner.values())

    def notes(self) -> list[str]:
        """Return messages to the user about names that differ."""
        notes = respelling_notes(self.respelled)
        if self.renamed:
            notes.append(
                f"annotation files whose <filename> differs from their own name: "
                f"{len(self.renamed)}; <filename> is used; the first {self.renamed[0]}"
            )
        return notes

    def _find(self, name: str) -> list[Path]:
        """Return the images with this name, otherwise those with another suffix or in another folder."""
        path = PurePosixPath(name)
        base = path.name
        for form in (path, PurePosixPath(base)) if base else ():
            stem = form.with_suffix("").as_posix()
            if found := self.names.find(form.as_posix()) or self.stems.find(stem) or self.stems.find(form.as_posix()):
                return found
        return []


def _size(path: Path, annotation: Element, image: Path | None) -> tuple[tuple[int, int], int]:
    """Return the size stated in the file, or else that of the image, and the line number of the statement."""
    size = annotation.first("size")
    line = annotation.line if size is None else size.line
    elements = [size.first(key) for key in ("width", "height")] if size is not None else []
    sides = [_number(path, element) if element is not None and element.text else 0.0 for element in elements]
    if sides and all(side > 0 and side.is_integer() for side in sides):
        return (int(sides[0]), int(sides[1])), line
    if image is None:  # some tools omit the size, or write 0
        raise ValueError(
            f"{path} line {line}: no image size; name the folder of the images with --images to read it from there"
        )
    return image_size(image), line


def _number(path: Path, element: Element) -> float:
    try:
        value = math.nan if "_" in element.text else float(element.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} line {element.line}: <{element.tag}> is {element.text[:40]!r}; expected a number")
    return value


def _flag(path: Path, parent: Element, tag: str) -> int | None:
    element = parent.first(tag)
    if element is None or element.text in ("", "Unspecified"):
        return None
    if element.text.lower() not in _FLAG_VALUES:
        raise ValueError(f"{path} line {element.line}: <{tag}> is {element.text[:40]!r}; expected 0 or 1")
    return _FLAG_VALUES[element.text.lower()]
