"""The command `tinydet seamtest`: measure what the borders between tiles do to the result.

A scene is scanned twice, on two grids that are shifted against each other, so that no object lies at a seam of both in
the same way. A box of one scan without a counterpart in the other was lost in one or invented in the other; of two
boxes that share a counterpart, one is a duplicate. A network also reacts to an object's surroundings and may change its
output without any seam. Boxes away from all seams are therefore counted separately, and the difference is what matters.
A score may cross the threshold, so a counterpart counts down to half of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import batch_size, or_auto, overlap, scale, share, side, threads
from tinydet._internal.atomic import claim, write_json
from tinydet._internal.command import command
from tinydet._internal.parser import Parser
from tinydet._internal.progress import Bar, Progress
from tinydet.geometry.nms import conflicts
from tinydet.geometry.tiles import COARSEST_CELL, TileGrid
from tinydet.runtime.auto_tile import AutoTile, auto_overlap
from tinydet.runtime.backends import BACKENDS, Backend, TileOutputs, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import OVERLAP, ScanPlan, plan_scan
from tinydet.runtime.scan import collect, scan
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.window import Window
from tinydet.runtime.stitch import EDGE, JITTER, MERGES, SAME_OBJECT, Merge
from tinydet.spec import ModelSpec

EPILOG = """\
The example scans scene.jpg twice and prints, for each merge, how many boxes the two scans do not share, at seams and
elsewhere. The model runs only once for all merges. --limit 0.01 makes it a test: the exit code is 1 if the disagreement
at seams exceeds that elsewhere by more than 0.01.
"""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two scans of one area.

    Attributes:
        boxes: number of boxes in both scans above the score threshold.
        lost: number of these without a counterpart.
        duplicates: number of these that share their counterpart with a better box.
    """

    boxes: int
    lost: int
    duplicates: int

    @property
    def disagreement(self) -> float:
        """Share of the boxes that are lost or duplicates; 0 if there are no boxes."""
        return (self.lost + self.duplicates) / self.boxes if self.boxes else 0.0


@dataclass(frozen=True)
class SeamReport:
    """Agreement of boxes that lie at or near an inner edge of a tile in either scan, and of all others."""

    at_seams: Agreement
    elsewhere: Agreement

    @property
    def excess(self) -> float:
        """Disagreement that the seams add to that of the network."""
        return self.at_seams.disagreement - self.elsewhere.disagreement


@dataclass(frozen=True)
class View:
    """One of the two scans.

    Attributes:
        scene: the scene, or the window of it that is scanned.
        origin: (x, y) of the window in the scene.
        plan: how it is scanned.
    """

    scene: Scene
    origin: tuple[int, int]
    plan: ScanPlan


@command("seamtest")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    with claim(args.output, inputs=[args.image, args.model]):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    rows, failed = [], False
    with open_scene(args.image) as probe:  # before the model: a wrong path is reported immediately
        print(f"{probe.name}: {probe.width}x{probe.height}")
    tile = AutoTile(args.overlap, batch=args.batch) if args.tile == "auto" else args.tile
    replay = _Replay(open_model(args.model, args.backend, tile=tile, threads=args.threads))
    overlap = args.overlap
    if overlap is None and args.tile == "auto":
        overlap = auto_overlap(replay.spec, replay.spec.tile)
    options = ScanOptions(overlap, args.scale, args.score, args.batch, agnostic=args.agnostic)
    with open_scene(args.image, stretch=replay.spec.stretch) as scene:
        views = shifted_views(scene, replay.spec, options)
        plan, (x, y) = views[0].plan, views[1].origin
        grid = plan.full.grid
        print(
            f"  {replay.name}; {len(grid)} tiles of {grid.tile_width}x{grid.tile_height}, scanned again from "
            f"({x}, {y}); scores from {args.score}"
        )
        if plan.warning:
            print(f"  {plan.warning[0].upper()}{plan.warning[1:]}")
        print(f"  {'merge':9} {'where':9} {'boxes':>7} {'lost':>6} {'duplicates':>11} {'disagree':>9}")
        for merge in dict.fromkeys(args.merge):
            with Bar(None, "tile") as bar:
                report = seam_test(replay.rewound(), views, merge, progress=bar.update)
            for where, agreement in (("at seams", report.at_seams), ("elsewhere", report.elsewhere)):
                print(
                    f"  {merge:9} {where:9} {agreement.boxes:7,} {agreement.lost:6,} {agreement.duplicates:11,} "
                    f"{agreement.disagreement:9.2%}"
                )
            rows.append({"merge": merge, "excess": report.excess, **asdict(report)})
            failed |= args.limit is not None and report.excess > args.limit
    if args.output is not None:
        write_json(args.output, {"image": str(args.image), "model": str(args.model or ""), "merges": rows})
        print(f"  {args.output}")
    if failed:
        print(f"  Seams add more than the {args.limit:.2%} that --limit allows", file=sys.stderr)
    return int(failed)


def shifted_views(scene: Scene, spec: ModelSpec, options: ScanOptions) -> tuple[View, View]:
    """Return the scene, and the scene without its first columns and rows, so that its tiles are shifted.

    Raises:
        ValueError: the scene is too small to have seams, or an option does not fit the model.
    """
    plan = plan_scan(scene, spec, options)
    x, y = shift_of(plan.full.grid)
    window = Window(scene, (x, y, scene.width, scene.height))
    return View(scene, (0, 0), plan), View(window, (x, y), plan_scan(window, spec, options))


def shift_of(grid: TileGrid) -> tuple[int, int]:
    """Return the shift (x, y): half a stride of the tiles, if possible in whole cells of the feature pyramid."""
    half = (grid.tile - grid.overlap) // 2
    shift = half // COARSEST_CELL * COARSEST_CELL or max(half, 1)
    x, y = (shift if length > grid.tile + shift else 0 for length in (grid.width, grid.height))
    if not (x or y):
        raise ValueError(
            f"a scene of {grid.width}x{grid.height} has no seams to test: it takes more than "
            f"{grid.tile + shift} pixels on one side for tiles of {grid.tile}"
        )
    return x, y


def seam_test(
    backend: Backend, views: tuple[View, View], merge: Merge = "seam", *, progress: Progress | None = None
) -> SeamReport:
    """Scan both views, and compare the boxes of the area that both show.

    Args:
        views: from `shifted_views`.
        merge: replaces the merge of the views' options.
        progress: called with the number of tiles that were just finished.
    """
    options = views[0].plan.options
    score = options.score
    assert score != "auto"  # the option of this command is a number
    lower = dataclasses.replace(options, merge=merge, score=score / 2)
    scans = []
    for view in views:
        plan = dataclasses.replace(view.plan, options=lower)
        found = collect(scan(backend, view.scene, plan), progress).detections
        offset = np.array(view.origin * 2, np.float32)
        scans.append(dataclasses.replace(found, boxes=found.boxes + offset))
    # At the border of the second view the network sees other surroundings, and parts of objects.
    margin = views[0].plan.overlap / options.scale
    inner = np.array([shift and shift + margin for shift in views[1].origin])
    near = 2 * EDGE / options.scale
    chosen = [found[np.flatnonzero((found.boxes[:, :2] >= inner).all(axis=1))] for found in scans]
    marked = []
    for found in chosen:
        at_seam = np.zeros(len(found), np.bool_)
        for view in views:
            at_seam |= _near_an_edge(found.boxes, view.plan.full.grid, view.origin, near)
        marked.append(at_seam)
    return _compare(chosen[0], chosen[1], marked[0], marked[1], score, JITTER / options.scale, options.agnostic)


def _compare(
    one: Detections,
    two: Detections,
    one_at_seam: NDArray[np.bool_],
    two_at_seam: NDArray[np.bool_],
    score: float,
    jitter: float,
    agnostic: bool,
) -> SeamReport:
    both = Detections.concatenate([one, two])
    at_seam = np.concatenate([one_at_seam, two_at_seam])
    scan = np.repeat([0, 1], [len(one), len(two)])
    kind = None if agnostic else both.labels
    corners = both.boxes.astype(np.float64)
    first, second = conflicts(corners, SAME_OBJECT, same=kind, apart=scan)
    loose = conflicts(corners, 0.0, same=kind, apart=scan)  # very small boxes: no edge differs by more than the jitter
    close = np.abs(corners[loose[0]] - corners[loose[1]]).max(axis=1, initial=0) < jitter
    first, second = (np.concatenate([a, b[close]]) for a, b in ((first, loose[0]), (second, loose[1])))

    has_counterpart = np.zeros(len(both), np.bool_)
    has_counterpart[first] = has_counterpart[second] = True
    matched = _matched(first, second, both.scores)
    counted = both.scores >= score
    agreements = []
    for where in (at_seam, ~at_seam):
        boxes = counted & where
        lost, duplicates = boxes & ~has_counterpart, boxes & has_counterpart & ~matched
        agreements.append(Agreement(int(boxes.sum()), int(lost.sum()), int(duplicates.sum())))
    return SeamReport(*agreements)


def _matched(first: NDArray[np.int64], second: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark boxes that have a counterpart of their own, assigned greedily by the sum of the scores of a pair."""
    order = np.lexsort((second, first, -(scores[first] + scores[second])))
    matched = np.zeros(len(scores), np.bool_)
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if not (matched[i] or matched[j]):
            matched[i] = matched[j] = True
    return matched


def _near_an_edge(
    boxes: NDArray[np.float32], grid: TileGrid, origin: tuple[int, int], near: float
) -> NDArray[np.bool_]:
    """Mark boxes that an inner edge of a tile crosses, or comes nearer to than `near` pixels."""
    result = np.zeros(len(boxes), np.bool_)
    for axis, (starts, size) in enumerate(((grid.xs, grid.tile_width), (grid.ys, grid.tile_height))):
        begin = np.asarray(starts, np.float64)
        edges = np.sort(np.concatenate([begin[1:], begin[:-1] + size])) + origin[axis]
        low = np.searchsorted(edges, boxes[:, axis] - near, "left")
        result |= np.searchsorted(edges, boxes[:, axis + 2] + near, "right") > low
    return result


class _Replay:
    """A backend that records the outputs of a model, and replays them after `rewound`."""

    def __init__(self, backend: Backend) -> None:
        self.spec, self.name, self._backend = backend.spec, backend.name, backend
        self._outputs: list[TileOutputs] = []
        self._next = 0

    def rewound(self) -> _Replay:
        self._next = 0
        return self

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        if self._next == len(self._outputs):
            self._outputs.append(self._backend.run(images))
        self._next += 1
        return self._outputs[self._next - 1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "seamtest",
        positional="--image",
        examples=("scene.jpg --model model.onnx --merge seam nms nmm",),
        needs_arguments=True,
        description="Scan a scene on two shifted grids of tiles and report where the results differ.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="SCENE", help="scene, larger than one tile")
    add("--model", type=Path, metavar="FILE", help="exported model (default: the first usable one in this folder)")
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the model (default: auto, the fastest that works)",
    )
    add("--merge", nargs="+", choices=MERGES, default=["seam"], metavar="NAME",
        help=f"merge methods to compare: {', '.join(MERGES)} (default: seam)")  # fmt: skip
    add("--agnostic", action="store_true", help="merge boxes of different classes (default: only within a class)")
    add("--tile", type=or_auto(side), metavar="PX", help="side of the tiles in pixels; auto chooses by object size,"
        " overlap and free memory (default: the model's tile)")  # fmt: skip
    add("--overlap", type=overlap, metavar="PX", help="overlap of the tiles, in pixels; more than the size of an object"
        f" (default: {OVERLAP}, at most half a tile)")  # fmt: skip
    add("--score", type=share, default=0.3, metavar="S", help="minimum score of the compared boxes (default: 0.3)")
    add("--scale", type=scale, default=1.0, metavar="F", help="resize factor of the scene; 0.5 halves it (default: 1)")
    add("--batch", type=batch_size, default=4, metavar="N", help="tiles per run of the model (default: 4)")
    add("--threads", type=threads, metavar="N", help="CPU threads of the model (default: all usable ones)")
    add("--limit", type=share, metavar="SHARE", help="exit with code 1 if seams add more disagreement, 0 to 1 (default:"
        " no limit)")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="JSON file for the counts (default: none)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
