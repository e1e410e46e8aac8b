"""Colours: red, green and blue from 0 to 255, which stay real numbers until the camera rounds them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Colour = tuple[float, float, float]
CLOTH = (
    (238, 238, 236), (214, 214, 212), (128, 130, 134), (54, 56, 62), (30, 30, 34), (36, 52, 92), (58, 96, 156),
    (110, 150, 190), (176, 44, 44), (204, 92, 88), (216, 128, 54), (226, 196, 86), (62, 110, 74), (126, 140, 98),
    (196, 132, 156), (122, 74, 118), (188, 170, 140), (120, 92, 68),
)  # fmt: skip


def dim(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
