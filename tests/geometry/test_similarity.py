"""Similarities of boxes in numpy: recorded values, and the law on which closed forms rest."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from detector_cases import cases_of

from tinydet.geometry.similarity import SIMILARITIES, dotd, nwd, rfd, simd, simd_factors

BOX = np.array([10.0, 10.0, 18.0, 18.0])


def test_recorded_values_come_out(shared: Path) -> None:
    for case in cases_of(shared, "metrics"):
        given = case["input"]
        objects, priors = (np.array(given[name], float) for name in ("objects", "priors"))
        functions = {
            **SIMILARITIES,
            "nwd": functools.partial(nwd, scale=given["nwd_constant"]),
            "dotd": functools.partial(dotd, scale=given["dotd_constant"]),
            "simd": functools.partial(simd, factors=(given["simd_m"], given["simd_n"])),
        }
        assert functions.keys() == case["expected"].keys()
        for name, function in functions.items():
            wanted = np.array(case["expected"][name])
            np.testing.assert_allclose(function(objects[:, None], priors), wanted, atol=case["tolerance"])


def test_recorded_factors_come_out(shared: Path) -> None:
    for case in cases_of(shared, "simd_constants"):
        images = [
            (np.array(each["objects"], float).reshape(-1, 4), np.array(each["anchors"], float).reshape(-1, 4))
            for each in case["input"]
        ]
        wanted = (case["expected"]["m"], case["expected"]["n"])
        assert simd_factors(images) == pytest.approx(wanted, abs=case["tolerance"])


def test_factors_weigh_pairs_not_images_and_need_one() -> None:
    apart = BOX + np.array([8, 0, 8, 0])  # half of the summed widths apart
    assert simd_factors([(BOX[None], np.stack([apart, apart])), (BOX[None], BOX[None])]) == pytest.approx((1 / 3, 0))
    with pytest.raises(ValueError, match="there is none"):
        simd_factors([(BOX[None], np.zeros((0, 4)))])


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_box_is_most_similar_to_itself_wherever_it_lies(name: str) -> None:
    similarity = SIMILARITIES[name]
    others = BOX + np.array([[1.0, 0, 1, 0], [0, -2, 0, -2], [3, 3, 3, 3]])
    assert similarity(BOX, BOX) == pytest.approx(1, abs=1e-4)
    assert (similarity(BOX, others) < similarity(BOX, BOX)).all() and (similarity(BOX, others) > 0).all()
    np.testing.assert_allclose(similarity(BOX + 50, others + 50), similarity(BOX, others))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_nearest_of_equal_anchors_is_the_most_similar(name: str) -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(1, 40, (200, 2))
    x, y = np.meshgrid(np.arange(-40, 41, 4.0), np.arange(-40, 41, 4.0))
    half = np.array([9.0, 14.0])
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    anchors = np.concatenate([centers - half, centers + half], axis=1)
    at = rng.uniform(-30, 30, (200, 2))
    boxes = np.concatenate([at - sides / 2, at + sides / 2], axis=1)
    found = SIMILARITIES[name](boxes[:, None], anchors)
    nearest = np.abs(centers - at[:, None]).sum(-1).argmin(1)
    np.testing.assert_allclose(found[np.arange(200), nearest], found.max(1), rtol=1e-12)


def test_two_pixels_shift_of_eight() -> None:
    """By hand: NWD = exp(-2 / 12.7); KL = 4 * 2^2 / 8^2 / 2 = 1 / 8."""
    shifted = BOX + np.array([2, 0, 2, 0])
    assert nwd(BOX, shifted) == dotd(BOX, shifted) == pytest.approx(np.exp(-2 / 12.7), rel=1e-6)
    assert rfd(BOX, shifted) == pytest.approx(8 / 9)
