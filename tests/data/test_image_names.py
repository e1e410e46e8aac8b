"""Names written by other programs match the image file that they mean, and no other."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

from tinydet.data.image_names import ImageNames

FILES = [Path("a b.png"), Path("deep/Ünïcode.PNG"), Path("train/x.png"), Path("val/x.png"), Path("50%.png")]


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name,
        lambda name: name.replace("/", "\\"),
        lambda name: f"./{name}",
        lambda name: f"C:\\data\\images\\{name}",
        lambda name: f"/home/me/images/{name}",
        lambda name: f"../images/{name}",
        quote,
        lambda name: f" {name}\n",
        lambda name: f"https://host/images/{quote(name)}?size=1/2#top",
        str.upper,
        str.lower,
        lambda name: unicodedata.normalize("NFD", name),
        lambda name: quote(unicodedata.normalize("NFD", f"DATA/{name.upper()}")).replace("/", "\\"),
    ],
)
def test_every_spelling_of_a_name_finds_its_file(file: Path, spell) -> None:  # type: ignore[no-untyped-def]
    assert ImageNames(FILES).find(spell(file.as_posix())) == [file]
    assert ImageNames(FILES, suffixes=False).find(spell(file.with_suffix("").as_posix())) == [file]


def test_the_exact_name_comes_before_other_spellings() -> None:
    files = [Path("a.png"), Path("A.png"), Path("a%20b.png"), Path("a b.png"), Path("deep/a.png")]
    names = ImageNames(files)
    assert all(names.find(file.as_posix()) == [file] for file in files)


def test_an_ambiguous_name_finds_all_and_another_folder_none() -> None:
    names = ImageNames([*FILES, Path("A B.png")])
    assert set(names.find("x.png")) == {Path("train/x.png"), Path("val/x.png")}
    assert set(names.find("A b.png")) == {Path("a b.png"), Path("A B.png")}
    assert names.find("test/x.png") == names.find("y.png") == names.find("") == names.find("..") == []
    assert ImageNames([Path("a.png"), Path("a.jpg")], suffixes=False).find("a") == [Path("a.png"), Path("a.jpg")]
