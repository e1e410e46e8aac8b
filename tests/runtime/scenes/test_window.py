from __future__ import annotations

import numpy as np
import pytest

from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.window import Window

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
