"""A cheap filter for tiles that need no network, because they contain nothing as small and sharp as an object.

The filter computes the strongest contrast, anywhere in the tile, between a spot of an object's size and its
surroundings, and skips tiles below a threshold. The threshold is measured on annotated images (see
`contrast_calibration`): the tiles that remain would contain 99.5 % of all objects, even if every object were fainter
by 30 %. Objects in a skipped tile are lost, so the filter is off by default and refuses to run at another tile size or
scale than it was calibrated for.

In a video, tiles in which nothing moved are skipped too (see `static_tiles`). The change that an appearing object
causes is measured on the same images: each object is replaced by inpainted background, and the two are compared.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from tinydet._internal.arguments import SCALES
from tinydet._internal.atomic import write_json
from tinydet._internal.input_files import read_file
from tinydet._internal.json_files import checked, parse_json
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.bundled import FOLDER
from tinydet.runtime.read_ahead import Outcome
from tinydet.runtime.scenes.pixels import Image
from tinydet.spec import LARGEST

FORMAT = 2  # of the JSON file


@dataclass(frozen=True)
class ContrastFilter:
    """A calibrated threshold on the contrast of a tile. Call it with a tile to learn whether the network must run.

    Attributes:
        threshold: tiles with a lower contrast are skipped; 0 to 255.
        size: side of the objects to look for, in pixels of the model's input.
        tile, scale: tile size and resize factor of the calibration.
        recall: share of the calibration objects whose tile is not skipped.
        recall_bound: lower bound of the recall on similar images, with 95 % confidence.
        objects, tiles: number of each in the calibration set.
        saving: share of the calibration tiles that are skipped.
        motion: tiles of a video that changed by less are not run again; 0 to 255.
        motion_recall: share of the calibration objects that change their tile by at least `motion` when they appear.
        bands: 1-based band indices of the calibration images; None for their RGB bands.
    """

    threshold: int
    size: float
    tile: int
    scale: float
    recall: float
    recall_bound: float
    objects: int
    tiles: int
    saving: float
    motion: int = 1
    motion_recall: float = 1.0
    bands: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges of the fields.

        Raises:
            ValueError: names the field, the rule and the value.
        """
        for name, value, low, high in (
            ("threshold", self.threshold, 0, 256),
            ("motion", self.motion, 0, 256),
            ("size", self.size, 0, LARGEST),
            ("tile", self.tile, 1, LARGEST),
            ("scale", self.scale, *SCALES),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low:g} to {high:g}, not {value}")

    def __call__(self, image: Image) -> Outcome:
        """Decide whether the network must run on a tile (H, W, 3)."""
        return "read" if contrast(image, self.size) >= self.threshold else "filtered"

    def save(self, path: Path) -> None:
        """Write the filter as JSON."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> ContrastFilter:
        """Read a filter that `save` wrote.

        Raises:
            FileNotFoundError: the filter was not calibrated yet.
            ValueError: the file was not written by `save`.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; --skip-empty must be calibrated on annotated images first: "
                f"{tinydet_command('infer')} --calibrate-skip --annotations val.json --images DIR"
            )
        remedy = "run --calibrate-skip again"
        values = parse_json(read_file(path), source=path, remedy=remedy)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path}: not written by --calibrate-skip of this version; {remedy}")
        return checked(cls, values, source=path, what="filter", remedy=remedy)

    def check(self, tile: int, scale: float, bands: tuple[int, ...] | None = None) -> None:
        """Raise ValueError if the filter was calibrated for another tile size, scale or choice of bands."""
        if tile != self.tile or not math.isclose(scale, self.scale, rel_tol=0.02):
            raise ValueError(
                f"--skip-empty was calibrated for tiles of {self.tile} at scale {self.scale:g}, not for {tile} at "
                f"{scale:g}; calibrate it again: "
                f"{tinydet_command('infer')} --calibrate-skip --scale {scale:g} ..."
            )
        if bands != self.bands:
            raise ValueError(
                f"--skip-empty was calibrated with {_flag(self.bands)}, not with {_flag(bands)}; calibrate it again "
                f"with the same bands: {tinydet_command('infer')} --calibrate-skip ..."
            )


def contrast(image: Image, size: float) -> int:
    """Return the strongest difference between a spot and its surroundings, 0 to 255. Takes a few 100 µs per tile.

    Args:
        image: (H, W, 3) RGB.
        size: side of the objects to look for, in pixels.
    """
    half = _half_size_gray(image)
    outer = max(3, round(1.5 * size))
    return int(cv2.absdiff(_spots(half, size), cv2.blur(half, (outer, outer))).max())


def spots(image: Image, size: float) -> Image:
    """Return the mean gray value over spots of half an object's side, at every second pixel: (H / 2, W / 2)."""
    return _spots(_half_size_gray(image), size)


def contrast_filter_path(model: Path) -> Path:
    """Return where a model's filter is stored: model.skip.json next to model.onnx.

    The filter of a bundled model is stored in the current folder.
    """
    if model.parent == FOLDER:
        return Path(f"{model.stem}.skip.json")
    return model.with_name(f"{model.stem}.skip.json")


def _flag(bands: tuple[int, ...] | None) -> str:
    return "no --bands" if bands is None else f"--bands {','.join(map(str, bands))}"


def _half_size_gray(image: Image) -> Image:
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    return np.asarray(cv2.resize(gray, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA))


def _spots(half: Image, size: float) -> Image:
    inner = max(1, round(size / 4))
    return np.asarray(cv2.blur(half, (inner, inner)))
