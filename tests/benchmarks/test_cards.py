"""The pages show what the cards have."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tinydet.runtime.bundled import BUNDLED
from tinydet.zoo.cards import read_card


def test_the_tables_of_every_page_are_those_of_the_cards() -> None:
    """If this fails, run `python benchmarks/cards.py NAME --tables`."""
    cards = importlib.import_module("cards")
    for page, lines in cards.pages().items():
        assert cards.replaced(page, lines) == page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize("name", BUNDLED)
def test_every_card_has_its_pictures(name: str) -> None:
    docs = importlib.import_module("cards").ROOT / "docs"
    text = (docs / f"{name}.md").read_text(encoding="utf-8")
    for picture in (*read_card(name).measured["classes"], "misses"):
        assert (docs / f"{name}-{picture}.jpg").is_file() and f"({name}-{picture}.jpg)" in text


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A page\n")
    with pytest.raises(ValueError, match="lacks the lines <!-- measured -->"):
        importlib.import_module("cards").replaced(tmp_path / "a.md", [])
