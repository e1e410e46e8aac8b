"""Hold out a part of a dataset for validation, by groups of images that belong together.

Neighboring frames of a video, or photos of one flight, are nearly equal; with some in training, the score of the others
says little. File names show such groups: by their folder, and by what precedes the number of the frame.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

_ROBOFLOW = re.compile(r"[_.-](?:jpe?g|png|bmp|tiff?|webp)\.rf\.[0-9a-f]+$", re.IGNORECASE)  # copies of one image
_SENSOR = re.compile(r"[_-][VWTZSD]$")  # the camera, at the end of DJI's names
_FRAME = re.compile(r"(?:[-_. ]+(?:frame|frm|img|image|photo|f|i|t)?[-_. ]*|(?<=[A-Za-z]))\d+$", re.IGNORECASE)
_VISDRONE = re.compile(r"^(\d{7})_\d{5}_d_\d{7}$")
_TIME = re.compile(r"(?<!\d)(20\d{6})[-_T]?\d{6}$")  # the date remains


def group_of(file_name: str) -> str:
    """Return the group that the name of an image shows: its folder, and its name without the number of the frame.

    >>> group_of("DJI_0001_0005.jpg"), group_of("a/seq3_000123.png"), group_of("clip_frame_12.jpg"), group_of("7.png")
    ('DJI_0001', 'a/seq3', 'clip', '')
    """
    path = PurePosixPath(file_name)
    stem = _SENSOR.sub("", original_name(path.name))
    if (match := _VISDRONE.match(stem)) is not None:
        stem = match[1]
    else:
        stem = "" if stem.isdecimal() else _FRAME.sub("", stem)
        stem = _TIME.sub(r"\1", stem)
    folder = path.parent.as_posix()
    return stem if folder == "." else f"{folder}/{stem}".rstrip("/")


def original_name(name: str) -> str:
    """Return the name of an image without suffix, the same for all copies of it that Roboflow has augmented."""
    return _ROBOFLOW.sub("", PurePosixPath(name).stem)


def group_images(file_names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the group of each image, and whether the names show groups; otherwise each image is a group."""
    groups = [group_of(name) for name in file_names]
    counts = Counter(groups)
    if len(counts) > 1 and len(counts) < len(set(file_names)) and max(counts.values()) < 0.9 * len(file_names):
        return groups, True
    return [str(PurePosixPath(name).with_name(original_name(name))) for name in file_names], False


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
