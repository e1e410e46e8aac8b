from __future__ import annotations

import dataclasses

import pytest

from tinydet.runtime.coarse import CoarsePass
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import ScanPlan, Tiling, plan_scan, plan_tiles
from tinydet.runtime.scenes import Scene
from tinydet.spec import ModelSpec

SPEC = ModelSpec(("a",), (1,), "none", "none", tile=64, object_sizes=(4, 12, 90))


class Area(Scene):
    """The size of a scene: a plan reads no pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.name, self.width, self.height = "area", width, height

    def _read(self, *window: object) -> None:
        raise AssertionError


def plan(options: ScanOptions, spec: ModelSpec = SPEC, width: int = 300, height: int = 400) -> ScanPlan:
    return plan_scan(Area(width, height), spec, options)


def test_the_default_overlap_is_128_or_half_a_tile() -> None:
    for tile, overlap in ((64, 32), (256, 128), (640, 128)):
        made = plan(ScanOptions(), dataclasses.replace(SPEC, tile=tile))
        assert made.overlap == made.options.overlap == overlap
        assert made.full == plan_tiles(300, 400, tile=tile, overlap=overlap)


def test_a_coarse_pass_runs_before_the_full_pass() -> None:
    made = plan(ScanOptions(overlap=32, scale=2.0))
    assert made.coarse is not None
    assert made.passes == (made.coarse, made.full)
    assert made.coarse.scale < made.full.scale == 2
    assert made.min_side == (32 - 12) / 2  # 3 times the 4 pixels within which a box touches an edge
    assert made.tiles == len(made.coarse.grid) + len(made.full.grid)


def test_a_coarse_pass_is_made_as_requested_or_left_out() -> None:
    none = plan(ScanOptions(overlap=32, coarse=None))
    assert (none.coarse, none.passes) == (None, (none.full,))
    chosen = plan(ScanOptions(overlap=32, coarse=CoarsePass(0.5, 20)))
    assert (chosen.coarse, chosen.min_side) == (plan_tiles(300, 400, tile=64, overlap=32, scale=0.5), 20)


def test_an_overlap_too_small_for_a_coarse_pass_is_a_warning() -> None:
    made = plan(ScanOptions(overlap=8))
    assert made.coarse is None
    assert "--overlap 103" in made.warning
    assert plan(ScanOptions(overlap=32)).warning == ""


def test_passes_share_batches() -> None:
    made = plan(ScanOptions(overlap=32, batch=4))
    assert made.batches == -(-sum(len(tiling.grid) for tiling in made.passes) // 4)


def test_content_is_smaller_than_the_input_if_the_scene_is() -> None:
    assert plan_tiles(50, 40, tile=64, overlap=8).content_size == (50, 40)
    assert plan_tiles(500, 40, tile=64, overlap=8, scale=2.0).content_size == (64, 64)
    assert isinstance(plan_tiles(1, 1, tile=64, overlap=8), Tiling)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 1.5}, "score: expected a number from 0 to 1, got '1.5'"),
        ({"score": float("nan")}, "score: expected .* got 'nan'"),
        ({"batch": 0}, "batch: expected a whole number from 1 to 4096, got '0'"),
        ({"readers": 0}, "readers: expected a whole number from 1 to 256, got '0'"),
        ({"batch": 1.5}, "batch: expected a whole number"),
        ({"batch": True}, "batch: expected a number, got True"),
        ({"batch": "4"}, "batch: expected a number, got '4'"),
        ({"overlap": -1}, "overlap: expected a whole number of pixels from 0 to 1 000 000, got '-1'"),
        ({"scale": 0.0}, "scale: expected a number from 0.001 to 64, got '0.0'"),
        ({"scale": 1e-320}, "scale: expected"),
        ({"scale": float("nan")}, "scale: expected"),
        ({"scale": 640}, "scale: expected"),
        ({"agnostic": 1}, "agnostic must be True or False, got 1"),
        ({"merge": ["seam"]}, "merge must be one of"),
        ({"coarse": "always"}, "coarse must be None, 'auto' or a CoarsePass, got 'always'"),
        ({"merge": "fuse"}, "seam, nms, nmm, wbf, soft-nms, got 'fuse'"),
    ],
)
def test_an_option_out_of_range_is_refused_before_a_model_is_needed(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 64}, "smaller than the tile of 64, got 64"),
        ({"overlap": 63, "max_tiles": 1000}, r"pixels at scale 1: [\d,]+ tiles, more than 1,000; .*--max-tiles"),
        ({"scale": 64.0, "max_tiles": 1000}, "pixels at scale 64: .*--max-tiles"),
    ],
)
def test_an_option_that_does_not_fit_the_tile_is_refused_by_the_plan(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(ScanOptions(**options))
