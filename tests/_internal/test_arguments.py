from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinydet._internal.arguments import (
    add_categories,
    check_number,
    float_range,
    floats,
    fraction,
    grid,
    image_id,
    integers,
    join_names,
    names,
    names_from,
    number,
    or_auto,
    overlap,
    positive_float,
    positive_int,
    quoted,
    scale,
    size,
    whole,
)

one_of_two = names_from(("coco", "csv"))


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (positive_int, "1", 1),
        (positive_float, "1e-3", 0.001),
        (fraction, "0", 0.0),
        (fraction, "0.999", 0.999),
        (whole(-3, 5), "-3", -3),
        (image_id, str(2**63 - 1), 2**63 - 1),
        (number(-1, 1), "-1e0", -1.0),
        (scale, "64", 64.0),
        (or_auto(overlap), "auto", "auto"),
        (or_auto(overlap), "0", 0),
        (integers, "5,3,2", (5, 3, 2)),
        (integers, "7", (7,)),
        (floats, "1, 0.5", (1.0, 0.5)),
        (grid, "0:1.1:0.1", tuple(i / 10 for i in range(12))),
        (grid, "0,0.25,1", (0.0, 0.25, 1.0)),
        (grid, "0.5,0.5", (0.5,)),
        (float_range, "2,0.5", (2.0, 0.5)),  # the order is checked where it matters
        (size, "640X512", (640, 512)),
        (names, " person, car,", ("person", "car")),
        (names, "", ()),
        (one_of_two, "csv,coco,csv", ("csv", "coco")),
    ],
)
def test_a_valid_argument_is_parsed(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (positive_int, [str(10**12), "0", "-1", "1.5", "a", "", "²"]),
        (positive_float, ["0", "-1", "inf", "nan", "a", ""]),
        (fraction, ["1", "-0.1", "nan", "a"]),
        (whole(-3, 5), ["-4", "6", "--3", "-", "+1", "1e0", "0x1", "9" * 5000]),
        (image_id, ["-1", str(2**63)]),
        (number(0, 1, above=True, below=True), ["0", "1", "-0", "1_0", "1,5"]),
        (scale, ["0", "1e-320", "nan", "inf", "-inf", "640", "1e400"]),
        (or_auto(overlap), ["Auto", "nan", "inf", "", "1.5", "-1", str(10**11)]),
        (integers, ["9" * 5000, "-1", "", "1,", "1.5", "1;2"]),
        (floats, ["", "1,", "1,nan", "inf", "a"]),
        (grid, ["0:1:1e-9", "0:1e300:1", "", "a", "0:1", "1:0:0.1", "0:1:0", "0:inf:1", "nan"]),
        (float_range, ["", "1", "1,2,3", "wide", "nan,1"]),
        (size, ["9999999x9999999", "640", "64x-4", "x64", "0x64", "64x64x3"]),
        (one_of_two, ["", "yolo", "csv,yolo", "CSV"]),
    ],
)
def test_an_invalid_argument_is_refused_and_quoted(parse: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            parse(text)
        assert quoted(text) in str(refused.value) or "'yolo'" in str(refused.value)


@pytest.mark.parametrize(("text", "suggested"), [("50%", True), ("0,5", True), ("0", False), ("100", False)])
def test_a_suggested_number_is_one_that_is_allowed(text: str, suggested: bool) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        number(0, 1, above=True, below=True)(text)
    assert ("did you mean 0.5?" in str(refused.value)) == suggested == ("did you mean" in str(refused.value))


@pytest.mark.parametrize("value", [1, 64.0, np.float32(0.5), np.int64(2)])
def test_a_number_given_in_python_is_checked_by_the_rule_of_the_command(value: Any) -> None:
    assert check_number("scale", value, scale) == float(value)


@pytest.mark.parametrize("value", [None, True, "1", 0, -1.0, float("nan"), 10**5000, [1], 1j, np.zeros(2)], ids=quoted)
def test_a_wrong_number_given_in_python_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="^scale: expected a number"):
        check_number("scale", value, scale)


def test_joined_names_parse_into_the_same_names() -> None:
    for values in ([], ["a"], ["car, parked", "b"], ['6" pipe', '"quoted"', "a,b,c"], ["é", "x y"]):
        assert list(names(join_names(values))) == values


def test_categories_of_both_flags_are_one_list() -> None:
    parser = argparse.ArgumentParser()
    add_categories(parser, "count")
    words = ["--categories", 'person,"car, parked"', "--category", "a,b", "--categories", "tree", "--category", "c"]
    assert parser.parse_args(words).categories == ["person", "car, parked", "a,b", "tree", "c"]
    assert parser.parse_args([]).categories is None
