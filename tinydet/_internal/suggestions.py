"""Suggest the name that a user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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


def alternatives(names: Iterable[str]) -> str:
    """Join names with commas and "or".

    >>> alternatives(["--image", "--images", "--image-id"])
    '--image, --images or --image-id'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _letters(name: str) -> str:
    return name.lower().strip("-").replace("_", "-")
