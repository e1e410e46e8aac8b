"""Every tile of every scene is in exactly one part, and parts end between rows of tiles."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tinydet.runtime.options import ScanOptions
from tinydet.runtime.pieces import Piece, divide, piece_of, row_starts
from tinydet.runtime.plan import ScanPlan, plan_tiles

weights = st.lists(st.integers(0, 50) | st.integers(10**9, 10**13), max_size=12)
sides = st.integers(1, 900)


def plan_of(width: int, height: int, *, coarse: bool) -> ScanPlan:
    full = plan_tiles(width, height, tile=64, overlap=8)
    first = plan_tiles(width, height, tile=64, overlap=8, scale=0.4) if coarse else None
    return ScanPlan(ScanOptions(overlap=8), full, first)


@settings(max_examples=30, deadline=None)
@given(weights, st.integers(1, 40))
def test_each_unit_of_weight_is_in_one_part(weights: list[int], parts: int) -> None:
    spans = [span for part in divide(weights, parts) for span in part]
    for scene, weight in enumerate(weights):
        mine = [span for span in spans if span.scene == scene]
        assert [span.start for span in mine] == [0, *(span.stop for span in mine[:-1])]
        assert mine[-1].stop == max(1, weight)
        assert all(span.start < span.stop and span.weight == max(1, weight) for span in mine)


@settings(max_examples=30, deadline=None)
@given(weights, st.integers(1, 40))
def test_parts_differ_by_at_most_one_unit(weights: list[int], parts: int) -> None:
    loads = [sum(span.stop - span.start for span in part) for part in divide(weights, parts)]
    assert max(loads) - min(loads) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sides, sides, st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=4), st.data())
def test_the_union_of_all_parts_is_the_whole(scenes: list[tuple[int, int, bool, int]], data: st.DataObject) -> None:
    plans = [plan_of(width, height, coarse=coarse) for width, height, coarse, _ in scenes]
    parts = divide([weight for *_, weight in scenes], data.draw(st.integers(1, 60)))
    for scene, plan in enumerate(plans):
        pieces = [piece_of(span, plan) for part in parts for span in part if span.scene == scene]
        starts = {*row_starts(plan), plan.tiles}
        assert all(piece.start in starts and piece.stop in starts for piece in pieces)
        tiles = [i for piece in pieces for i in range(piece.start, piece.stop)]
        assert tiles == list(range(plan.tiles))
        for index, tiling in enumerate(plan.passes):
            of_pass = [i for piece in pieces for i in range(len(tiling.grid))[piece.tiles(plan, index)]]
            assert of_pass == list(range(len(tiling.grid)))


def test_a_piece_that_ends_inside_a_pass_has_tiles_of_both() -> None:
    plan = plan_of(600, 600, coarse=True)
    first, second = (len(tiling.grid) for tiling in plan.passes)
    piece = Piece(first - 1, first + 5)
    assert piece.tiles(plan, 0) == slice(first - 1, first)
    assert piece.tiles(plan, 1) == slice(0, 5)
    assert Piece(0, first).tiles(plan, 1) == slice(0, 0)
    assert len(range(second)[Piece(0, plan.tiles).tiles(plan, 1)]) == second
