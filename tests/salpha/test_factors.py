"""Counts -> alpha for every combination of counts; the warnings and the JSON form of the statistics."""

from __future__ import annotations

import doctest
import itertools
import json

import pytest

import tinydet.salpha.factors
from tinydet.salpha.factors import FusionStatistics, estimate_alpha, raw_alpha


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(tinydet.salpha.factors)
    assert result.attempted >= 3 and result.failed == 0


def test_alpha_is_defined_and_within_its_range_for_all_counts() -> None:
    for counts in itertools.product((0, 1, 3, 50), repeat=5):
        raw, alpha = raw_alpha(counts), estimate_alpha(counts)
        n2, n3, n4, n5, n6 = counts
        for value, r, finer, deeper in zip(alpha, raw, (n2, n3, n4), (n3, n4, n5 + n6), strict=True):
            if finer:
                assert r == deeper / finer
                assert value == (r if 0.2 <= r <= 2 else 0.2 if r < 0.2 else 2)
            else:
                assert r is None
                assert value == (2 if deeper else 1)


def test_alpha_is_clamped_to_alpha_range() -> None:
    counts = (100, 10, 300, 0, 0)
    assert estimate_alpha(counts, (0.0, 100.0)) == (0.1, 30.0, 0.0)
    assert estimate_alpha(counts, (0.5, 0.5)) == (0.5, 0.5, 0.5)
    assert estimate_alpha((0, 0, 0, 0, 0), (0.2, 0.8)) == (0.8, 0.8, 0.8)
    for bad in ((2.0, 0.2), (-1.0, 2.0), (0.2, float("inf")), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="0 <= LOW <= HIGH"):
            estimate_alpha(counts, bad)
    for few in ((1, 2), (), (1, 2, -3)):
        with pytest.raises(ValueError, match="at least three levels"):
            estimate_alpha(few)


def test_statistics_as_json() -> None:
    statistics = FusionStatistics((1000, 400, 0, 20, 10), boxes=1430, images=7, seconds=0.5)
    values = json.loads(json.dumps(statistics.to_json(), allow_nan=False))
    assert values["counts"] == {"P2": 1000, "P3": 400, "P4": 0, "P5": 20, "P6": 10}
    assert values["alpha_raw"] == {"P3->P2": 0.4, "P4->P3": 0.0, "P5->P4": None}
    assert values["alpha"] == {"P3->P2": 0.4, "P4->P3": 0.2, "P5->P4": 2.0}
    assert (values["boxes"], values["images"], values["seconds"]) == (1430, 7, 0.5)
    assert values["rule"] == {"count": "gt", "counted": statistics.text, "alpha_range": [0.2, 2.0]}
    assert values["warnings"] == list(statistics.warnings)


def test_statistics_reject_inconsistent_values() -> None:
    with pytest.raises(ValueError, match="one count"):
        FusionStatistics((1, 2, 3), boxes=6, images=1, seconds=0.0)
    with pytest.raises(ValueError, match="0 <= LOW <= HIGH"):
        FusionStatistics((1, 2, 3, 4, 5), boxes=15, images=1, seconds=0.0, alpha_range=(2.0, 1.0))


def warnings_of(*counts: int) -> str:
    return "\n".join(FusionStatistics(counts, sum(counts), 1, 0.0).warnings)


def test_a_typical_tiny_dataset_has_no_warnings() -> None:
    assert warnings_of(1000, 400, 200, 50, 30) == ""


def test_warnings_name_empty_levels_and_clamped_factors() -> None:
    assert "no objects on P6" in warnings_of(1000, 400, 200, 80, 0)
    assert "no objects on P5, P6" in warnings_of(1000, 400, 200, 0, 0)
    assert "P5->P4: raw alpha 0 is outside 0.2..2 and was clamped to 0.2" in warnings_of(1000, 400, 200, 0, 0)
    assert "P5->P4: no objects on either side (0/0), so alpha = 1 by convention" in warnings_of(1000, 400, 0, 0, 0)
    assert "P5->P4: no objects on the finer side (50/0), so alpha is the upper bound, 2" in warnings_of(
        90, 90, 0, 50, 0
    )


def test_a_note_says_when_no_edge_has_alpha_as_counted() -> None:
    note = "on every edge: no ratio of objects is within 0.2..2, so the counts do not say how much to fuse"
    for clamped in ((1000, 40, 2, 0, 0), (1000, 0, 0, 0, 0), (0, 1000, 0, 0, 0), (1, 9, 90, 900, 0)):
        assert note in warnings_of(*clamped)
        assert FusionStatistics(clamped, 1, 1, 0.0).to_json()["clamped_on_every_edge"] is True
    for counted in ((1000, 40, 30, 0, 0), (0, 0, 0, 0, 0), (1000, 200, 2, 0, 0)):
        assert note not in warnings_of(*counted)
        assert FusionStatistics(counted, 1, 1, 0.0).to_json()["clamped_on_every_edge"] is False
    assert "alpha is at its lower limit on every edge" in warnings_of(1000, 40, 2, 0, 0)
    assert "starts at P2" not in warnings_of(1000, 40, 2, 0, 0)
    coarse = FusionStatistics((900, 45, 4, 0), 100, 1, 0.0, ("P3", "P4", "P5", "P6+P7"), "anchor", unit="point")
    notes = "\n".join(coarse.notes)
    assert "no ratio of points is within" in notes and "a detector that starts at P2, such as fcos" in notes
    assert "use a small alpha" in notes and "use S-alpha" not in notes


def test_an_edge_with_fewer_than_twenty_objects_gets_a_warning() -> None:
    assert "P5->P4: alpha is based on only 19 objects" in warnings_of(1000, 400, 10, 8, 1)
    assert "based on only" not in warnings_of(1000, 400, 10, 8, 2)
    assert "based on only" not in warnings_of(1000, 400, 0, 0, 0)  # 0/0 has its own warning
    assert "P3->P2: alpha is based on only 1 object," in warnings_of(0, 1, 40, 20, 20)


def test_alpha_one_is_advised_where_deeper_levels_have_more_objects() -> None:
    advice = "the objects are not tiny for this detector; use alpha = 1"
    assert f"raw alpha > 1 on P4->P3: {advice}" in warnings_of(1000, 400, 401, 80, 10)
    assert f"raw alpha > 1 on P3->P2, P5->P4: {advice}" in warnings_of(0, 400, 100, 80, 30)
    assert advice not in warnings_of(400, 400, 400, 200, 200)
