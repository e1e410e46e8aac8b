"""The pinhole camera of a composite, above flat ground.

World coordinates are meters: x and y on the ground, z up. Image coordinates are pixels, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera.

    Attributes:
        center: (3,) position in the world.
        matrix: (3, 3), maps `point - center` to homogeneous image coordinates; the third is the distance along the
            optical axis in meters.
    """

    center: Points
    matrix: Points

    def project(self, points: Points) -> tuple[Points, Points]:
        """Return the image coordinates (N, 2) of world points (N, 3), and their distances along the optical axis."""
        mapped = (points - self.center) @ self.matrix.T
        return mapped[:, :2] / mapped[:, 2:], mapped[:, 2]

    def ground(self, pixels: Points) -> Points:
        """Return the ground points (N, 2) seen at image coordinates (N, 2); NaN at and above the horizon."""
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.matrix).T
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.where(rays[:, 2] < -1e-9, -self.center[2] / rays[:, 2], np.nan)
        return np.asarray(self.center[:2] + rays[:, :2] * distance[:, None])

    def homography(self, height: float = 0.0) -> Points:
        """Return the 3 × 3 matrix that maps (x, y, 1) of the horizontal plane at `height` to the image."""
        shift = self.matrix @ (np.array((0.0, 0.0, height)) - self.center)
        return np.column_stack([self.matrix[:, 0], self.matrix[:, 1], shift])

    def scale(self, x: float, y: float) -> float:
        """Return the pixels per meter, across the view, of something that stands at a ground point."""
        depth = self.matrix[2] @ (np.array((x, y, 0.0)) - self.center)
        focal = np.sqrt(abs(np.linalg.det(self.matrix)))  # the third row has length 1
        return float(focal / max(depth, 1e-6))

    def transformed(self, affine: Points) -> Camera:
        """Return the camera of an image whose coordinates are `affine` (2, 3) applied to those of this one."""
        return Camera(self.center, np.vstack([affine, (0.0, 0.0, 1.0)]) @ self.matrix)


def look(altitude: float, depression: float, azimuth: float, focal: float, middle: tuple[float, float]) -> Camera:
    """Return a camera above the origin.

    Args:
        altitude: above ground, meters.
        depression: of the optical axis below the horizon, degrees; 90 looks straight down.
        azimuth: direction of view on the ground, degrees, counterclockwise from the x axis.
        focal: length in pixels.
        middle: image coordinates (x, y) of the optical axis.
    """
    down, turn = np.radians(depression), np.radians(azimuth)
    ahead = np.array((np.cos(turn), np.sin(turn), 0.0))
    forward = np.cos(down) * ahead - np.sin(down) * np.array((0.0, 0.0, 1.0))
    right = np.array((np.sin(turn), -np.cos(turn), 0.0))
    lower = np.cross(forward, right)  # the image's y axis
    inner = np.array(((focal, 0.0, middle[0]), (0.0, focal, middle[1]), (0.0, 0.0, 1.0)))
    return Camera(np.array((0.0, 0.0, altitude)), inner @ np.stack([right, lower, forward]))
