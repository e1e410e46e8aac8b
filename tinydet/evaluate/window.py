"""A part of a scene as a scene of its own: a sub-image without a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.data.sub_images import Corner
from tinydet.runtime.scenes import Scene


class Window(Scene):
    """The pixels from (x1, y1) to (x2, y2) of `scene`, which stays open and whose owner closes it.

    Raises:
        ValueError: a window that is empty or leaves the scene.
    """

    def __init__(self, scene: Scene, corner: Corner) -> None:
        x1, y1, x2, y2 = corner
        if not (0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height):
            raise ValueError(f"{scene.name} has {scene.width}x{scene.height} pixels, and no sub-image at {corner}")
        self.name = f"{scene.name} {corner}"
        self.width, self.height = x2 - x1, y2 - y1
        self._scene, self._x, self._y = scene, x1, y1

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self._scene.read(self._x + x, self._y + y, width, height, size)
