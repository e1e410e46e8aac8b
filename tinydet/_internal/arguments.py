"""Argument types for argparse (`type=...`). An invalid value is reported with the rule and what was given."""

from __future__ import annotations

import argparse
import csv
import io
import math
import numbers
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterable
from typing import Any

from tinydet._internal.suggestions import did_you_mean

MAX_CHANNELS = 2048  # of pyramid and head; eight times the paper's
SCALES = (0.001, 64.0)  # smallest and largest resize factor
MOST_VALUES = 1000  # of a grid


def whole(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """Return an argument type: a whole number from `low` to `high`.

    Args:
        unit: what is counted, for the message.

    >>> whole(1, 100)("75")
    75
    """
    shown = "2**63 - 1" if high == 2**63 - 1 else str(high) if high < 10_000 else f"{high:,}".replace(",", " ")

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20 and low <= int(text) <= high):
            kind = f"a whole number of {unit}" if unit else "a whole number"
            square = re.fullmatch(r"(\d+) ?(?:px|pixels|[x×*,] ?\1)", text, re.IGNORECASE)
            meant = f"; did you mean {square[1]}?" if square else ""
            raise ArgumentTypeError(f"expected {kind} from {low} to {shown}, got {quoted(text)}{meant}")
        return int(text)

    return parse


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """Return an argument type: a number from `low` to `high`.

    Args:
        above, below: exclude `low`, `high`.

    >>> number(0, 1, below=True)("0.25")
    0.25
    """
    lower = f"above {low:g}" if above else f"from {low:g}"
    upper = f"to {high:g}" if not (above or below) else f"and below {high:g}" if below else f"and up to {high:g}"

    def allowed(value: float) -> bool:
        inside = math.isfinite(value) and low <= value <= high
        return inside and not (above and value == low) and not (below and value == high)

    def parse(text: str) -> float:
        value = _float(text)
        if not allowed(value):
            raise ArgumentTypeError(f"expected a number {lower} {upper}, got {quoted(text)}{meant(text, value)}")
        return value

    def meant(text: str, value: float) -> str:
        """Return a suggestion for a share in percent, or for a number with a decimal comma."""
        percent = _float(text.strip().removesuffix("%")) if high <= 1 else math.nan
        for guess in (_float(text.replace(",", ".")) if math.isnan(value) else math.nan, percent / 100):
            if allowed(guess):
                return f"; did you mean {guess:g}?"
        return ""

    return parse


# Bounds shared by the commands and the Python API. They are far beyond any use: values outside them are typos, or would
# overflow, exhaust memory or never finish.
positive_int = whole(1, 10**9)
positive_float = number(0, 1e9, above=True)
seed = whole(0, 2**63 - 1)
image_id = whole(0, 2**63 - 1)
threads = whole(1, 1024)
readers = whole(1, 256)  # threads that read a scene
batch_size = whole(1, 4096)
side = whole(1, 10**6, "pixels")
overlap = whole(0, 10**6, "pixels")
channels = whole(1, MAX_CHANNELS)
scale = number(*SCALES)
share = number(0, 1)
fraction = number(0, 1, below=True)
jpeg_quality = whole(1, 100)


def check_number(name: str, value: object, parse: Callable[[str], Any]) -> Any:
    """Validate a number from the Python API with an argument type, and return it.

    Raises:
        ValueError: the number is invalid. Names it, the rule and the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a number, got {quoted(value)}")
    try:
        return parse(str(value))
    except ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise ValueError(f"{name}: expected a number of reasonable size, got {quoted(value)}") from error


def or_auto(parse: Callable[[str], float]) -> Callable[[str], Any]:
    """Return an argument type that also takes the word `auto`.

    >>> or_auto(overlap)("auto")
    'auto'
    """

    def parse_or_auto(text: str) -> Any:
        try:
            return text if text == "auto" else parse(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(str(error).replace(", got ", " or auto, got ", 1)) from None

    return parse_or_auto


def integers(text: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas.

    >>> integers("5,3,2")
    (5, 3, 2)
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) <= 9 for part in parts):
        raise ArgumentTypeError(f"expected whole numbers separated by commas, such as 5,3,2; got {quoted(text)}")
    return tuple(map(int, parts))


def number_range(text: str) -> tuple[int, int]:
    """Parse a number from 1, or a range of them: an argument type.

    >>> number_range("2-8"), number_range("4")
    ((2, 8), (4, 4))
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text, re.ASCII)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ArgumentTypeError(f"expected a number such as 4, or a range such as 2-8, got {quoted(text)}")
    return least, most


def floats(text: str) -> tuple[float, ...]:
    """Parse finite numbers separated by commas.

    >>> floats("0.5,1")
    (0.5, 1.0)
    """
    values = tuple(_float(part) for part in text.split(","))
    if not all(map(math.isfinite, values)):
        raise ArgumentTypeError(f"expected numbers separated by commas, such as 1,0.5,0.25; got {quoted(text)}")
    return values


def grid(text: str) -> tuple[float, ...]:
    """Parse LOW:HIGH:STEP with both ends included, or numbers separated by commas, without repetitions.

    >>> grid("0:0.3:0.1")
    (0.0, 0.1, 0.2, 0.3)
    """
    try:
        if ":" not in text:
            values = [float(part) for part in text.split(",")]
        else:
            low, high, step = (float(part) for part in text.split(":"))
            count = int((high - low) / step + 1e-9) + 1
            if count > MOST_VALUES:
                raise ArgumentTypeError(
                    f"expected a grid of at most {MOST_VALUES} values, got {count:.4g}: {quoted(text)}"
                )
            values = [round(low + i * step, 10) for i in range(count)]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ArgumentTypeError(
            f"expected a grid LOW:HIGH:STEP such as 0:1.1:0.1, or values such as 0,0.5,1; got {quoted(text)}"
        )
    return tuple(dict.fromkeys(values))


def float_range(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH. Their order and bounds are checked where the range is used.

    >>> float_range("0.2,2")
    (0.2, 2.0)
    """
    values = tuple(_float(part) for part in text.split(","))
    if len(values) != 2 or not all(map(math.isfinite, values)):
        raise ArgumentTypeError(f"expected LOW,HIGH as in 0.2,2.0, got {quoted(text)}")
    return values


def size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT in pixels.

    >>> size("4096x2048")
    (4096, 2048)
    """
    width, times, height = text.lower().partition("x")
    try:
        if times:
            return side(width), side(height)
    except ArgumentTypeError:
        pass
    raise ArgumentTypeError(
        f"expected WIDTHxHEIGHT in pixels, such as 4096x4096, each 1 to 1 000 000; got {quoted(text)}"
    )


def names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names. A name that contains a comma must be in double quotes, as in CSV.

    >>> names('person, "car, parked",')
    ('person', 'car, parked')
    """
    try:
        (row,) = csv.reader([text], skipinitialspace=True) if text else [[]]
    except (csv.Error, ValueError) as error:
        raise ArgumentTypeError(f"expected names separated by commas; got {quoted(text)} ({error})") from error
    return tuple(name for part in row if (name := part.strip()))


def join_names(values: Iterable[object]) -> str:
    """Join names into text that `names` parses back.

    >>> join_names(["person", "car, parked"])
    'person,"car, parked"'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def add_categories(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add `--categories A,B` and `--category NAME`, which extend one list; None if neither is given."""
    parser.add_argument(
        "--categories",
        type=names,
        action="extend",
        metavar="A,B",
        help=f"{purpose} these categories only, by name, separated by commas (default: all)",
    )
    parser.add_argument(
        "--category",
        dest="categories",
        action="append",
        metavar="NAME",
        help=f"{purpose} this category, by its exact name, which may contain commas; can be repeated",
    )


def names_from(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type: names separated by commas, each of them one of `known`, without repetitions.

    >>> names_from(["coco", "csv"])("csv,coco,csv")
    ('csv', 'coco')
    """

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(names(text)))
        unknown = [name for name in found if name not in known]
        if unknown or not found:
            wrong = quoted(unknown[0] if unknown else text)
            meant = did_you_mean(unknown[0], known) if unknown else ""
            raise ArgumentTypeError(f"expected some of {', '.join(known)}; got {wrong}{meant}")
        return found

    return parse


def _float(text: str) -> float:
    """Parse a number; NaN if it is none."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def quoted(value: object) -> str:
    """Return the repr of a value for a message, on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError, RuntimeError):  # such as an integer of more than 4300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
