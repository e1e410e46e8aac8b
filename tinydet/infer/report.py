"""What the command prints: the plan before the work, and the result after it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tinydet._internal.console import plural
from tinydet._internal.progress import duration
from tinydet._internal.shell import tinydet_command
from tinydet._internal.stores import to_path
from tinydet.infer.auto_options import expected_memory
from tinydet.infer.chunks import Tally
from tinydet.infer.jobs import MARK
from tinydet.infer.summary import RunSummary
from tinydet.runtime.plan import ScanPlan
from tinydet.runtime.scan import ScanCounts, nms_not_converged
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.video import Video
from tinydet.runtime.score_calibration import calibrate, score_thresholds
from tinydet.runtime.tile_filter import describe
from tinydet.spec import FilterRecord, ModelSpec

MOST_PLACES = 8  # lines about where the outputs are
MANY_UNFAMILIAR = 0.5  # share of the tiles from which on a tile filter is hardly of use


def plan_lines(
    scene: Scene, spec: ModelSpec, plan: ScanPlan, *, from_journal: int, seconds: float | None
) -> Iterator[str]:
    """Describe the scan of a scene.

    Args:
        from_journal: number of tiles that an earlier run finished.
        seconds: expected duration of the rest; None if it is too short to mention.
    """
    tiling, grid, batch = plan.full, plan.full.grid, plan.options.batch
    scale = "" if tiling.scale == 1 else f" at scale {tiling.scale:.4g}"
    memory = expected_memory(scene, spec, batch) / 2**20
    eta = "" if seconds is None else f", {duration(seconds)} at most"
    size = f"{scene.width}x{scene.height}{scale}"
    tiles = f"{grid.columns}x{grid.rows} = {plural(len(grid), 'tile')} of {tiling.tile}, overlap {plan.overlap}"
    batches = f"{plural(plan.batches, 'batch')} of {batch}"
    yield f"{scene.name}: {size}, {tiles}, {batches}, about {memory:.0f} MiB{eta}"
    if plan.coarse is not None:
        coarse = f"{plural(len(plan.coarse.grid), 'tile')} at scale {plan.coarse.scale:.3g}"
        yield f"  first a coarse pass: {coarse}, for objects above {plan.min_side:.0f} pixels"
    if from_journal:
        yield f"  {from_journal} of {plan.tiles} tiles were finished by an earlier run"
    if (score_thresholds(spec, plan.options.score) < np.float32(spec.score_floor)).any():
        yield f"  The model itself drops detections with a score below {_floors(spec)}"
    if plan.warning:
        yield f"  {plan.warning[0].upper()}{plan.warning[1:]}"


def _floors(spec: ModelSpec) -> str:
    """Return the score below which the graph drops detections, as scores of results, by class if they differ."""
    if not spec.calibration:
        return f"{spec.score_floor}"
    classes = np.arange(len(spec.classes))
    floors = calibrate(np.full(len(classes), spec.score_floor), classes, spec.calibration)
    return ", ".join(f"{floor:.2g} ({name})" for name, floor in zip(spec.classes, floors, strict=True))


def video_line(
    video: Video, spec: ModelSpec, plan: ScanPlan | None, *, frames: int, seconds_per_batch: float = 0.0
) -> str:
    """Describe the scan of a video.

    Args:
        plan: of its frames; None if the scale depends on the frame.
        frames: number of frames to process; 0 if unknown.
        seconds_per_batch: time that the model takes for a batch; 0 if the video is short or its length is unknown.
    """
    line = f"{video.name}: {video.width}x{video.height}, {float(video.rate):.4g} frames/s, "
    line += f"{plural(frames, 'frame') if frames else 'unknown number of frames'} to process"
    line += ", live" if video.live else ""
    if plan is None:
        return line
    line += f", {plural(plan.tiles, 'tile')} of {spec.tile} each, overlap {plan.overlap}"
    line += f", {plural(plan.batches, 'batch')} of {plan.options.batch}"
    seconds = seconds_per_batch * plan.batches * frames
    return line + (f", {duration(seconds)} at most" if seconds else "")


def result_lines(
    tally: Tally, spec: ModelSpec, *, from_journal: int, seconds: float | None, record: FilterRecord | None = None
) -> Iterator[str]:
    """Describe what was found in a scene.

    Args:
        from_journal: number of tiles that an earlier run finished.
        seconds: duration of the others; None for one of several scenes, which share batches.
        record: of the learned tile filter; None without one.
    """
    tiles = tally.tiles
    speed = "" if seconds is None else f", {seconds:.1f} s, {(tiles.tiles - from_journal) / seconds:.1f} tiles/s"
    saturated = plural(tiles.saturated, "tile") if tiles.saturated else "no tiles"
    yield f"  {found(tally, spec)} in {plural(tiles.tiles, 'tile')}{speed}; {saturated} saturated"
    yield from _remarks(tally, spec, record)


def summary_lines(run: RunSummary, spec: ModelSpec, shared: Sequence[Path], *, seconds: float) -> Iterator[str]:
    """Describe what a run over several scenes found, and where it is.

    Args:
        shared: files for all scenes.
        seconds: duration of the run.
    """
    total = run.total
    counts = [plural(run.images, "scene"), plural(total.tiles.tiles, "tile")] if run.images or not run.videos else []
    if run.videos:
        counts += [plural(run.videos, "video"), plural(run.frames, "frame")]
    speed = f"{seconds:.1f} s"
    if ran := total.tiles.tiles - run.from_journal if run.images else 0:
        speed += f", {ran / seconds:.1f} tiles/s"
    yield f"{', '.join(counts)}: {found(total, spec)}, {speed}"
    if run.from_journal:
        yield f"  {plural(run.from_journal, 'tile')} were finished by an earlier run"
    if run.unchanged:
        yield f"  {plural(run.unchanged, 'scene')} already complete and unchanged"
    if total.tiles.saturated:
        yield f"  {plural(total.tiles.saturated, 'tile')} saturated"
    yield from _remarks(total, spec, run.filter_record)
    if run.skipped:
        yield f"  {plural(len(run.skipped), 'scene')} skipped"
    yield from _places([*shared, *map(to_path, run.outputs)])


def _places(paths: Sequence[Path]) -> Iterator[str]:
    """List files, those of one kind in one folder together."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        mark = path.name.rfind(MARK)
        kind = f"*{path.name[mark:] if mark > 0 else path.suffix}"
        groups.setdefault((path.parent, kind), []).append(path)
    for n, ((folder, kind), files) in enumerate(groups.items()):
        if n == MOST_PLACES:
            yield f"  and {plural(sum(len(rest) for rest in list(groups.values())[n:]), 'file')} in other folders"
            return
        yield f"  {files[0]}" if len(files) == 1 else f"  {folder / kind}: {plural(len(files), 'file')}"


def found(tally: Tally, spec: ModelSpec) -> str:
    """Return the number of boxes, and that of each class."""
    return f"{plural(int(tally.by_class.sum()), 'detection')} ({class_counts(tally, spec)})"


def filter_lines(tiles: ScanCounts, record: FilterRecord) -> Iterator[str]:
    """Describe what a learned tile filter skipped, and what it does not know."""
    total = max(tiles.tiles, 1)
    yield (
        f"  skipped {plural(tiles.filtered, 'tile')} in which the tile filter sees no object "
        f"({tiles.filtered / total:.0%}); it {describe(record)}"
    )
    if tiles.unfamiliar:
        line = (
            f"  {plural(tiles.unfamiliar, 'tile')} ({tiles.unfamiliar / total:.0%}) are unlike the images that the "
            "tile filter was trained on, so it does not know whether they are empty; they were scanned"
        )
        if tiles.unfamiliar > MANY_UNFAMILIAR * total:
            line += f". Train it on such images: {tinydet_command('train', '--filter', 'MODEL', '--data', 'DATA')}"
        yield line


def _remarks(tally: Tally, spec: ModelSpec, record: FilterRecord | None) -> Iterator[str]:
    """Explain tiles that were skipped, and those whose boxes may be incomplete."""
    tiles = tally.tiles
    by_contrast = 0 if record is not None else tiles.filtered
    for count, reason in ((tiles.empty, "without data"), (by_contrast, "without anything of an object's size")):
        if count:
            yield f"  skipped {plural(count, 'tile')} {reason} ({count / tiles.tiles:.0%})"
    if record is not None:
        yield from filter_lines(tiles, record)
    if tiles.saturated:
        # Unknown for tiles from a journal, which has no scores of lost boxes.
        which = f"boxes that score below {_above(tiles.cut)} may be lost" if tiles.cut > 0 else "some boxes are lost"
        remark = (
            f"  A saturated tile has more boxes, before overlapping ones are removed, than the model's "
            f"{spec.boxes_per_tile} slots; {which}. Raise --score"
        )
        if spec.grid_rois:
            remark += ", or export the checkpoint with a larger --grid-rois"
        tile = spec.tile // 2 // 64 * 64  # suits every detector
        if tile >= 64 and spec.tile_multiple:
            remark += f", or take smaller tiles: --tile {tile}"
        elif spec.is_adopted:
            remark += ", or export the original for smaller images, or images of any size, and adopt that file"
        elif tile >= 64:
            smaller = tinydet_command("export", "onnx", "CHECKPOINT.pth", "--tile", str(tile))
            remark += f", or export the checkpoint for smaller tiles: {smaller}"
        yield remark
    if tiles.unconverged:
        yield f"  {nms_not_converged(tiles.unconverged, spec)}"


def _above(score: float) -> str:
    """Return a score with two digits, rounded up.

    >>> _above(0.0712), _above(0.07)
    ('0.08', '0.07')
    """
    return f"{math.ceil(round(score * 100, 6)) / 100:.2f}"


def class_counts(tally: Tally, spec: ModelSpec) -> str:
    """List the number of boxes of each class."""
    names = (" ".join(name.split()) for name in spec.classes)
    return ", ".join(f"{name} {count}" for name, count in zip(names, tally.by_class.tolist(), strict=True))
