"""`--tile auto`: the smallest tile whose overlap costs little and that fits in the memory, and a line that says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_fixtures import SPEC

from tinydet.runtime.auto_tile import ADDED, BYTES_PER_PIXEL, MEMORY_SHARE, AutoTile, added, choose_tile
from tinydet.runtime.backends import open_model
from tinydet.runtime.model import load

FREE = dataclasses.replace(SPEC, tile_multiple=32)
PLENTY = 1 << 50
STEPS = range(32, 2049, 32)


@pytest.mark.parametrize("overlap", [0, 1, 16, 40, 64, 100, 128, 200, 216])
def test_a_smaller_tile_would_cost_more_than_a_quarter(overlap: int) -> None:
    tile = choose_tile(STEPS, overlap)
    assert added(tile, overlap) <= ADDED
    assert tile == 32 or added(tile - 32, overlap) > ADDED


@pytest.mark.parametrize("overlap", [216, 1000, 4000])
def test_an_overlap_that_no_tile_makes_cheap_gets_the_largest(overlap: int) -> None:
    assert choose_tile(STEPS, overlap) == max(STEPS) or added(choose_tile(STEPS, overlap), overlap) <= ADDED


def test_a_tile_fits_in_the_memory() -> None:
    room = int(640**2 * BYTES_PER_PIXEL / MEMORY_SHARE)
    assert choose_tile(STEPS, 128, room) == 640
    assert choose_tile(STEPS, 128, room - 1) == 608
    assert choose_tile(STEPS, 128, 0) == 32
    chooser = AutoTile(128, batch=8, memory=4 * room)  # of 8 tiles at once, the model takes 4
    assert chooser(FREE) == 640


def test_large_objects_get_larger_tiles(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinydet.runtime")
    sizes = [AutoTile(memory=PLENTY)(dataclasses.replace(FREE, object_sizes=(2, 9, big))) for big in (12, 40, 90)]
    assert sizes == sorted(set(sizes))
    assert caplog.messages[0].startswith(f"--tile auto: {sizes[0]} pixels (the model takes any multiple of 32): ")
    assert "for objects of up to 12, which adds" in caplog.messages[0]


def test_a_model_of_one_tile_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinydet.runtime")
    assert AutoTile(memory=PLENTY)(SPEC) == 64
    assert "64 pixels (the model takes only this one)" in caplog.text
    engine = dataclasses.replace(SPEC, engine={"tiles": [1024, 320]})
    assert [AutoTile(overlap, memory=PLENTY)(engine) for overlap in (16, 100, 300)] == [320, 1024, 1024]


def test_a_model_is_opened_with_the_chosen_tile(make_onnx: Callable, tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(FREE, object_sizes=(2, 4, 8)))
    opened = open_model(path, "onnx-cpu", tile=AutoTile(10, memory=PLENTY), threads=1)
    assert opened.spec.tile == 96
    assert load(path, backend="onnx-cpu", tile="auto", overlap=10).spec.tile == 96
    assert load(path, backend="onnx-cpu", tile=160).spec.tile == 160
    with pytest.raises(ValueError, match="any multiple of 32 pixels, not 100; the nearest: 96 and 128"):
        load(path, backend="onnx-cpu", tile=100)
