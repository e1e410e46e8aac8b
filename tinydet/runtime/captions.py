"""Draw text on images, in a font that has all of its characters."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LONGEST = 40  # characters of a name
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts")  # fmt: skip
UNUSUAL = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")  # used last
MISSING = "\uffff"  # no font has this character, so it is drawn as the font's missing-glyph box

logger = logging.getLogger("tinydet.runtime")


@functools.cache
def class_labels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return unique labels for drawing the classes of a model.

    A name that no installed font can show becomes its number, such as "class 3", with one warning.
    """
    labels: list[str] = []
    for i, name in enumerate(names):
        label = legible(name, f"class {i}")
        if label == f"class {i}" != name:
            logger.warning(
                f"images show class {i}, {name!r}, as its number, because no installed font has all of its characters; "
                "install one, such as Noto Sans"
            )
        labels.append(f"{label} (class {i})" if label in labels else label)
    return tuple(labels)


def legible(text: str, fallback: str | None = None) -> str:
    """Return a text as one line of at most 40 characters, or the fallback if no installed font can show it.

    Args:
        fallback: None escapes all characters outside ASCII.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", text)).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    if line and font_file(line) is not None:
        return line
    return line.encode("ascii", "backslashreplace").decode() if fallback is None else fallback


def plot_labels(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return texts as Matplotlib labels, and the font families that show them.

    Matplotlib would read text between two dollar signs as a formula, and omit labels that begin with `_` from legends.
    """
    with needs_extra("plots"):
        from matplotlib import font_manager

    lines = [legible(text) for text in texts]
    families = ["DejaVu Sans"]  # Matplotlib's own
    for file in filter(None, map(font_file, lines)):
        font_manager.fontManager.addfont(file)
        families.append(font_manager.get_font(file).family_name)
    labels = [f" {line}" if line.startswith("_") else line for line in lines]
    return [label.replace("$", r"\$") for label in labels], list(dict.fromkeys(families))


def text_size(text: str, size: int) -> tuple[int, int]:
    """Return the width of a line of text, and its height above the baseline, in pixels."""
    mask, _, top = _mask(text, size, 0)
    return mask.shape[1], -top


def draw_text(
    image: NDArray[np.uint8], text: str, x: int, baseline: int, size: int, color: Sequence[int], rim: int = 0
) -> None:
    """Draw a line of text in place, on an image (H, W, 3).

    Args:
        x: left border of the text.
        baseline: y of the line on which the letters stand.
        size: of the font, in pixels per em.
        rim: width of a black rim around the letters.
    """
    for width, rgb in ((rim, (0, 0, 0)), (0, color)) if rim else ((0, color),):
        mask, left, top = _mask(text, size, width)
        x1, y1 = x + left, baseline + top
        x2, y2 = min(x1 + mask.shape[1], image.shape[1]), min(y1 + mask.shape[0], image.shape[0])
        shown = mask[max(-y1, 0) : max(y2 - y1, 0), max(-x1, 0) : max(x2 - x1, 0), None].astype(np.int16)
        place = np.s_[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
        under = image[place].astype(np.int32)
        image[place] = (under + (np.asarray(rgb, np.int32) - under) * shown // 255).astype(np.uint8)


@functools.lru_cache(4096)
def _mask(text: str, size: int, rim: int) -> tuple[NDArray[np.uint8], int, int]:
    """Return the coverage of a text, 0 to 255, and its left and top border relative to the start of the baseline."""
    from PIL import Image, ImageDraw, features

    font = _font(font_file(text) or "", size)
    # The order of name and numbers does not depend on the script of the name.
    style: dict[str, Any] = {
        "anchor": "ls",
        "stroke_width": rim,
        "direction": "ltr" if features.check("raqm") else None,
    }
    left, top, right, bottom = (int(v) for v in font.getbbox(text, **style))
    canvas = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, **style)
    return np.asarray(canvas), left, top


@functools.lru_cache(4096)
def font_file(text: str) -> str | None:
    """Return the path of a font that has all characters of a text: "" for Pillow's own font, None if there is none."""
    from PIL import features

    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in text) and not features.check("raqm"):
        return None  # would run from left to right
    return next((file for file in _font_files() if all(_has(file, c) for c in text)), None)


@functools.cache
def _font_files() -> tuple[str, ...]:
    """List the installed fonts, in order of preference: DejaVu Sans, then plain styles."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    matplotlib = importlib.util.find_spec("matplotlib")  # brings DejaVu Sans
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    found = [
        Path(folder, name)
        for top in folders
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc")) and not name.startswith("LastResort")  # boxes for everything
    ]
    return (*map(str, sorted(found, key=_preference)), "")


def _preference(file: Path) -> tuple[bool, bool, str]:
    name = file.stem.lower()
    return name != "dejavusans", any(style in name for style in UNUSUAL), name


@functools.lru_cache(65536)
def _has(file: str, character: str) -> bool:
    """Return whether a font has a character, or the character is invisible."""
    if character.isspace() or unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return True
    shape, missing = _shape(file, character), _shape(file, MISSING)
    return shape is not None and shape != missing


def _shape(file: str, character: str) -> tuple[tuple[int, int], bytes] | None:
    """Return the pixels of a character; None if the font cannot be used."""
    from PIL import ImageFont

    try:
        # The basic layout draws the character and nothing around it.
        mask = _font(file, 24, ImageFont.Layout.BASIC).getmask(character)
    except (OSError, ValueError):  # damaged, or it has bitmaps of other sizes
        return None
    return mask.size, bytes(mask)


@functools.cache
def _font(file: str, size: int, layout: Any = None) -> FreeTypeFont:
    """Open a font; "" is the one inside Pillow."""
    from PIL import ImageFont

    font = ImageFont.truetype(file, size, layout_engine=layout) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
