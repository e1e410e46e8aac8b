from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime import captions
from tinydet.runtime.captions import class_labels, draw_text, font_file, legible, plot_labels, text_size

CACHES = (captions._font_files, captions.font_file, captions._has, captions._mask, captions._font, class_labels)
SHIP = "船"


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Add a font to an otherwise empty folder of fonts, in which the given characters are squares."""
    builder = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    monkeypatch.setattr(captions, "FONT_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    clear()

    def square(side: int) -> object:
        pen = pens.TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, side), (side, side), (side, 0)):
            pen.lineTo(point)
        pen.closePath()
        return pen.glyph()

    def add(characters: str) -> Path:
        names = [".notdef", *(f"u{ord(c):X}" for c in characters)]
        font = builder.FontBuilder(1000, isTTF=True)
        font.setupGlyphOrder(names)
        font.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
        font.setupGlyf({name: square(300 if name == ".notdef" else 700) for name in names})
        font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
        font.setupHorizontalHeader(ascent=800, descent=-200)
        font.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
        font.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
        font.setupPost()
        path = tmp_path / f"squares{len(list(tmp_path.iterdir()))}.ttf"
        font.save(path)
        clear()
        return path

    yield add
    clear()


def clear() -> None:
    for cached in CACHES:
        cached.cache_clear()


def drawn(text: str, size: int = 20) -> np.ndarray:
    image = np.zeros((60, 400, 3), np.uint8)
    draw_text(image, text, 10, 40, size, (255, 255, 255))
    return image[..., 0]


def test_text_is_drawn_in_the_first_font_that_has_all_of_its_characters(fonts: Callable[[str], Path]) -> None:
    assert font_file("boat 3") == ""  # the one inside Pillow
    assert font_file(SHIP) is None
    chinese = fonts(f"{SHIP} 3")
    assert font_file(f"{SHIP} 3") == str(chinese)
    assert font_file(f"boat {SHIP}") is None
    both = fonts(f"boat {SHIP}")
    assert font_file(f"boat {SHIP}") == str(both)
    ink = np.argwhere(drawn(SHIP) > 200)
    assert (np.ptp(ink, axis=0) + 1).tolist() == [14, 14]  # a square of 0.7 em, not the .notdef sign of 0.3 em


def test_a_name_without_a_font_becomes_its_number_with_one_warning(
    fonts: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    names = ("boat", SHIP, "🚤 fast")
    for _ in range(2):
        assert class_labels(names) == ("boat", "class 1", "class 2")
    assert len(caplog.records) == 2
    assert f"class 1, {SHIP!r}" in caplog.records[0].message
    fonts(SHIP)
    assert class_labels(names) == ("boat", SHIP, "class 2")


def test_names_are_one_short_line_and_stay_distinct() -> None:
    assert legible("a\nb\t\x07c  d") == "a b c d"
    assert len(legible("x" * 500)) == 40
    labels = class_labels(("x" * 100 + "1", "x" * 100 + "2", "y"))
    assert len(set(labels)) == 3
    assert legible("e\u0301") == "é"  # one character, where fonts lack the combining mark


def test_a_damaged_font_is_passed_over(fonts: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    (tmp_path / "b.otf").write_bytes(fonts(SHIP).read_bytes()[:200])
    clear()
    assert font_file(SHIP) is not None
    assert font_file("🚤") is None


@pytest.mark.parametrize("x", [-30, 0, 90])
@pytest.mark.parametrize("baseline", [-3, 5, 20, 29, 40])
def test_text_at_the_border_is_cut_and_never_fails(x: int, baseline: int) -> None:
    large = np.full((200, 400, 3), 90, np.uint8)
    draw_text(large, "Wjg 0.95", x + 100, baseline + 100, 18, (255, 230, 0), rim=2)
    small = np.full((30, 100, 3), 90, np.uint8)
    draw_text(small, "Wjg 0.95", x, baseline, 18, (255, 230, 0), rim=2)
    assert np.array_equal(small, large[100:130, 100:200])


def test_a_text_stays_within_its_size() -> None:
    for text in ("0.95", "A", "boat 12"):
        ink = np.argwhere(drawn(text) > 0)  # from column 10, on the baseline 40
        width, height = text_size(text, 20)
        assert ink[:, 1].min() >= 10
        assert 10 + width - 4 <= ink[:, 1].max() + 1 <= 10 + width
        assert ink[:, 0].min() == 40 - height


def test_labels_reach_matplotlib_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    names = ["$x$", "$\\frac{", "_hidden", "Лодка", SHIP, "100 %", "a\nb", "🚤", "$"]
    labels, families = plot_labels(names)
    assert len(set(labels)) == len(names)
    figure = Figure()
    axis = figure.subplots()
    for label in labels:
        axis.plot([0, 1], label=label)
    legend = axis.legend(prop={"family": families})
    figure.savefig(io.BytesIO(), format="png")
    assert not [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)]
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == len(names)
    for text, name in zip(legend.get_texts(), names, strict=True):
        if name.startswith("$"):
            assert text._preprocess_math(text.get_text()) == (name, False)


def test_numbers_keep_their_place_next_to_a_right_to_left_name() -> None:
    if font_file("ילד") is None:
        pytest.skip("no font with Hebrew, or no library that orders it")
    first = np.flatnonzero(drawn("0.95")[:, :45].any(axis=0))
    both = drawn("0.95 ילד 12,34")
    assert np.array_equal(both[:, 10:40], drawn("0.95 x 12,34")[:, 10:40])
    assert first.size
