"""Annotation files in lines of text, one file for each picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tinydet.data.image_files import list_pictures


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Raises:
        ValueError: naming the file, where it is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # files written on Windows may begin with a mark of their order
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start}); write it again") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def to_numbers(fields: list[str], where: str, form: str) -> list[float]:
    """Finite numbers.

    Raises:
        ValueError: naming the place, the field and the form of a line.
    """
    values = []
    for field in fields:
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where}: {field[:40]!r} is not a number; expected {form}")
        values.append(value)
    return values


def to_whole(value: float, low: int, high: int, where: str, name: str) -> int:
    """A whole number from `low` to `high`.

    Raises:
        ValueError: naming the place and what the number is.
    """
    if not value.is_integer() or not low <= value <= high:
        raise ValueError(f"{where}: the {name} is {value:g}; expected a whole number from {low} to {high}")
    return int(value)


def pair_with_pictures(
    source: Path, images: Path | None, *, leave: frozenset[str] = frozenset()
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """The text files of a folder (or the one that is named), each with its picture: the same path, another suffix.

    Args:
        images: their folder.
        leave: names of text files that are no annotations.

    Returns:
        (text file, picture relative to `images`), and the pictures without a text file; both sorted.

    Raises:
        ValueError: no folder, no text file, a text file without a picture or with several.
    """
    if images is None:
        raise ValueError(
            f"{source}: this format does not say how large the images are; name their folder: --images DIR"
        )
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder of images; check --images")
    if source.is_file():
        root, texts = source.parent, [source]
    elif source.is_dir():
        root, texts = source, sorted(path for path in source.rglob("*.txt") if path.name not in leave)
    else:
        raise ValueError(f"{source} does not exist; name a folder of .txt files")
    if not texts:
        raise ValueError(f"{source}: no .txt file in this folder; name the one that holds the annotations")
    pictures: dict[Path, list[Path]] = {}
    for picture in list_pictures(images):
        pictures.setdefault(picture.with_suffix(""), []).append(picture)
    pairs = []
    for text in texts:
        stem = text.relative_to(root).with_suffix("")
        found = pictures.pop(stem, [])
        if len(found) != 1:
            what = f"has {len(found)} pictures, {' and '.join(map(str, found))}" if found else "has no picture"
            raise ValueError(f"{text} {what} in {images}; there must be one of its name, {stem}.jpg for example")
        pairs.append((text, found[0]))
    return pairs, sorted(picture for left in pictures.values() for picture in left)


def read_names(path: Path) -> list[str]:
    """Class names, one a line.

    Raises:
        ValueError: no name, or one twice.
    """
    names = [line for _, line in numbered_lines(path)]
    if not names:
        raise ValueError(f"{path}: no class names; write one a line, in the order of their numbers")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: {twice[0]!r} is listed twice; the names of classes must differ")
    return names
