"""Tiles that need no network: a cheap look tells those that show nothing as sharp and as small as an object.

The look is the strongest contrast between a spot of an object's size and its surroundings, anywhere in the tile. How
much contrast an object has at least is measured on annotated images: at the threshold that `calibrating` chooses, the
tiles that are run would hold the asked share of all objects, 99.5 %, even if all were fainter by 30 %. What a tile
shows when it is passed over is nowhere looked at again, so the gate is off unless it is asked for, and only at the tile
and scale it was measured for.

In a video a tile is also worth no run if nothing moved in it, see `still`. How much the picture changes where an object
comes is measured on the same images: each object is painted over with its surroundings, and the difference is taken.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from tinydet._internal.atomic import write_json
from tinydet.runtime.bundled import FOLDER
from tinydet.runtime.scenes.pixels import Image

FORMAT = 2


@dataclass(frozen=True)
class Gate:
    """Which tiles are worth running, and how that was measured.

    Attributes:
        threshold: tiles whose contrast is below it are passed over, 0 to 255.
        size: side of the objects that are looked for, in pixels of the model.
        tile, scale: what it was measured for.
        recall: share of the objects whose tile is run, on the calibration set.
        recall_bound: what the recall is at least, with 95 % confidence, if other images are like these.
        objects, tiles: of the calibration set.
        saving: share of its tiles that are passed over.
        motion: tiles of a video that changed less, 0 to 255, are not run again.
        motion_recall: share of the objects that change their tile by as much where they come.
        bands: that were looked at; None for those that the images call red, green and blue.
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

    def __call__(self, picture: Image) -> bool:
        """Whether a tile (H, W, 3) is worth running."""
        return contrast(picture, self.size) >= self.threshold

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Gate:
        """
        Raises:
            FileNotFoundError: it was not measured yet.
            ValueError: the file is none that `save` wrote.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: which tiles may be passed over is measured on annotated images first: "
                "tinydet infer --calibrate-skip --annotations val.json --images DIR"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            if values.get("bands") is not None:
                values["bands"] = tuple(values["bands"])
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not written by --calibrate-skip ({error}); run that again") from error

    def check(self, tile: int, scale: float, bands: tuple[int, ...] | None = None) -> None:
        """Refuse to be used for another tile, scale or choice of bands than it was measured for."""
        if tile != self.tile or not math.isclose(scale, self.scale, rel_tol=0.02):
            raise ValueError(
                f"which tiles may be skipped was measured for tiles of {self.tile} at scale {self.scale:g}, not for "
                f"{tile} at {scale:g}; measure it again: tinydet infer --calibrate-skip --scale {scale:g} ..."
            )
        if bands != self.bands:
            raise ValueError(
                f"which tiles may be skipped was measured with {_flag(self.bands)}, not with {_flag(bands)}; measure "
                "it again with the same: tinydet infer --calibrate-skip ..."
            )


def contrast(picture: Image, size: float) -> int:
    """The strongest difference between a spot of `size` pixels and its surroundings, 0 to 255; a few 100 µs a tile."""
    half = _half(picture)
    outer = max(3, round(1.5 * size))
    return int(cv2.absdiff(_spots(half, size), cv2.blur(half, (outer, outer))).max())


def spots(picture: Image, size: float) -> Image:
    """The means of spots of half an object's side, around each second pixel: (H / 2, W / 2)."""
    return _spots(_half(picture), size)


def gate_path(model: Path) -> Path:
    """Where the gate of a model lies: model.onnx and model.skip.json; of a bundled model in the current folder."""
    if model.parent == FOLDER:
        return Path(f"{model.stem}.skip.json")
    return model.with_name(f"{model.stem}.skip.json")


def _flag(bands: tuple[int, ...] | None) -> str:
    return "no --bands" if bands is None else f"--bands {','.join(map(str, bands))}"


def _half(picture: Image) -> Image:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    return np.asarray(cv2.resize(grey, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA))


def _spots(half: Image, size: float) -> Image:
    inner = max(1, round(size / 4))
    return np.asarray(cv2.blur(half, (inner, inner)))
