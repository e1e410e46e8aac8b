"""The command `tinydet seamtest`: does it matter where tiles meet?

A scene is scanned twice, with grids that are shifted against each other, so that no object lies at a seam of both in
the same way. A box of one scan that has no counterpart in the other was lost there or made up here; of two boxes that
have one counterpart together, one is a duplicate. A network sees an object in other surroundings, too, and may change
its mind without any seam: so the boxes that no edge of a tile comes near are counted apart, and what matters is the
difference. A score may cross the threshold: a counterpart counts down to half of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.geometry.nms import conflicts
from tinydet.geometry.tiles import COARSEST_CELL, TileGrid
from tinydet.runtime.backends import BACKENDS, Backend, TileOutputs, open_model
from tinydet.runtime.coarse import plan_coarse
from tinydet.runtime.detections import Detections
from tinydet.runtime.scan import detect, plan_tiles
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.stitch import EDGE, JITTER, MERGES, SAME_OBJECT, Merge

EXAMPLE = """example:
  tinydet seamtest --image scene.jpg --model model.onnx --merge seam nms nmm

  scans scene.jpg twice and says how many boxes the two scans do not share, near the edges of tiles and elsewhere, for
  each merge; the model runs only once for all of them. --limit 0.01 makes it a test: exit code 1 where boxes near edges
  disagree by more than a hundredth beyond the others.
"""


@dataclass(frozen=True)
class Agreement:
    """What two scans of one area share.

    Attributes:
        boxes: how many both scans have together, of those scored high enough.
        lost: of these, how many have no counterpart.
        duplicates: how many share their counterpart with a better one.
    """

    boxes: int
    lost: int
    duplicates: int

    @property
    def disagreement(self) -> float:
        """Share of the boxes that are lost or duplicates; 0 where there are none."""
        return (self.lost + self.duplicates) / self.boxes if self.boxes else 0.0


@dataclass(frozen=True)
class SeamReport:
    """Boxes that an inner edge of a tile touches or comes near in either scan, and all others."""

    at_seams: Agreement
    elsewhere: Agreement

    @property
    def excess(self) -> float:
        """Disagreement that the seams add to the network's own."""
        return self.at_seams.disagreement - self.elsewhere.disagreement


@dataclass(frozen=True)
class Shifted:
    """The area of the second scan: the scene without `x` columns and `y` rows, so that its tiles lie elsewhere."""

    x: int
    y: int


@command("seamtest")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.limit is not None and not 0 <= args.limit <= 1:
        raise ValueError(f"--limit is a share in [0, 1], got {args.limit}")
    rows, failed = [], False
    with open_scene(args.image) as probe:  # before the model: a wrong path is said at once
        print(f"{probe.name}: {probe.width}x{probe.height}")
    replay = _Replay(open_model(args.model, args.backend, threads=args.threads))
    with open_scene(args.image, stretch=replay.spec.stretch) as scene:
        grid = plan_tiles(scene.width, scene.height, tile=replay.spec.tile, overlap=args.overlap, scale=args.scale).grid
        shifted = shift_of(grid)
        print(
            f"  {replay.name}; {len(grid)} tiles of {grid.tile_width}x{grid.tile_height}, scanned again from "
            f"({shifted.x}, {shifted.y}); scores from {args.score}"
        )
        warning = plan_coarse(replay.spec, grid, overlap=args.overlap, scale=args.scale).warning
        if warning:
            print(f"  {warning[0].upper()}{warning[1:]}")
        print(f"  {'merge':9} {'where':9} {'boxes':>7} {'lost':>6} {'duplicates':>11} {'disagree':>9}")
        for merge in dict.fromkeys(args.merge):
            report = seam_test(
                replay.rewound(),
                scene,
                shifted,
                overlap=args.overlap,
                scale=args.scale,
                score=args.score,
                batch=args.batch,
                merge=merge,
                agnostic=args.agnostic,
            )
            for where, seen in (("at seams", report.at_seams), ("elsewhere", report.elsewhere)):
                print(
                    f"  {merge:9} {where:9} {seen.boxes:7,} {seen.lost:6,} {seen.duplicates:11,} "
                    f"{seen.disagreement:9.2%}"
                )
            rows.append({"merge": merge, "excess": report.excess, **asdict(report)})
            failed |= args.limit is not None and report.excess > args.limit
    if args.output is not None:
        write_json(args.output, {"image": str(args.image), "model": str(args.model or ""), "merges": rows})
        print(f"  {args.output}")
    if failed:
        print(f"  Seams add more than the {args.limit:.2%} that --limit allows", file=sys.stderr)
    return int(failed)


def shift_of(grid: TileGrid) -> Shifted:
    """Half the way to the next tile, in whole cells of the feature pyramid as far as there are some."""
    half = (grid.tile - grid.overlap) // 2
    step = half // COARSEST_CELL * COARSEST_CELL or max(half, 1)
    x, y = (step if length > grid.tile + step else 0 for length in (grid.width, grid.height))
    if not (x or y):
        raise ValueError(
            f"a scene of {grid.width}x{grid.height} has no seams to test: it takes more than "
            f"{grid.tile + step} pixels on one side for tiles of {grid.tile}"
        )
    return Shifted(x, y)


def seam_test(
    backend: Backend,
    scene: Scene,
    shifted: Shifted,
    *,
    overlap: int,
    scale: float = 1.0,
    score: float = 0.3,
    batch: int = 4,
    merge: Merge = "seam",
    agnostic: bool = False,
) -> SeamReport:
    """Scan a scene and its shifted area, and compare the boxes of what both see. Options as for `detect`."""
    part = _Part(scene, shifted)
    scans = []
    for area, origin in ((scene, (0, 0)), (part, (shifted.x, shifted.y))):
        plan = plan_tiles(area.width, area.height, tile=backend.spec.tile, overlap=overlap, scale=scale)
        with tqdm(unit="tile", disable=None, leave=False) as bar:
            found = detect(
                backend,
                area,
                overlap=overlap,
                scale=scale,
                score=score / 2,
                batch=batch,
                merge=merge,
                agnostic=agnostic,
                progress=bar.update,
            ).detections
        offset = np.array(origin * 2, np.float32)
        scans.append((replace(found, boxes=found.boxes + offset), plan.grid, origin))
    margin = overlap / scale  # at the border of the second area the network sees other surroundings, and parts
    inner = np.array([shifted.x and shifted.x + margin, shifted.y and shifted.y + margin])
    near = 2 * EDGE / scale
    chosen = [found[np.flatnonzero((found.boxes[:, :2] >= inner).all(axis=1))] for found, _, _ in scans]
    marked = []
    for found in chosen:
        at_seam = np.zeros(len(found), np.bool_)
        for _, grid, origin in scans:
            at_seam |= _near_an_edge(found.boxes, grid, origin, near)
        marked.append(at_seam)
    return _compare(chosen[0], chosen[1], marked[0], marked[1], score, JITTER / scale, agnostic)


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
    loose = conflicts(corners, 0.0, same=kind, apart=scan)  # very small boxes: no edge further off than the jitter
    close = np.abs(corners[loose[0]] - corners[loose[1]]).max(axis=1, initial=0) < jitter
    first, second = (np.concatenate([a, b[close]]) for a, b in ((first, loose[0]), (second, loose[1])))

    has_counterpart = np.zeros(len(both), np.bool_)
    has_counterpart[first] = has_counterpart[second] = True
    matched = _matched(first, second, both.scores)
    counted = both.scores >= score
    parts = []
    for where in (at_seam, ~at_seam):
        of = counted & where
        lost, doubled = of & ~has_counterpart, of & has_counterpart & ~matched
        parts.append(Agreement(int(of.sum()), int(lost.sum()), int(doubled.sum())))
    return SeamReport(*parts)


def _matched(first: NDArray[np.int64], second: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Boxes that have a counterpart of their own, the best pairs first."""
    order = np.lexsort((second, first, -(scores[first] + scores[second])))
    matched = np.zeros(len(scores), np.bool_)
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if not (matched[i] or matched[j]):
            matched[i] = matched[j] = True
    return matched


def _near_an_edge(
    boxes: NDArray[np.float32], grid: TileGrid, origin: tuple[int, int], near: float
) -> NDArray[np.bool_]:
    """Boxes that an inner edge of a tile crosses, or comes nearer to than `near` pixels."""
    result = np.zeros(len(boxes), np.bool_)
    for axis, (starts, size) in enumerate(((grid.xs, grid.tile_width), (grid.ys, grid.tile_height))):
        begin = np.asarray(starts, np.float64)
        edges = np.sort(np.concatenate([begin[1:], begin[:-1] + size])) + origin[axis]
        low = np.searchsorted(edges, boxes[:, axis] - near, "left")
        result |= np.searchsorted(edges, boxes[:, axis + 2] + near, "right") > low
    return result


class _Part(Scene):
    """A scene without its first columns and rows."""

    def __init__(self, scene: Scene, shifted: Shifted) -> None:
        self._scene, self._shifted = scene, shifted
        self.name = scene.name
        self.width, self.height = scene.width - shifted.x, scene.height - shifted.y

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(x + self._shifted.x, y + self._shifted.y, width, height, size)


class _Replay:
    """A backend that answers the second time as it did the first, without running the model."""

    def __init__(self, backend: Backend) -> None:
        self.spec, self.name, self._backend = backend.spec, backend.name, backend
        self._answers: list[TileOutputs] = []
        self._next = 0

    def rewound(self) -> _Replay:
        self._next = 0
        return self

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        if self._next == len(self._answers):
            self._answers.append(self._backend.run(images))
        self._next += 1
        return self._answers[self._next - 1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet seamtest",
        description="Scan a scene on two shifted grids of tiles and report where the results differ.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="FILE", help="a scene of more than a tile")
    add("--model", type=Path, metavar="FILE", help="exported model (default: the first that can run in this folder)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (default: auto, by the kind of file)")
    add("--merge", nargs="+", choices=MERGES, default=["seam"], metavar="NAME",
        help=f"merges to compare, of {', '.join(MERGES)} (default: seam)")  # fmt: skip
    add("--agnostic", action="store_true", help="boxes of different classes may be one object")
    add("--overlap", type=int, default=128, metavar="PX", help="what tiles share; more than an object (default: 128)")
    add("--score", type=float, default=0.3, metavar="S", help="least score of the boxes compared (default: 0.3)")
    add("--scale", type=float, default=1.0, metavar="F", help="resize the scene first, 0.5 = half (default: 1)")
    add("--batch", type=int, default=4, metavar="N", help="tiles for each run of the model (default: 4)")
    add("--threads", type=int, metavar="N", help="CPU threads of the model (default: all that are usable)")
    add(
        "--limit", type=float, metavar="SHARE", help="exit with 1 where seams add more disagreement (default: no limit)"
    )
    add("--output", type=Path, metavar="FILE", help="the counts as JSON (default: not written)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
