"""Argument types for argparse (`type=...`). An invalid value is reported with the rule and what was given."""

from __future__ import annotations

import argparse
import csv
import io
import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Collection, Iterable
from typing import Literal, NoReturn

from tinydet._internal.names import mask_secrets, printable


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = _float(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def seed(text: str) -> int:
    """Parse a seed of random draws: a whole number from 0 to 2**63 - 1."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    value = _float(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"expected a number from 0 up and below 1, such as 0.005; got {text!r}")
    return value


def number_or_auto(text: str) -> float | Literal["auto"]:
    """Parse a finite number, or the word `auto`."""
    if text == "auto":
        return "auto"
    value = _float(text)
    if not math.isfinite(value):
        raise ArgumentTypeError(f"expected a number or auto, got {text!r}")
    return value


def integers(text: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas.

    >>> integers("5,3,2")
    (5, 3, 2)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected whole numbers separated by commas, such as 5,3,2; got {text!r}") from None


def floats(text: str) -> tuple[float, ...]:
    """Parse finite numbers separated by commas.

    >>> floats("0.5,1")
    (0.5, 1.0)
    """
    values = tuple(_float(part) for part in text.split(","))
    if not all(map(math.isfinite, values)):
        raise ArgumentTypeError(f"expected numbers separated by commas, such as 1,0.5,0.25; got {text!r}")
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
            values = [round(low + i * step, 10) for i in range(int((high - low) / step + 1e-9) + 1)]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ArgumentTypeError(
            f"expected a grid LOW:HIGH:STEP such as 0:1.1:0.1, or values such as 0,0.5,1; got {text!r}"
        )
    return tuple(dict.fromkeys(values))


def float_range(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH. Their order and bounds are checked where the range is used.

    >>> float_range("0.2,2")
    (0.2, 2.0)
    """
    values = tuple(_float(part) for part in text.split(","))
    if len(values) != 2 or any(map(math.isnan, values)):
        raise ArgumentTypeError(f"expected LOW,HIGH as in 0.2,2.0, got {text!r}")
    return values


def size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT in pixels.

    >>> size("4096x2048")
    (4096, 2048)
    """
    width, times, height = text.lower().partition("x")
    if not times or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in (width, height)):
        raise ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 4096x4096; got {text!r}")
    return int(width), int(height)


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas; one that contains a comma is in double quotes, as in CSV.

    >>> names('person, "car, parked",')
    ('person', 'car, parked')
    """
    try:
        (row,) = csv.reader([text], skipinitialspace=True) if text else [[]]
    except (csv.Error, ValueError) as error:
        raise ArgumentTypeError(f"expected names separated by commas; got {text!r} ({error})") from error
    return tuple(name for part in row if (name := part.strip()))


def join_names(values: Iterable[object]) -> str:
    """Join values to a text from which `names` returns them.

    >>> join_names(["person", "car, parked"])
    'person,"car, parked"'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def add_categories(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add `--categories A,B` and `--category NAME`, whose values are one list; None if neither is given."""
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
            raise ArgumentTypeError(f"expected some of {', '.join(known)}; got {unknown[0] if unknown else text!r}")
        return found

    return parse


def _float(text: str) -> float:
    """Parse a number; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class PublicParser(ArgumentParser):
    """A parser whose errors quote no password of an address, and no byte that a terminal cannot show."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(mask_secrets(message)))
