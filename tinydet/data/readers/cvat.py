"""CVAT for images 1.1: one XML file for all images, with image sizes, labels and shapes.

A box has corners in pixels; the box around every other shape is read. Coordinates are edges counted from 0. Objects
with the attribute or flag `ignore` are ignore regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.voc import Element, parse_xml

_SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "cuboid")


def read(path: Path, subset: str | None = None) -> CocoBuilder:
    """Read an `annotations.xml`.

    Args:
        subset: read only the images of this subset, as CVAT writes it; None for all.

    Raises:
        ValueError: the file is invalid; the message names the file and the line.
    """
    root = _root(path)
    names = _labels(root)
    for image in root.all("image"):
        for shape in _shapes(image):
            if (label := _attribute(path, shape, "label")) not in names:
                names.append(label)
    number = {name: n for n, name in enumerate(names, 1)}
    coco = CocoBuilder(path, [{"id": n, "name": name} for name, n in number.items()])
    masks = 0
    for image in root.all("image"):
        if subset is not None and image.attributes.get("subset") != subset:
            continue
        size = int(_number(path, image, "width")), int(_number(path, image, "height"))
        image_id = coco.add_image(_attribute(path, image, "name").replace("\\", "/"), size)
        masks += len(image.all("mask"))
        for shape in _shapes(image):
            left, top, right, bottom = _bounds(path, shape)
            coco.add_box(
                image_id,
                number[shape.attributes["label"]],
                (left, top, right - left, bottom - top),
                f"{path} line {shape.line}",
                ignore=any(
                    each.attributes.get("name") == "ignore" and each.text.lower() in ("true", "1")
                    for each in shape.all("attribute")
                ),
            )
    if masks:
        coco.notes.append(f"{masks} masks are left out; export them as COCO to keep their boxes")
    return coco


def subsets(path: Path) -> list[str]:
    """Return the names of the subsets of a file, empty without any."""
    return list(dict.fromkeys(name for image in _root(path).all("image") if (name := image.attributes.get("subset"))))


def _root(path: Path) -> Element:
    root = parse_xml(path)
    if root.tag != "annotations":
        raise ValueError(f"{path} line {root.line}: <{root.tag}>; expected <annotations> of CVAT for images")
    if root.first("track") is not None:
        raise ValueError(
            f"{path}: CVAT for video, with tracks; export the task as 'CVAT for images 1.1' or 'COCO 1.0' with images"
        )
    return root


def _labels(root: Element) -> list[str]:
    """Return the names in <meta>, in the order of the task or project."""
    found: list[str] = []
    waiting = root.all("meta")
    while waiting:
        element = waiting.pop(0)
        if element.tag == "label":
            name = element.first("name")
            if name is not None and name.text and name.text not in found:
                found.append(name.text)
        else:
            waiting += element.children
    return found


def _shapes(image: Element) -> Iterator[Element]:
    return (child for child in image.children if child.tag in _SHAPES)


def _bounds(path: Path, shape: Element) -> tuple[float, float, float, float]:
    """Return the box around a shape: left, top, right, bottom."""
    if shape.tag == "box":
        left, top, right, bottom = (_number(path, shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        angle = math.radians(_number(path, shape, "rotation")) if "rotation" in shape.attributes else 0.0
        if angle:
            x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
            half = (w * cosine + h * sine) / 2, (w * sine + h * cosine) / 2
            return x - half[0], y - half[1], x + half[0], y + half[1]
        return left, top, right, bottom
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(path, shape, key) for key in ("cx", "cy", "rx", "ry"))
        return x - rx, y - ry, x + rx, y + ry
    if shape.tag == "cuboid":
        keys = [key for key in shape.attributes if key[:1] in "xy" and key[1:3] in ("tl", "bl", "tr", "br")]
        xs = [_number(path, shape, key) for key in keys if key.startswith("x")]
        ys = [_number(path, shape, key) for key in keys if key.startswith("y")]
    else:
        pairs = [pair.split(",") for pair in _attribute(path, shape, "points").split(";")]
        try:
            xs, ys = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
        except ValueError:
            raise ValueError(f"{path} line {shape.line}: points must be x,y;x,y; correct them") from None
    if not xs or not ys:
        raise ValueError(f"{path} line {shape.line}: <{shape.tag}> has no points; correct or remove it")
    return min(xs), min(ys), max(xs), max(ys)


def _attribute(path: Path, element: Element, name: str) -> str:
    if name not in element.attributes:
        raise ValueError(f"{path} line {element.line}: <{element.tag}> has no {name}; add it or remove the element")
    return element.attributes[name]


def _number(path: Path, element: Element, name: str) -> float:
    text = _attribute(path, element, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} line {element.line}: {name} is {text[:40]!r}; expected a number")
    return value
