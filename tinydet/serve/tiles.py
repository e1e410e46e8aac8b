"""JPEG tiles of a scene for a zoomable page, at the levels of Deep Zoom (DZI).

Level `max_level` has the pixels of the scene, and each level below has half the width and height, down to one pixel at
level 0. A tile is `TILE` pixels of its level, or what the scene has left there.
"""

from __future__ import annotations

import math
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from tinydet.runtime.scenes import Image, Scene

TILE = 512  # pixels
QUALITY = 88  # of the JPEG tiles
HANDLES = 4  # of one scene, so tiles that are read at once
CACHE = 1 << 26  # bytes of encoded tiles that are kept in memory, per scene
SMALL = 1 << 25  # pixels; a scene up to this size needs no overview
FIRST_COARSE = 3  # levels below the full one that are read directly without overviews; a tile is then 2048 pixels wide
MAX_CROP = 4096  # pixels; longest side of a crop


class Levels:
    """Sizes of the levels and tiles of a scene of `width` x `height` pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.max_level = max(width - 1, height - 1).bit_length()

    def shrink(self, level: int) -> int:
        """Return the number of scene pixels per pixel of a level."""
        return 1 << (self.max_level - level)

    def size(self, level: int) -> tuple[int, int]:
        """Return the width and height of a level."""
        shrink = self.shrink(level)
        return -(-self.width // shrink), -(-self.height // shrink)

    def shape(self, level: int) -> tuple[int, int]:
        """Return the number of columns and rows of tiles of a level."""
        width, height = self.size(level)
        return -(-width // TILE), -(-height // TILE)

    def window(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Return x, y, width and height of a tile in scene pixels.

        Raises:
            LookupError: there is no such tile.
        """
        if 0 <= level <= self.max_level:
            columns, rows = self.shape(level)
            if 0 <= column < columns and 0 <= row < rows:
                side = TILE * self.shrink(level)
                x, y = column * side, row * side
                return x, y, min(side, self.width - x), min(side, self.height - y)
        raise LookupError(f"there is no tile ({column}, {row}) at level {level}")

    def count(self, top: int) -> int:
        """Return the number of tiles of the levels from 0 to `top`."""
        return sum(math.prod(self.shape(level)) for level in range(top + 1))


class TilePendingError(Exception):
    """The tile is not there yet: the overview of the scene is being read."""


class SceneTiles:
    """Tiles and crops of one scene, for several threads.

    A file without overviews is read once, in a thread of its own, for the tiles of its coarse levels, which are kept in
    a temporary folder. So no tile reads the whole file. A file that can only be decoded from its start, such as a large
    JPEG, is read once for the tiles of all levels.

    Attributes:
        name: of the scene.
        levels: its sizes.
    """

    def __init__(self, open_scene: Callable[[], Scene]) -> None:
        """
        Args:
            open_scene: opens the scene; called once.

        Raises:
            ValueError, OSError, ModuleNotFoundError: as `open_scene`.
        """
        scene = open_scene()
        self.name, self.levels = scene.name, Levels(scene.width, scene.height)
        self._handles: queue.LifoQueue[Scene] = queue.LifoQueue()
        self._handles.put(scene)
        self._more = HANDLES - 1
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._cached = 0
        self._stop = threading.Event()
        self._builder: threading.Thread | None = None
        self._failure: Exception | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written: set[tuple[int, int, int]] = set()
        top = self.levels.max_level
        if scene.in_order and not scene.has_overviews:
            self._coarse = top
        elif scene.has_overviews or scene.width * scene.height <= SMALL:
            self._coarse = -1
        else:
            self._coarse = top - FIRST_COARSE
        self._total = self.levels.count(self._coarse)

    @property
    def progress(self) -> float | None:
        """The share of the overview that is ready, from 0 to 1; None if the scene needs none."""
        return len(self._written) / self._total if self._total else None

    def prepare(self) -> None:
        """Start to read the overview of a scene that needs one. Returns at once; called again, it does nothing."""
        with self._lock:
            if self._total and self._builder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="tinydet-view-", ignore_cleanup_errors=True)
                self._builder = threading.Thread(target=self._build, name="overview", daemon=True)
                self._builder.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the overview; return whether it is ready.

        Raises:
            ValueError, OSError: the scene cannot be read.
        """
        self.prepare()
        if self._builder is not None:
            self._builder.join(seconds)
        if self._failure is not None:
            raise self._failure
        return self._builder is None or not self._builder.is_alive()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG.

        Raises:
            LookupError: there is no such tile.
            TilePendingError: it is not there yet; ask again after a second.
            ValueError, OSError: the scene is damaged there.
        """
        key = level, column, row
        x, y, width, height = self.levels.window(*key)
        with self._lock:
            if (data := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return data
        if level <= self._coarse:
            return self._coarse_tile(key)
        shrink = self.levels.shrink(level)
        with self._handle() as scene:
            pixels = scene.preview(x, y, width, height, (-(-width // shrink), -(-height // shrink)))
        return self._keep(key, encode(pixels))

    def crop(self, corners: tuple[int, int, int, int], side: int | None = None) -> Image:
        """Return the pixels of a part of the scene.

        Args:
            corners: x1, y1, x2, y2 inside the scene.
            side: longest side of the result, which is enlarged or reduced to it; None: as in the scene, at most
                `MAX_CROP`.

        Raises:
            ValueError, OSError: the scene is damaged there.
        """
        x1, y1, x2, y2 = corners
        width, height = x2 - x1, y2 - y1
        ratio = min(side or max(width, height), MAX_CROP) / max(width, height)
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        with self._handle() as scene:
            if ratio <= 1:
                return scene.preview(x1, y1, width, height, size)
            pixels = scene.read(x1, y1, width, height)
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST), np.uint8)

    def close(self) -> None:
        """Stop reading, close the file and remove the temporary folder."""
        self._stop.set()
        if self._builder is not None:
            self._builder.join()
        for _ in range(HANDLES):
            try:
                self._handles.get_nowait().close()
            except queue.Empty:
                break
        if self._folder is not None:
            self._folder.cleanup()

    def _coarse_tile(self, key: tuple[int, int, int]) -> bytes:
        self.prepare()
        if self._failure is not None:
            raise self._failure
        if key not in self._written:
            raise TilePendingError
        return self._keep(key, self._path(key).read_bytes())

    def _build(self) -> None:
        try:
            with self._handle() as scene:
                for key, data in pyramid(scene, self._coarse):
                    if self._stop.is_set():
                        return
                    self._path(key).write_bytes(data)
                    self._written.add(key)
        except Exception as error:  # for the threads that ask for tiles
            self._failure = error

    def _path(self, key: tuple[int, int, int]) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "{}-{}-{}.jpg".format(*key)

    def _keep(self, key: tuple[int, int, int], data: bytes) -> bytes:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = data
                self._cached += len(data)
            while self._cached > CACHE:
                self._cached -= len(self._cache.popitem(last=False)[1])
        return data

    @contextmanager
    def _handle(self) -> Iterator[Scene]:
        """Lend a handle on the scene: GDAL's are for one thread at a time."""
        scene: Scene | None = None
        try:
            scene = self._handles.get_nowait()
        except queue.Empty:
            with self._lock:
                is_free = self._more > 0
                self._more -= is_free
            if is_free:
                first = self._handles.get()
                scene = first.reopen()
                self._handles.put(first)
        if scene is None:
            scene = self._handles.get()
        try:
            yield scene
        finally:
            self._handles.put(scene)


def encode(pixels: Image) -> bytes:
    """Return RGB pixels as JPEG."""
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()


def pyramid(scene: Scene, top: int) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Yield the tiles of the levels from `top` down to 0 as (level, column, row) and JPEG.

    The scene is read once from top to bottom. In memory are two rows of tiles of each level.

    Raises:
        ValueError, OSError: the scene is damaged.
    """
    levels = Levels(scene.width, scene.height)
    halves: list[list[Image]] = [[] for _ in range(top)]  # of each level, the parts of its next row of tiles

    def add(level: int, row: int, strip: Image, is_last: bool) -> Iterator[tuple[tuple[int, int, int], bytes]]:
        for column in range(levels.shape(level)[0]):
            yield (level, column, row), encode(strip[:, column * TILE : (column + 1) * TILE])
        if level:
            upper = halves[level - 1]
            upper.append(_halved(strip))
            if len(upper) == 2 or is_last:
                joined = np.concatenate(upper)
                upper.clear()
                yield from add(level - 1, row // 2, joined, is_last)

    rows = levels.shape(top)[1] if top >= 0 else 0
    for row in range(rows):
        _, y, _, height = levels.window(top, 0, row)
        size = levels.size(top)[0], -(-height // levels.shrink(top))
        yield from add(top, row, scene.preview(0, y, scene.width, height, size), row == rows - 1)


def _halved(strip: Image) -> Image:
    """Halve both sides by averaging; the last row and column of an odd number count twice."""
    height, width = strip.shape[:2]
    even = np.pad(strip, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    size = (width + 1) // 2, (height + 1) // 2
    return np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)
