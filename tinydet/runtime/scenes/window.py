"""A rectangular part of a scene as a scene of its own."""

from __future__ import annotations

from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.scenes.scene import Scene

Corner = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


class Window(Scene):
    """The pixels of `scene` from (x1, y1) to (x2, y2).

    Args:
        owner: closing the window also closes the scene.

    Raises:
        ValueError: the window is empty or leaves the scene.
    """

    def __init__(self, scene: Scene, corner: Corner, *, owner: bool = False) -> None:
        x1, y1, x2, y2 = corner
        if not (0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height):
            raise ValueError(f"{scene.name} has {scene.width}x{scene.height} pixels, and no window at {corner}")
        self.name = f"{scene.name} {corner}"
        self.width, self.height = x2 - x1, y2 - y1
        self.gsd, self.in_order = scene.gsd, scene.in_order
        self._scene, self._corner, self._x, self._y, self._owner = scene, corner, x1, y1, owner

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        return self._scene.is_empty(self._x + x, self._y + y, width, height)

    def reopen(self) -> Scene | None:
        scene = self._scene.reopen()
        return None if scene is None else Window(scene, self._corner, owner=True)

    def close(self) -> None:
        if self._owner:
            self._scene.close()

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(self._x + x, self._y + y, width, height, size)


def part_of(scene: Scene, size: tuple[int, int], corner: Corner | None) -> Scene:
    """Return the image that an annotation file records: `scene`, or a part of it that owns `scene`.

    Args:
        size: recorded width and height.
        corner: of a sub-image, whose file is the uncut image or has the sub-image's own size.

    Raises:
        ValueError: the sizes contradict each other.
    """
    if (problem := size_mismatch(size, corner, scene.width, scene.height)) is not None:
        raise ValueError(f"{scene.name} is {scene.width}x{scene.height} pixels, but its annotated image {problem}")
    if corner is None or size == (scene.width, scene.height):
        return scene
    return Window(scene, corner, owner=True)


def size_mismatch(size: tuple[int, int], corner: Corner | None, width: int, height: int) -> str | None:
    """Describe how a recorded size contradicts a file of `width` x `height` pixels; None if the sizes agree."""
    if size == (width, height):
        return None
    if corner is not None:
        x1, y1, x2, y2 = corner
        return None if x2 <= width and y2 <= height else f"has the corner {[x1, y1, x2, y2]}"
    rotated = " (it looks rotated: check its EXIF orientation)" if size == (height, width) else ""
    return f"is {size[0]}x{size[1]}{rotated}"
