"""Hold out a part of a dataset for validation, by groups of images that belong together.

Neighboring frames of a video, or photos of one flight, are nearly equal; with some in training, the score of the others
says little. File names show such groups: by their folder, and by what precedes the number of the frame. Where they do
not, the user says what the groups are (`groups_by`). Cross-validation divides the groups into folds (`divide`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tinydet._internal.arguments import quoted
from tinydet._internal.console import plural

_ROBOFLOW = re.compile(r"[_.-](?:jpe?g|png|bmp|tiff?|webp)\.rf\.[0-9a-f]+$", re.IGNORECASE)  # copies of one image
_LABEL_STUDIO = re.compile(r"^[0-9a-f]{8}-(?![0-9a-f]{4}-)")  # of each upload; not the start of a UUID
_SLICE = re.compile(r"__\d+(?:\.\d+)?__\d+___\d+$|_(\d+)_(\d+)_(\d+)_(\d+)$")  # tiles, as of DOTA and SAHI
_TILE = re.compile(r"^(.+)_\d+_\d+$")  # tiles, as of `data cut`, if the one at 0, 0 is there
_SENSOR = re.compile(r"[_-][VWTZSD]$")  # the camera, at the end of DJI's names
_FRAME = re.compile(r"(?:[-_. ]+(?:frame|frm|img|image|photo|f|i|t)?[-_. ]*|(?<=[A-Za-z]))\d+$", re.IGNORECASE)
_COPY = re.compile(r"\s*\(\d+\)$")
_SECONDS = re.compile(r"[-_. ]+t?\d+(?:\.\d+)?(?:s|sec|ms)$", re.IGNORECASE)
_CLOCK = re.compile(r"[-_T .]*(?<!\d)\d{2}([-.:])[0-5]\d\1[0-5]\d$")
_VISDRONE = re.compile(r"^(\d{7})_\d{5}_d_\d{7}$")
_TIME = re.compile(r"(?<!\d)(20\d{6})[-_T]?\d{6}$")  # the date remains
_HASH = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=.*\d[a-f])[0-9a-f]{8,}", re.IGNORECASE)
# Names that a camera or a program gives to all of its images say nothing about the recording.
_NAMELESS = frozenset(
    (
        "",
        *[
            "dji",
            "img",
            "dsc",
            "dscn",
            "dscf",
            "dscn",
            "gopr",
            "pxl",
            "p",
            "image",
            "images",
            "photo",
            "picture",
            "frame",
            "frames",
        ],
    )
)


def group_of(file_name: str) -> str:
    """Return the group that the name of an image shows: its folder, and its name without the number of the frame.

    A name that shows no group stands for itself, unless there is a folder.

    >>> group_of("DJI_0001_0005.jpg"), group_of("a/seq3_000123.png"), group_of("clip_frame_12.jpg"), group_of("7.png")
    ('DJI_0001', 'a/seq3', 'clip', '7')
    """
    path = PurePosixPath(file_name)
    name = _SENSOR.sub("", original_name(path.name))
    if (match := _VISDRONE.match(name)) is not None:
        stem = match[1]
    elif name.isdecimal() or _HASH.fullmatch(name):
        stem = ""
    else:
        stem = name
        for pattern in (_COPY, _SECONDS, _CLOCK, _FRAME):
            stem, changed = pattern.subn("", stem)
            if changed:
                break
        stem = _TIME.sub(r"\1", stem)
    folder = path.parent.as_posix()
    if stem.lower().strip("-_. ") in _NAMELESS:
        stem = name if folder == "." else ""
    return stem if folder == "." else f"{folder}/{stem}".rstrip("/")


def original_name(name: str) -> str:
    """Return the name of an image without suffix, the same for all copies of it that a program has made.

    These are the augmented copies of Roboflow, uploads to Label Studio, and tiles.
    """
    stem = _LABEL_STUDIO.sub("", _ROBOFLOW.sub("", PurePosixPath(name).stem))
    match = _SLICE.search(stem)
    if match is not None and match[1] is not None:
        left, top, right, bottom = map(int, match.groups())
        return stem[: match.start()] if left < right and top < bottom else stem
    return stem if match is None else stem[: match.start()]


def group_images(file_names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the group of each image, and whether the names show groups; otherwise each image is a group."""
    whole = _without_tiles(file_names)
    groups = [group_of(name) for name in whole]
    counts = Counter(groups)
    sources = [str(PurePosixPath(name).with_name(original_name(name))) for name in whole]
    if 1 < len(counts) < len(set(sources)) and max(counts.values()) < 0.9 * len(groups):
        return groups, True
    return sources, False


def groups_by(images: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the group of each image as the user defines it.

    Args:
        images: entries of a COCO file.
        key: a field of the entries, such as date_captured; if none of them has it, a regular expression on the file
            name. Its groups in parentheses make the group of the image, or all that it matches if it has none.

    Raises:
        ValueError: an image has no group.

    >>> groups_by([{"file_name": "day1_007.jpg"}, {"file_name": "day2_007.jpg"}], "day[0-9]+")
    ['day1', 'day2']
    """
    if any(key in image for image in images):
        if lacking := [image for image in images if image.get(key) in (None, "")]:
            name = lacking[0]["file_name"]
            raise ValueError(f"--group-by {key}: {plural(len(lacking), 'image')} without this field, such as {name}")
        return [str(image[key]) for image in images]
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise ValueError(
            f"--group-by {quoted(key)} is no field of the images, and no regular expression: {error}"
        ) from error
    matches = [pattern.search(image["file_name"]) for image in images]
    if None in matches:
        name = images[matches.index(None)]["file_name"]
        fields = ", ".join(images[0].keys())
        raise ValueError(
            f"--group-by {quoted(key)} is no field of the images, which are {fields}; as a regular expression it does "
            f"not match the file name {name}"
        )
    return ["_".join(filter(None, match.groups())) if match.groups() else match[0] for match in matches if match]


def _without_tiles(file_names: Sequence[str]) -> list[str]:
    """Return the names of the images that tiles, such as `a_0_512.png`, were cut from."""
    known = set(file_names)
    found = []
    for name in file_names:
        path = PurePosixPath(name)
        match = _TILE.match(path.stem)
        cut = match is not None and str(path.with_name(f"{match[1]}_0_0{path.suffix}")) in known
        found.append(str(path.with_name(f"{match[1]}{path.suffix}")) if match is not None and cut else name)
    return found


def hold_out(groups: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """Return the groups to hold out, about a fraction of the images; the others are at least one.

    The order of the images does not matter, and neither does where they are.

    Args:
        groups: of each image.
        fraction: above 0 and below 1.

    Raises:
        ValueError: there is only one group.
    """
    counts = Counter(groups)
    if len(counts) < 2:
        raise ValueError("one image, or one group of images, cannot be divided; name validation data with --val")
    shuffled = sorted(counts, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    target = fraction * len(groups)
    chosen: list[str] = []
    held = 0
    for group in shuffled:
        if held + counts[group] <= target:
            chosen.append(group)
            held += counts[group]
    # Groups larger than the target are passed over, so one more group may bring the number nearer to it.
    rest = [group for group in shuffled if group not in chosen]
    nearest = min(rest, key=lambda group: abs(held + counts[group] - target))
    if not chosen or (len(rest) > 1 and abs(held + counts[nearest] - target) < abs(held - target)):
        chosen.append(nearest)
    return frozenset(chosen)


def divide(groups: Sequence[str], folds: int, seed: int) -> tuple[frozenset[str], ...]:
    """Divide groups into folds of about the same number of images; no group is in two folds.

    The order of the images does not matter, and neither does where they are.

    Args:
        groups: of each image.

    Raises:
        ValueError: there are fewer groups than folds.

    >>> [sorted(fold) for fold in divide(["a"] * 3 + ["b"] * 2 + ["c"] * 2, 2, seed=0)]
    [['a'], ['b', 'c']]
    """
    counts = Counter(groups)
    if len(counts) < folds:
        raise ValueError(
            f"{plural(len(counts), 'group')} of images cannot be divided into {folds} folds; choose fewer folds, or "
            "smaller groups with --group-by"
        )
    # The largest first, each to the smallest fold: the folds differ little.
    order = sorted(counts, key=lambda group: (-counts[group], hashlib.sha256(f"{seed}:{group}".encode()).digest()))
    divided: list[list[str]] = [[] for _ in range(folds)]
    for group in order:
        min(divided, key=lambda fold: sum(counts[each] for each in fold)).append(group)
    return tuple(frozenset(fold) for fold in divided)
