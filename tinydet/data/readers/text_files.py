"""Line-based annotation files, one per image."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinydet._internal.input_files import read_file
from tinydet.data.image_checks import check_image_folder
from tinydet.data.image_files import list_files, list_images
from tinydet.data.image_names import ImageNames

YAML_SUFFIXES = (".yaml", ".yml")
# UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Pairs(NamedTuple):
    """Text files and images of a dataset.

    Attributes:
        pairs: text file and image, sorted; images are relative to the image folder.
        unmatched: images without a text file, sorted.
        notes: messages for the user about names that are spelled differently.
    """

    pairs: list[tuple[Path, Path]]
    unmatched: list[Path]
    notes: list[str]


def read_text(path: Path) -> str:
    r"""Read a text file as UTF-8, or in the encoding of its byte order mark, and normalize line ends to "\n".

    Raises:
        ValueError: the file is in another encoding, or not text.
        OSError: it cannot be read.
    """
    content = read_file(path)
    encoding = "utf-8"
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} line {line}: not {encoding.upper()} text (byte 0x{content[error.start]:02x}); save the file as "
            "UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of a text file with their numbers, counted from 1.

    Raises:
        ValueError, OSError: as `read_text`.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
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
    try:
        values = [float(field) for field in fields]
        if all(map(math.isfinite, values)) and not any("_" in field for field in fields):
            return values
    except ValueError:
        pass
    for field in fields:  # find the one at fault
        try:
            value = math.nan if "_" in field else float(field)  # Python reads 1_000 as a number
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{location}: {field[:40]!r} is not a number; expected {form}")
    raise AssertionError(fields)


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
    source: Path, images: Path | None, *, skip: frozenset[str] = frozenset(), orphans: bool = False
) -> Pairs:
    """Pair text files with the images of the same relative path, apart from the suffix; see `ImageNames`.

    Args:
        source: a text file, or a folder of them.
        images: folder of the images.
        skip: names of text files that are not annotations unless there is an image with that name.
        orphans: leave out text files without an image, with a note.

    Raises:
        ValueError: a missing folder, no text files, a text file without an image or with several, or an image with
            several text files.
    """
    if images is None:
        raise ValueError(f"{source}: this format has no image sizes; name the folder of the images: --images DIR")
    check_image_folder(source, images)
    if source.suffix.lower() in YAML_SUFFIXES:
        raise ValueError(f"{source}: describes a dataset; name the folder of its .txt files")
    if source.is_dir():
        root, texts = source, list_files(source, (".txt",))
    elif source.exists():
        root, texts = source.parent, [Path(source.name)]
    else:
        raise ValueError(f"{source} does not exist; name a folder of .txt files")
    files = list_images(images)
    stems, names = ImageNames(files, suffixes=False), ImageNames(files)
    owners: dict[Path, Path] = {}
    respelled, alone = [], []
    for text in texts:
        stem = text.with_suffix("")
        found = stems.find(stem.as_posix()) or names.find(stem.as_posix())  # a.txt or, of some tools, a.jpg.txt
        if not found and text.name in skip:
            continue
        if not found and orphans:
            alone.append(text)
            continue
        if len(found) != 1:
            what = f"has {len(found)} images, {' and '.join(map(str, found))}" if found else "has no image"
            raise ValueError(f"{root / text} {what} in {images}; expected one with the same name, such as {stem}.jpg")
        (image,) = found
        if image in owners:
            raise ValueError(
                f"{root / text}: {root / owners[image]} has the same image, {image}; remove one of the two"
            )
        owners[image] = text
        if stem not in (image, image.with_suffix("")):
            respelled.append(f"{text} to {image}")
    if not owners and not (orphans and files):
        raise ValueError(f"{source}: no .txt file in this folder; name the one that holds the annotations")
    pairs = sorted((root / text, image) for image, text in owners.items())
    notes = respelling_notes(respelled)
    if alone:
        notes.append(f"annotation files without an image in {images}, left out: {len(alone)}, the first {alone[0]}")
    return Pairs(pairs, sorted(set(files) - set(owners)), notes)


def respelling_notes(pairs: list[str]) -> list[str]:
    """Return a note about files whose names are spelled differently, if there are any; `pairs`: "a.txt to A.png"."""
    if not pairs:
        return []
    return [f"names matched to image files that are spelled differently: {len(pairs)}, the first {pairs[0]}"]
