"""Suggest the name that a user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

ALIKE = 0.6  # ratio of difflib, which finds a letter that is wrong, missing, doubled or swapped


def similar(word: str, known: Iterable[str]) -> list[str]:
    """Return the names that are most like `word`, without regard to case and dashes; at most three equally good ones.

    >>> similar("geojsn", ["coco", "geojson", "csv"])
    ['geojson']
    """
    by_letters: dict[str, str] = {}
    for name in known:
        by_letters.setdefault(_letters(name), name)
    found = difflib.get_close_matches(_letters(word), list(by_letters), n=3, cutoff=ALIKE)
    ratios = [difflib.SequenceMatcher(None, letters, _letters(word)).ratio() for letters in found]
    return [by_letters[letters] for letters, ratio in zip(found, ratios, strict=True) if ratio > max(ratios) - 0.05]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: empty if no known name is like it.

    >>> did_you_mean("trian", ["train", "infer"])
    '; did you mean train?'
    """
    return f"; did you mean {alternatives(found)}?" if (found := similar(word, known)) else ""


def did_you_mean_path(path: Path | str) -> str:
    """Return the end of a message about a path that does not exist: a file or folder of nearly the same name.

    Names that differ only in the suffix count as similar. Empty if there are none, or if the folder cannot be read.
    """
    path = Path(path)
    existing, rest = path.parent, Path()
    while not existing.is_dir() and existing != existing.parent:
        path, existing, rest = existing, existing.parent, path.name / rest
    try:
        names = sorted(file.name for file in existing.iterdir() if not file.name.startswith("."))
    except (OSError, ValueError):
        return ""
    stems = {name: Path(name).stem for name in names}
    meant = similar(path.stem, stems.values())
    same = [name for name, stem in stems.items() if stem.lower() == path.stem.lower()]
    found = same or [name for name, stem in stems.items() if stem in meant]
    candidates = [existing / name / rest if (existing / name / rest).exists() else existing / name for name in found]
    return f"; did you mean {alternatives(map(str, candidates[:3]))}?" if found else ""


def alternatives(names: Iterable[str]) -> str:
    """Join names with commas and "or".

    >>> alternatives(["--image", "--images", "--image-id"])
    '--image, --images or --image-id'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _letters(name: str) -> str:
    return name.lower().strip("-").replace("_", "-")
