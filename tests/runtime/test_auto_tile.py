"""`--tile auto`: the smallest tile whose overlap costs little and that fits in the memory, and a line that says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_fixtures import SPEC

from tinydet.runtime import auto_tile
from tinydet.runtime.auto_tile import ADDED, BYTES_PER_PIXEL, LARGEST, MEMORY_SHARE, AutoTile, added, choose_tile
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.contract import spec_for_tile
from tinydet.runtime.model import load

FREE = dataclasses.replace(SPEC, tile_multiple=32)
PLENTY = 1 << 50
STEPS = range(32, 2049, 32)


@pytest.mark.parametrize("overlap", [0, 1, 16, 40, 64, 100, 128, 200, 216])
def test_a_smaller_tile_would_cost_more_than_a_quarter(overlap: int) -> None:
    tile = choose_tile(STEPS, [overlap] * len(STEPS))
    assert added(tile, overlap) <= ADDED
    assert tile == 32 or added(tile - 32, overlap) > ADDED


@pytest.mark.parametrize("overlap", [216, 1000, 4000])
def test_an_overlap_that_no_tile_makes_cheap_gets_the_largest(overlap: int) -> None:
    tile = choose_tile(STEPS, [overlap] * len(STEPS))
    assert tile == max(STEPS) or added(tile, overlap) <= ADDED


def test_a_tile_fits_in_the_memory() -> None:
    room = int(640**2 * BYTES_PER_PIXEL / MEMORY_SHARE)
    overlaps = [128] * len(STEPS)
    assert [choose_tile(STEPS, overlaps, memory) for memory in (room, room - 1, 0)] == [640, 608, 32]
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


@pytest.mark.parametrize("largest", [None, 4, 40, 300])
def test_the_scan_overlaps_as_the_choice_of_the_tile_assumed(
    largest: float | None,
    make_onnx: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_tile, "free_memory", lambda: PLENTY)
    caplog.set_level("INFO", "tinydet.runtime")
    sizes = None if largest is None else (2, 3, largest)
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(FREE, object_sizes=sizes))
    model = load(path, backend="onnx-cpu", tile="auto")
    scan = model.options.overlap
    assert scan is not None
    assert f"tiles share {scan} pixels" in caplog.text
    assert added(model.spec.tile, scan) <= ADDED or model.spec.tile == LARGEST
    assert load(path, backend="onnx-cpu").options.overlap is None


def test_a_tile_that_holds_the_largest_scene_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinydet.runtime")
    chosen = [AutoTile(128, longest=side, memory=PLENTY)(FREE) for side in (1, 640, 641, 1216, 1217, 9000)]
    assert chosen == [64, 640, 672, 1216, 1216, 1216]
    assert "holds the largest scene whole" in caplog.messages[0]
    engine = dataclasses.replace(SPEC, engine={"tiles": [1024, 320]})
    assert [AutoTile(128, longest=side, memory=PLENTY)(engine) for side in (300, 321)] == [320, 1024]


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinydet.runtime")
    chooser = AutoTile(memory=PLENTY)
    assert chooser(FREE) == chooser(FREE)
    assert len(caplog.messages) == 1


def test_a_model_is_opened_with_the_chosen_tile(make_onnx: Callable, tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(FREE, object_sizes=(2, 4, 8)))
    opened = open_model(path, "onnx-cpu", tile=AutoTile(10, memory=PLENTY), threads=1)
    assert opened.spec.tile == 96
    assert load(path, backend="onnx-cpu", tile="auto", overlap=10).spec.tile == 96
    assert load(path, backend="onnx-cpu", tile=160).spec.tile == 160
    with pytest.raises(ValueError, match="any multiple of 32 pixels, not 100; the nearest: 96 and 128"):
        load(path, backend="onnx-cpu", tile=100)


def test_the_command_for_another_tile_of_an_engine_keeps_its_graph_and_default_tile(tmp_path: Path) -> None:
    engine = dataclasses.replace(SPEC, tile=640, engine={"tiles": [640, 1024], "onnx": "thermal.fp16.onnx"})
    with pytest.raises(ValueError, match=r" \S*/thermal\.fp16\.onnx --tile 640,1024,512 --output \S*/new\.engine"):
        spec_for_tile(engine, 512, tmp_path / "new.engine")
