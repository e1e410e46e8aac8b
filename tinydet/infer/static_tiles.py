"""Skip tiles of a video in which nothing moved, and reuse the boxes of their last run.

A tile is compared with its pixels at the time of its last run, so slow changes add up until the tile is run again. The
comparison uses mean values over spots of half an object's side, in which pixel noise and compression artifacts mostly
cancel out. The threshold is calibrated on the change that an appearing object causes. If the whole image moves, all
tiles are run.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from tinydet.infer.contrast_filter import ContrastFilter, spots
from tinydet.runtime.journal import BatchRecord
from tinydet.runtime.plan import ScanPlan
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

Key = tuple[int, int]  # index of the pass, index of the tile


class StaticTiles:
    """A `RecordStore` for the frames of one video. Call `start_frame` before each frame is scanned.

    Attributes:
        tiles: number of tiles of all frames so far.
        filtered: number of these that the contrast filter rejected.
        static: number of these in which nothing moved.
    """

    def __init__(self, contrast_filter: ContrastFilter) -> None:
        self.tiles = self.filtered = self.static = 0
        self._filter = contrast_filter
        self._records: dict[Key, BatchRecord] = {}  # of the last run of each tile
        self._references: dict[Key, Image] = {}  # spots of each tile at its last run
        self._changed: dict[Key, Image] = {}  # spots of the tiles to run in this frame
        self._unchanged: list[Key] = []
        self._layout: tuple[int, int, float] | None = None

    def start_frame(self, scene: Scene, plan: ScanPlan) -> None:
        """Find the tiles of a frame in which nothing moved since their last run.

        Args:
            plan: with which the frame will be scanned.
        """
        self._changed, self._unchanged = {}, []
        layout = scene.width, scene.height, plan.options.scale
        if layout != self._layout:  # a phone was rotated, or a stream changed its resolution: tiles have moved
            self._references, self._records, self._layout = {}, {}, layout
        for pass_index, tiling in enumerate(plan.passes):
            for tile in tiling.grid.tiles:
                key = pass_index, tile.index
                self.tiles += 1
                pixels = scene.read(tile.x, tile.y, tile.width, tile.height, tiling.content_size)
                current = spots(pixels, self._filter.size)
                reference = self._references.get(key)
                if reference is not None and change(reference, current) < self._filter.motion:
                    self._unchanged.append(key)
                    self.static += not self._records[key].filtered.size
                    self.filtered += self._records[key].filtered.size
                else:
                    self._changed[key] = current

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        """Yield the last records of the tiles in which nothing moved."""
        return iter([self._records[key] for key in self._unchanged if key[0] == pass_index])

    def append(self, record: BatchRecord) -> None:
        """Store the record of tiles that were run."""
        self.filtered += len(record.filtered)
        for tile in record.tiles.tolist():
            found = record.detections[record.detections.tiles == tile]
            self._store(tile, BatchRecord(np.array([tile]), detections=found, pass_index=record.pass_index))
        for tile in record.filtered.tolist():
            self._store(tile, BatchRecord(filtered=np.array([tile]), pass_index=record.pass_index))
        for tile in record.empty.tolist():
            self._store(tile, BatchRecord(empty=np.array([tile]), pass_index=record.pass_index))

    def _store(self, tile: int, record: BatchRecord) -> None:
        key = record.pass_index, tile
        self._records[key] = record
        self._references[key] = self._changed[key]


def change(before: Image, after: Image) -> int:
    """Return the largest difference between two images of spots, 0 to 255."""
    return int(cv2.absdiff(before, after).max())
