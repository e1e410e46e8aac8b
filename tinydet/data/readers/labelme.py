"""labelme: one JSON file per image, with its size and shapes.

The box around each shape is read: rectangles, polygons, lines, points and circles, which have a center and a point on
the circle. Coordinates are edges counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tinydet._internal.json_files import read_json
from tinydet._internal.progress import track
from tinydet.data.image_files import image_size, list_files
from tinydet.data.readers.coco_builder import CocoBuilder


def read(source: Path, images: Path, *, also: Iterable[str] = ()) -> CocoBuilder:
    """Read a folder of labelme files. Images without a file are left out.

    Args:
        images: folder of the images, which are found by `imagePath` or by the name of the JSON file.
        also: class names that occur in other splits. Classes are numbered alphabetically.

    Raises:
        ValueError: a file is invalid, or its image is missing; the message names the file.
    """
    coco = CocoBuilder(source, [])
    owners: dict[str, Path] = {}
    for file in track(list_files(source, (".json",)), "file", "reading"):
        path = source / file
        content = _content(path)
        name = _image(path, file, images, content.get("imagePath"))
        if name in owners:
            raise ValueError(f"{path}: {owners[name]} annotates the same image, {name}; remove one of the two")
        owners[name] = path
        image_id = coco.add_image(name, image_size(images / name))
        for n, shape in enumerate(content["shapes"]):
            location = f"{path}, shape {n + 1}"
            label = shape.get("label") if isinstance(shape, dict) else None
            if not isinstance(label, str) or not label:
                raise ValueError(f"{location}: no label; give it its class")
            left, top, right, bottom = _bounds(shape, location)
            coco.add_box(image_id, label, (left, top, right - left, bottom - top), location)
    coco.number_categories((), None, also)
    return coco


def class_names(source: Path) -> set[str]:
    """Return the labels that occur in a folder of labelme files."""
    shapes = (shape for file in list_files(source, (".json",)) for shape in _content(source / file)["shapes"])
    labels = (shape.get("label") for shape in shapes if isinstance(shape, dict))
    return {label for label in labels if isinstance(label, str)}


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError(f"{path}: not a labelme file, which has a list of shapes; remove it or name another folder")
    return content


def _image(path: Path, file: Path, images: Path, named: Any) -> str:
    """Return the image of a file, relative to the folder of the images."""
    names = [PureWindowsPath(named).name] if isinstance(named, str) and named else []
    for name in names:
        for folder in (file.parent, Path()):
            if (images / folder / name).is_file():
                return (folder / name).as_posix()
    for suffix in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".JPG", ".PNG"):
        if (images / file.with_suffix(suffix)).is_file():
            return PurePosixPath(file.with_suffix(suffix)).as_posix()
    raise ValueError(f"{path}: no image {(names or [file.stem])[0]!r} in {images}; add it or remove the file")


def _bounds(shape: dict[str, Any], location: str) -> tuple[float, float, float, float]:
    points = shape.get("points")
    try:
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]  # type: ignore[union-attr]
        if not xs or not all(map(math.isfinite, [*xs, *ys])):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{location}: points must be a list of [x, y]; correct or remove it") from None
    if shape.get("shape_type") == "circle" and len(xs) == 2:
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    return min(xs), min(ys), max(xs), max(ys)
