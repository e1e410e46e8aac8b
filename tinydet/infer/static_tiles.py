"""Tiles of a video in which nothing moved: what they showed when they were last run is taken over.

A tile is compared with itself as it was when it was last run, so that slow changes add up until they count. What is
compared are means over spots of half an object's side, where the noise of single pixels and of compression mostly
cancels out. How much of a change an object makes is measured by `calibrating`. In a picture that moves as a whole
everything is run.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from tinydet.infer.contrast_filter import ContrastFilter, spots
from tinydet.runtime.journal import TileBoxes
from tinydet.runtime.scan import plan_passes, seen_size
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image
from tinydet.spec import ModelSpec

Key = tuple[int, int]  # pass and tile


class Stills:
    """A `TileStore` for the frames of one video. `look` at each frame before it is scanned.

    Attributes:
        tiles, plain, still: tiles of all frames so far; those that show nothing; those that showed no motion.
    """

    def __init__(self, gate: ContrastFilter) -> None:
        self.tiles = self.plain = self.still = 0
        self._gate = gate
        self._reference: dict[Key, Image] = {}
        self._boxes: dict[Key, TileBoxes] = {}
        self._seen: dict[Key, Image] = {}
        self._unmoved: list[Key] = []
        self._shape: tuple[int, int, float] | None = None

    def look(self, scene: Scene, spec: ModelSpec, *, overlap: int, scale: float) -> None:
        """Find the tiles of a frame in which nothing moved since they were last run.

        Args:
            overlap, scale: with which it is going to be scanned.
        """
        self._seen, self._unmoved = {}, []
        shape = scene.width, scene.height, scale
        if shape != self._shape:  # a phone was turned, or a stream came back in another size: tiles lie elsewhere
            self._reference, self._boxes, self._shape = {}, {}, shape
        for number, (plan, _) in enumerate(plan_passes(scene, spec, overlap=overlap, scale=scale)):
            size = seen_size(plan)
            for tile in plan.grid.tiles:
                key = number, tile.index
                self.tiles += 1
                seen = spots(scene.read(tile.x, tile.y, tile.width, tile.height, size), self._gate.size)
                before = self._reference.get(key)
                if before is not None and change(before, seen) < self._gate.motion:
                    self._unmoved.append(key)
                    self.still += not self._boxes[key].plain.size
                    self.plain += self._boxes[key].plain.size
                else:
                    self._seen[key] = seen

    def records(self, number: int = 0) -> Iterator[TileBoxes]:
        """What tiles without motion showed when they were last run."""
        return iter([self._boxes[key] for key in self._unmoved if key[0] == number])

    def append(self, found: TileBoxes) -> None:
        """Keep what tiles showed that were run."""
        self.plain += len(found.plain)
        for tile in found.tiles.tolist():
            of = found.sources == tile
            self._keep(
                found.number,
                tile,
                TileBoxes(
                    np.array([tile]),
                    sources=found.sources[of],
                    boxes=found.boxes[of],
                    scores=found.scores[of],
                    labels=found.labels[of],
                    number=found.number,
                ),
            )
        for tile in found.plain.tolist():
            self._keep(found.number, tile, TileBoxes(plain=np.array([tile]), number=found.number))
        for tile in found.empty.tolist():
            self._keep(found.number, tile, TileBoxes(empty=np.array([tile]), number=found.number))

    def _keep(self, number: int, tile: int, found: TileBoxes) -> None:
        self._boxes[number, tile] = found
        self._reference[number, tile] = self._seen[number, tile]


def change(before: Image, after: Image) -> int:
    """The largest difference of two pictures of spots, 0 to 255."""
    return int(cv2.absdiff(before, after).max())
