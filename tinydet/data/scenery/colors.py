"""RGB colors as floats from 0 to 255; the camera rounds them to integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Color = tuple[float, float, float]
CLOTH = (  # clothes, towels and painted objects
    (238, 238, 236), (214, 214, 212), (128, 130, 134), (54, 56, 62), (30, 30, 34), (36, 52, 92), (58, 96, 156),
    (110, 150, 190), (176, 44, 44), (204, 92, 88), (216, 128, 54), (226, 196, 86), (62, 110, 74), (126, 140, 98),
    (196, 132, 156), (122, 74, 118), (188, 170, 140), (120, 92, 68),
)  # fmt: skip


def dim(color: Color, factor: float) -> Color:
    """Return `color` with all channels multiplied by `factor`; a factor above 1 brightens it."""
    return color[0] * factor, color[1] * factor, color[2] * factor
