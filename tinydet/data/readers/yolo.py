"""YOLO: a text file for each picture, one object a line; the names of the classes in `data.yaml` or `classes.txt`.

`class x y width height`: the number of the class from 0, then the centre and the sides as shares of the picture. More
numbers are the corners of a polygon (segmentation, oriented boxes), and the box is the one around it. A picture
without a text file, or with an empty one, shows no object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.extras import needs_extra
from tinydet.data.image_files import picture_size
from tinydet.data.readers.collection import Collection
from tinydet.data.readers.text import numbered_lines, pair_with_pictures, read_names, to_numbers, to_whole

LISTS = ("data.yaml", "data.yml", "classes.txt", "obj.names")  # of class names, in the folder or the two above it
_FORM = "class x y width height, as shares of the picture from 0 to 1"
_SLACK = 0.01  # labels that were rounded or drawn beyond the border; what is further out is not a share


def read(source: Path, images: Path | None, *, classes: Sequence[str] | None = None) -> Collection:
    """A folder of labels with the folder of its pictures.

    Args:
        classes: names in the order of their numbers; None: those of the nearest of `LISTS`.

    Raises:
        ValueError: naming the file and the line.
    """
    names = list(classes) if classes is not None else _find_names(source)
    pairs, alone = pair_with_pictures(source, images, leave=frozenset(LISTS))
    assert images is not None
    found = Collection(source, [{"id": n, "name": name} for n, name in enumerate(names)])
    labels = {picture: text for text, picture in pairs}
    for picture in sorted([*labels, *alone]):
        size = picture_size(images / picture)
        image_id = found.add_image(picture.as_posix(), size)
        for number, line in numbered_lines(labels[picture]) if picture in labels else ():
            where = f"{labels[picture]} line {number}"
            kind, *shares = to_numbers(line.split(), where, _FORM)
            kind = to_whole(kind, 0, len(names) - 1, where, "class")
            found.add_box(image_id, kind, *_in_pixels(shares, size, where))
    if alone:
        found.notes.append(f"{len(alone)} pictures of {images} have no label file: images without objects")
    return found


def read_yaml_names(path: Path) -> list[str]:
    """The `names` of a data.yaml: a list, or a mapping from numbers.

    Raises:
        ValueError: naming the file, where they are neither.
        ModuleNotFoundError: PyYAML is not installed.
    """
    with needs_extra("formats"):
        import yaml
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from error
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"{path}: expected names: [person, car], or names: {{0: person, 1: car}}")
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{path}: a class name is listed twice in {texts}; the names of classes must differ")
    return texts


def _find_names(source: Path) -> list[str]:
    folder = source.parent if source.is_file() else source
    for place in (folder, *list(folder.absolute().parents)[:2]):
        for name in LISTS:
            if (place / name).is_file():
                return read_class_list(place / name)
    raise ValueError(
        f"{source}: no {', '.join(LISTS)} here or in the two folders above; name the file of class names with --classes"
    )


def read_class_list(path: Path) -> list[str]:
    """Names of classes from a file of YAML, or of one name a line.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `read_names` and `read_yaml_names`.
    """
    return read_yaml_names(path) if path.suffix in (".yaml", ".yml") else read_names(path)


def _in_pixels(shares: list[float], size: tuple[int, int], where: str) -> tuple[tuple[float, float, float, float], str]:
    """x, y, width, height in pixels, and the place."""
    if any(not -_SLACK <= share <= 1 + _SLACK for share in shares):
        raise ValueError(f"{where}: a share of the picture is not from 0 to 1; expected {_FORM}")
    if len(shares) == 4:
        x, y, width, height = shares
        if width < 0 or height < 0:
            raise ValueError(f"{where}: a box of negative size; expected {_FORM}")
        left, top = x - width / 2, y - height / 2
    elif len(shares) >= 6 and len(shares) % 2 == 0:
        left, top = min(shares[0::2]), min(shares[1::2])
        width, height = max(shares[0::2]) - left, max(shares[1::2]) - top
    else:
        raise ValueError(f"{where}: {len(shares) + 1} numbers; expected 5: {_FORM}")
    return (left * size[0], top * size[1], width * size[0], height * size[1]), where
