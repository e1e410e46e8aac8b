"""Line-based annotation files, one per image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tinydet.data.image_files import list_images


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of a text file with their numbers, counted from 1.

    Raises:
        ValueError: the file is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # files from Windows may start with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start}); replace it") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def parse_numbers(fields: list[str], location: str, form: str) -> list[float]:
    """Parse finite numbers.

    Args:
        location: file and line, for the error message.
        form: the expected form of a line, for the error message.

    Raises:
        ValueError: a field is not a finite number.
    """
    values = []
    for field in fields:
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{location}: {field[:40]!r} is not a number; expected {form}")
        values.append(value)
    return values


def to_integer(value: float, low: int, high: int, location: str, name: str) -> int:
    """Convert a number to an integer and check that it is from `low` to `high`.

    Args:
        location: file and line, for the error message.
        name: meaning of the number, for the error message.

    Raises:
        ValueError: the number is not an integer, or out of range.
    """
    if not value.is_integer() or not low <= value <= high:
        raise ValueError(f"{location}: the {name} is {value:g}; expected a whole number from {low} to {high}")
    return int(value)


def pair_with_images(
    source: Path, images: Path | None, *, skip: frozenset[str] = frozenset()
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pair text files with the images of the same relative path, apart from the suffix.

    Args:
        source: a text file, or a folder of them.
        images: folder of the images.
        skip: names of text files that are not annotations.

    Returns:
        Pairs of text file and image, and the images without a text file. Both are sorted; images are relative to
        `images`.

    Raises:
        ValueError: a missing folder, no text files, or a text file without an image or with several.
    """
    if images is None:
        raise ValueError(f"{source}: this format has no image sizes; name the folder of the images: --images DIR")
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder of images; check --images")
    if source.is_file():
        root, texts = source.parent, [source]
    elif source.is_dir():
        root, texts = source, sorted(path for path in source.rglob("*.txt") if path.name not in skip)
    else:
        raise ValueError(f"{source} does not exist; name a folder of .txt files")
    if not texts:
        raise ValueError(f"{source}: no .txt file in this folder; name the one that holds the annotations")
    by_stem: dict[Path, list[Path]] = {}
    for image in list_images(images):
        by_stem.setdefault(image.with_suffix(""), []).append(image)
    pairs = []
    for text in texts:
        stem = text.relative_to(root).with_suffix("")
        found = by_stem.pop(stem, [])
        if len(found) != 1:
            what = f"has {len(found)} images, {' and '.join(map(str, found))}" if found else "has no image"
            raise ValueError(f"{text} {what} in {images}; expected one with the same name, such as {stem}.jpg")
        pairs.append((text, found[0]))
    return pairs, sorted(image for unmatched in by_stem.values() for image in unmatched)
