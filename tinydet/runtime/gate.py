"""Tiles that need no network: a cheap look tells those that show nothing as sharp and as small as an object.

The look is the strongest contrast between a spot of an object's size and its surroundings, anywhere in the tile. How
much contrast an object has at least is measured on annotated images: at the threshold that `calibrate` chooses, the
tiles that are run hold the asked share of all objects, 99.5 %. What a tile shows when it is passed over is nowhere
looked at again, so the gate is off unless it is asked for, and only at the tile and scale it was measured for.

In a video a tile is also worth no run if nothing moved in it, see `still`. How much the picture changes where an object
comes is measured on the same images: each object is painted over with its surroundings, and the difference is taken.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._atomic import write_json
from tinydet.runtime.pipeline import OVERLAP, plan_tiles, seen_size
from tinydet.runtime.pixels import Image
from tinydet.runtime.scene import Scene, open_scene
from tinydet.runtime.sources import coco_sources
from tinydet.spec import ModelSpec

RECALL = 0.995  # of objects, on the calibration set
CONFIDENCE = 0.95
DEFAULT_SIZE = 12.0  # pixels, where a model does not say how large its objects are
MOVED = 2  # an object that moved by a part of its side changes less than one that came
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
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not written by --calibrate-skip ({error}); run that again") from error

    def check(self, tile: int, scale: float) -> None:
        """Refuse to be used for another tile or scale than it was measured for."""
        if tile != self.tile or not math.isclose(scale, self.scale, rel_tol=0.02):
            raise ValueError(
                f"which tiles may be skipped was measured for tiles of {self.tile} at scale {self.scale:g}, not for "
                f"{tile} at {scale:g}; measure it again: tinydet infer --calibrate-skip --scale {scale:g} ..."
            )


def contrast(picture: Image, size: float) -> int:
    """The strongest difference between a spot of `size` pixels and its surroundings, 0 to 255; a few 100 µs a tile."""
    half = _half(picture)
    outer = max(3, round(1.5 * size))
    return int(cv2.absdiff(_spots(half, size), cv2.blur(half, (outer, outer))).max())


def spots(picture: Image, size: float) -> Image:
    """The means of spots of half an object's side, around each second pixel: (H / 2, W / 2)."""
    return _spots(_half(picture), size)


def calibrate(
    spec: ModelSpec,
    annotations: Path,
    images: Path | None = None,
    *,
    scale: float = 1.0,
    overlap: int = OVERLAP,
    recall: float = RECALL,
    progress: Callable[[int], object] | None = None,
) -> Gate:
    """Measure which tiles may be passed over so that `recall` of the annotated objects are still looked at.

    An object counts as looked at where some tile that holds all of it is run. Objects marked `ignore` or `iscrowd` do
    not count.

    Args:
        annotations: COCO file of images that the model was not trained on, and that are like those to come.
        images: their folder.
        progress: called with 1 for each image.

    Raises:
        ValueError: no COCO file, or one without objects.
    """
    size = DEFAULT_SIZE if spec.object_sizes is None else spec.object_sizes[1]
    sources = coco_sources(annotations, images)
    truth = _boxes_by_image(annotations)
    tile_looks: list[int] = []
    object_looks: list[int] = []
    changes: list[int] = []
    for source in sources:
        with open_scene(source.path, stretch=spec.stretch) as scene:
            plan = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=scale)
            looks = [
                contrast(scene.read(tile.x, tile.y, tile.width, tile.height, seen_size(plan)), size)
                for tile in plan.grid.tiles
            ]
            boxes = truth.get(source.image_id, ())
            changes += [_change_by(scene, box, size, scale) for box in boxes]
        tile_looks += looks
        bounds = plan.grid.bounds(np.arange(len(plan.grid)))
        for box in boxes:
            object_looks.append(max((looks[i] for i in _holding(bounds, box)), default=0))
        if progress is not None:
            progress(1)
    if not object_looks:
        raise ValueError(f"{annotations} has no objects to measure by; name a file with boxes")
    threshold = highest_threshold(object_looks, recall)
    motion = max(highest_threshold(changes, recall) // MOVED, 1)
    missed = sum(look < threshold for look in object_looks)
    passed = sum(look < threshold for look in tile_looks)
    return Gate(
        threshold,
        size,
        spec.tile,
        scale,
        1 - missed / len(object_looks),
        recall_bound(missed, len(object_looks)),
        len(object_looks),
        len(tile_looks),
        passed / len(tile_looks),
        motion,
        sum(change >= motion for change in changes) / len(changes),
    )


def highest_threshold(looks: Sequence[int], recall: float) -> int:
    """The highest threshold that at least the share `recall` of the looks reaches.

    >>> highest_threshold([3, 50, 60, 70], 0.75), highest_threshold([3, 50, 60, 70], 0.76)
    (50, 3)
    """
    may_miss = math.floor(len(looks) * (1 - recall) + 1e-9)
    return sorted(looks)[may_miss]


def recall_bound(missed: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The lower bound of a recall of which `missed` of `count` were seen to be missed (Clopper and Pearson).

    >>> round(recall_bound(0, 597), 4)
    0.995
    """
    if missed >= count:
        return 0.0

    def at_most_missed(rate: float) -> float:
        terms = (
            math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
            + i * math.log(rate) + (count - i) * math.log1p(-rate)
            for i in range(missed + 1)
        )  # fmt: skip
        return sum(map(math.exp, terms))

    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most_missed(middle) > 1 - confidence else (low, middle)
    return 1 - low


def gate_path(model: Path) -> Path:
    """Where the gate of a model lies: model.onnx and model.skip.json."""
    return model.with_name(f"{model.stem}.skip.json")


def _half(picture: Image) -> Image:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    return np.asarray(cv2.resize(grey, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA))


def _spots(half: Image, size: float) -> Image:
    inner = max(1, round(size / 4))
    return np.asarray(cv2.blur(half, (inner, inner)))


def _change_by(scene: Scene, box: NDArray[np.float64], size: float, scale: float) -> int:
    """By how much an object changes the spots where there was only what surrounds it."""
    margin = math.ceil(2 * size / scale)
    low = np.clip(np.floor(box[:2]) - margin, 0, (scene.width - 1, scene.height - 1)).astype(int)
    high = np.clip(np.ceil(box[2:]) + margin, low + 1, (scene.width, scene.height)).astype(int)
    width, height = (max(1, round(float(side) * scale)) for side in high - low)
    with_it = scene.read(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]), (width, height))
    inside = np.zeros((height, width), np.uint8)
    x1, y1 = np.floor((box[:2] - low) * scale).astype(int).tolist()
    x2, y2 = np.ceil((box[2:] - low) * scale).astype(int).tolist()
    inside[max(y1, 0) : y2, max(x1, 0) : x2] = 1
    without = np.asarray(cv2.inpaint(with_it, inside, 3, cv2.INPAINT_TELEA), np.uint8)
    return int(cv2.absdiff(spots(with_it, size), spots(without, size)).max())


def _holding(bounds: NDArray[np.float64], box: NDArray[np.float64]) -> list[int]:
    """Tiles that hold a box whole; where none does, those that see a part of it."""
    whole = (bounds[:, :2] <= box[:2]).all(axis=1) & (bounds[:, 2:] >= box[2:]).all(axis=1)
    if not whole.any():
        whole = (bounds[:, :2] < box[2:]).all(axis=1) & (bounds[:, 2:] > box[:2]).all(axis=1)
    return [int(i) for i in np.flatnonzero(whole)]


def _boxes_by_image(path: Path) -> dict[int, list[NDArray[np.float64]]]:
    """xyxy of the objects that count."""
    data = path.read_bytes()
    document = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    boxes: dict[int, list[NDArray[np.float64]]] = {}
    try:
        for entry in _counting(document.get("annotations", [])):
            x, y, width, height = map(float, entry["bbox"])
            boxes.setdefault(int(entry["image_id"]), []).append(np.array([x, y, x + width, y + height]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: an annotation without image_id and bbox ({error!r}); see tinydet data check"
        ) from error
    return boxes


def _counting(annotations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (entry for entry in annotations if not (entry.get("ignore") or entry.get("iscrowd")))
