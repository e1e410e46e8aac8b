"""What the command says to people: the plan before the work, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from tinydet.infer.auto_options import expected_memory
from tinydet.infer.chunks import Tally
from tinydet.runtime.coarse import plan_coarse
from tinydet.runtime.scan import plan_passes, unsettled
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.video import Video
from tinydet.spec import ModelSpec


def plan_lines(
    scene: Scene,
    spec: ModelSpec,
    *,
    overlap: int,
    scale: float,
    score: float,
    batch: int,
    known: int,
    seconds: float | None,
) -> Iterator[str]:
    """What will be done with a scene.

    Args:
        known: tiles that an earlier run finished.
        seconds: that the rest is expected to take; None where it is not worth a word.
    """
    passes = plan_passes(scene, spec, overlap=overlap, scale=scale)
    plan, _ = passes[-1]
    grid = plan.grid
    tiles = sum(len(one.grid) for one, _ in passes)
    scaled = "" if plan.scale == 1 else f" at scale {plan.scale:.4g}"
    batches = sum(-(-len(one.grid) // batch) for one, _ in passes)
    memory = expected_memory(scene, spec, batch) / 2**20
    eta = "" if seconds is None else f", {duration(seconds)} at most"
    yield (
        f"{scene.name}: {scene.width}x{scene.height}{scaled}, {grid.columns}x{grid.rows} = {len(grid)} tiles of "
        f"{plan.tile}, overlap {overlap}, {batches} batches of {batch}, about {memory:.0f} MiB{eta}"
    )
    if len(passes) > 1:
        coarse, least = passes[0]
        yield f"  before, {len(coarse.grid)} tiles at scale {coarse.scale:.3g}, for objects above {least:.0f} pixels"
    if known:
        yield f"  {known} of {tiles} tiles are known from an earlier run"
    if score < spec.score_floor:
        yield f"  The model itself leaves out what scores below {spec.score_floor}"
    if warning := plan_coarse(spec, grid, overlap=overlap, scale=scale).warning:
        yield f"  {warning[0].upper()}{warning[1:]}"


def video_line(
    video: Video, spec: ModelSpec, *, overlap: int, scale: float | None, batch: int, frames: int, seconds: float = 0.0
) -> str:
    """What will be done with a video.

    Args:
        scale: None where it depends on the frames.
        frames: that will be looked at; 0 where it is not known.
        seconds: that the model takes for a batch; 0 where the video is short or its end is not known.
    """
    line = f"{video.name}: {video.width}x{video.height}, {float(video.rate):.4g} frames/s, "
    line += f"{frames or 'unknown number of'} frames to look at{', live' if video.live else ''}"
    if scale is None:
        return line
    grids = [len(plan.grid) for plan, _ in plan_passes(video, spec, overlap=overlap, scale=scale)]
    batches = sum(-(-tiles // batch) for tiles in grids)
    line += f", {sum(grids)} tiles of {spec.tile} each, overlap {overlap}, {batches} batches of {batch}"
    return line + (f", {duration(seconds * batches * frames)} at most" if seconds else "")


def result_lines(tally: Tally, spec: ModelSpec, *, known: int, seconds: float) -> Iterator[str]:
    """What was found in a scene.

    Args:
        known: tiles that an earlier run finished.
        seconds: that the others took.
    """
    run = tally.tiles - known
    yield (
        f"  {tally.counts.sum()} detections ({class_counts(tally, spec)}) in {tally.tiles} tiles, {seconds:.1f} s, "
        f"{run / seconds:.1f} tiles/s; {tally.saturated or 'no'} tiles saturated"
    )
    for count, reason in ((tally.empty, "without data"), (tally.plain, "that show nothing of an object's size")):
        if count:
            yield f"  {count} tiles {reason} were passed over ({count / tally.tiles:.0%})"
    if tally.saturated:
        yield (
            f"  A saturated tile has more boxes than the model's {spec.max_detections} slots; the weakest are "
            f"lost. Raise --score, or use smaller tiles: python export/to_onnx.py model.pth --tile {spec.tile // 2}"
        )
    if tally.unconverged:
        yield f"  {unsettled(tally.unconverged, spec)}"


def class_counts(tally: Tally, spec: ModelSpec) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(spec.classes, tally.counts.tolist(), strict=True))


def duration(seconds: float) -> str:
    """In the unit that a person would take.

    >>> duration(42), duration(300), duration(9000)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
