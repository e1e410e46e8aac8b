"""A misspelled name is answered with the right one, whichever letter is wrong, missing, doubled or swapped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinydet._internal.suggestions import alternatives, did_you_mean, did_you_mean_path, similar

NAMES = ["train", "evaluate", "infer", "salpha", "synthetic", "geojson", "parquet", "--score", "--output", "--overlap"]


def misspelled(name: str) -> set[str]:
    dashes = len(name) - len(name.lstrip("-"))
    places = range(dashes, len(name))
    swapped = {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in places if i + 1 < len(name)}
    return swapped | {name[:i] + change + name[i + 1 :] for i in places for change in ("x", "", name[i] * 2)} - {name}


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_letter_finds_the_name(name: str) -> None:
    for word in misspelled(name):
        assert name in similar(word, NAMES), word


def test_case_and_dashes_do_not_matter() -> None:
    assert similar("--SCORE", NAMES) == ["--score"]
    assert similar("-out_put", ["--out-put"]) == ["--out-put"]


def test_nothing_is_suggested_for_a_strange_word() -> None:
    assert did_you_mean("zzz", NAMES) == ""
    assert did_you_mean("", NAMES) == ""


def test_alternatives_are_joined() -> None:
    assert alternatives(["a"]) == "a"
    assert alternatives(["a", "b"]) == "a or b"


@pytest.mark.parametrize(
    "typed", ["flihgt/images/a.jpg", "flight/image/a.jpg", "flight/images/a.png", "flight/images/a"]
)
def test_a_path_with_one_mistake_finds_the_file(typed: str, tmp_path: Path) -> None:
    file = tmp_path / "flight" / "images" / "a.jpg"
    file.parent.mkdir(parents=True)
    file.touch()
    assert did_you_mean_path(tmp_path / typed) == f"; did you mean {file}?"
    assert did_you_mean_path(tmp_path / "nothing" / "like.it") == ""
