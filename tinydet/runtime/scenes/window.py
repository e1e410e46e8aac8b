"""A rectangular part of a scene as a scene of its own."""

from __future__ import annotations

from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.scenes.scene import Scene


class Window(Scene):
    """The pixels of `scene` from (x1, y1) to (x2, y2). Closing the window leaves the scene open.

    Raises:
        ValueError: the window is empty or leaves the scene.
    """

    def __init__(self, scene: Scene, corner: tuple[int, int, int, int]) -> None:
        x1, y1, x2, y2 = corner
        if not (0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height):
            raise ValueError(f"{scene.name} has {scene.width}x{scene.height} pixels, and no window at {corner}")
        self.name = f"{scene.name} {corner}"
        self.width, self.height = x2 - x1, y2 - y1
        self._scene, self._x, self._y = scene, x1, y1

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(self._x + x, self._y + y, width, height, size)
