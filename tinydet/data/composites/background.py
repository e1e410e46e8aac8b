"""What a composite stands on: an image of the ground, its camera, and where things may stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.camera import Camera
from tinydet.data.composites.mesh import Mesh
from tinydet.data.scenery.colors import Image

# Values of `Background.surface`: what the ground is made of. Nothing stands on BLOCKED.
BLOCKED, ROAD, PAVEMENT, LOT, GRASS, EARTH, CROSSING = range(7)
PAVED = (ROAD, PAVEMENT, LOT, CROSSING)


class Place(NamedTuple):
    """A place for a vehicle on the ground, in meters."""

    x: float
    y: float
    heading: float
    parked: bool


class Building(NamedTuple):
    """A building: footprint (x1, y1, x2, y2) in meters, and its mesh in drawing order."""

    footprint: tuple[float, float, float, float]
    mesh: Mesh
    hull: Mesh  # casts the shadow


class Real(NamedTuple):
    """An annotated object of a photo, xyxy in pixels of the background."""

    category: str
    box: tuple[float, float, float, float]
    ignore: bool


@dataclass(frozen=True, eq=False)
class Background:
    """The ground of a composite.

    Attributes:
        color: (H, W, 3) RGB, 0 to 255, in full light.
        surface: (H, W) uint8, `ROAD` and so on.
        gain: brightness of the scene; a white object in the open is 250 × gain.
        places: where vehicles drive or park; empty: anywhere on the surface.
        real: annotated objects and ignore regions of a photo.
        sun: (3,) unit vector towards the sun; None: unknown.
        overcast: whether there are no shadows; None: unknown.
        pasted: classes that may be rendered into it.
        drawn: whether `color` is drawn; trees and furniture are then denser.
        source, photo: name of the set and of the photo.
    """

    color: Image
    surface: NDArray[np.uint8]
    camera: Camera
    gain: float
    source: str
    photo: str = ""
    places: list[Place] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    real: list[Real] = field(default_factory=list)
    sun: NDArray[np.float64] | None = None
    overcast: bool | None = None
    pasted: tuple[str, ...] = ("person", "vehicle")
    drawn: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.color.shape[1], self.color.shape[0]
