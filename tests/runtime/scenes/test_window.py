from __future__ import annotations

import numpy as np
import pytest

from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.scene import ArrayScene
from tinydet.runtime.scenes.window import Corner, Window, part_of

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_a_window_has_the_pixels_of_its_rectangle() -> None:
    scene = open_scene(PIXELS)
    window = Window(scene, (10, 5, 50, 35))
    assert (window.width, window.height) == (40, 30)
    assert np.array_equal(window.read(0, 0, 40, 30), PIXELS[5:35, 10:50])
    assert np.array_equal(window.read(3, 4, 8, 6, (4, 3)), scene.read(13, 9, 8, 6, (4, 3)))
    with pytest.raises(ValueError, match="no window 2x2 at \\(39, 0\\) in 40x30 pixels"):
        window.read(39, 0, 2, 2)  # the scene has these pixels, the window does not


@pytest.mark.parametrize("corner", [(0, 0, 61, 40), (-1, 0, 10, 10), (10, 10, 10, 20), (20, 0, 10, 10)])
def test_a_window_that_is_empty_or_leaves_the_scene_is_refused(corner: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="array has 60x40 pixels, and no window at"):
        Window(open_scene(PIXELS), corner)


def test_a_window_has_the_resolution_and_the_empty_parts_of_its_scene() -> None:
    alpha = np.ones((40, 60), np.uint8)
    alpha[5:10, 10:20] = 0
    scene = ArrayScene("a", PIXELS, alpha=alpha)
    scene.gsd = 0.3
    window = Window(scene, (10, 5, 50, 35))
    assert window.gsd == 0.3
    assert window.is_empty(0, 0, 10, 5) and not window.is_empty(0, 0, 11, 5)
    second = window.reopen()
    assert second is not None and np.array_equal(second.read(0, 0, 40, 30), window.read(0, 0, 40, 30))


class Open(ArrayScene):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_only_an_owner_closes_its_scene() -> None:
    scene = Open("a", PIXELS)
    Window(scene, (0, 0, 9, 9)).close()
    assert scene.closed == 0
    with part_of(scene, (9, 8), (1, 2, 10, 10)) as part:
        assert np.array_equal(part.read(0, 0, 9, 8), PIXELS[2:10, 1:10])
    assert scene.closed == 1


@pytest.mark.parametrize(
    ("size", "corner", "problem"),
    [
        ((60, 40), None, ""),
        ((60, 40), (100, 100, 160, 140), ""),  # cut out already
        ((20, 10), (40, 30, 60, 40), ""),
        ((20, 10), (41, 30, 61, 40), r"has the corner \[41, 30, 61, 40\]"),
        ((61, 40), None, "is 61x40$"),
        ((40, 60), None, "is 40x60 .it looks rotated: check its EXIF orientation"),
    ],
)
def test_a_file_has_the_recorded_size_or_contains_the_corner(
    size: tuple[int, int], corner: Corner | None, problem: str
) -> None:
    scene = open_scene(PIXELS)
    if problem:
        with pytest.raises(ValueError, match=f"array is 60x40 pixels, but its annotated image {problem}"):
            part_of(scene, size, corner)
    else:
        part = part_of(scene, size, corner)
        assert (part.width, part.height) == size
