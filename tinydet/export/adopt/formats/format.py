"""What a format says about a foreign detector: how it is recognized, fed, decoded and, independently, read in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.export.adopt.operators import Operators
from tinydet.export.adopt.original import Arrays, Port

Layout = Literal["nchw", "nhwc"]
Color = Literal["rgb", "bgr"]

GREY = (114, 114, 114)  # what YOLO detectors pad images with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_COLOR = (124, 116, 104)  # 255 times IMAGENET_MEAN
STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16))  # of the grids of YOLO detectors


@dataclass(frozen=True)
class Pixels:
    """How a detector wants its pixels: (value / scale - mean) / std, per channel in the order of its input.

    Attributes:
        scale: 255 for inputs from 0 to 1, 1 for inputs from 0 to 255.
        color: order of the channels.
    """

    scale: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    color: Color = "rgb"

    def __str__(self) -> str:
        scaled = "0 to 255" if self.scale == 1 else "0 to 1" if self.scale == 255 else f"divided by {self.scale:g}"
        text = f"{self.color.upper()}, {scaled}"
        if self.mean != (0, 0, 0) or self.std != (1, 1, 1):
            mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
            text += f", mean {mean}, std {std}"
        return text


def pixels_of_json(values: Mapping[str, Any]) -> Pixels:
    """Return the pixels that `dataclasses.asdict` wrote as JSON."""
    mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    color: Color = "bgr" if values["color"] == "bgr" else "rgb"
    return Pixels(float(values["scale"]), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), color)


IMAGENET = Pixels(255.0, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a foreign detector, with sizes as one run on one image showed them.

    Attributes:
        image: the input that takes pixels.
        layout: of the image input.
        batched: whether the image input has a batch axis.
        batch: its fixed batch size; None if any works.
        height, width: of the image input in pixels.
        multiple: sides may be any multiple of this; 0 if they are fixed.
        extras: other inputs, each with what it is fed: see `EXTRA_INPUTS`.
        inputs: all inputs, as declared.
        bare: whether the outputs lack a batch axis.
        ports: outputs by name, as declared.
        values: outputs of the run on noise from 0 to 1, for one image, with a batch axis.
        metadata: of the file, and of files next to it.
    """

    image: Port
    layout: Layout
    batched: bool
    batch: int | None
    height: int
    width: int
    multiple: int
    extras: Mapping[str, str]
    inputs: tuple[Port, ...]
    bare: bool
    ports: Mapping[str, Port]
    values: Arrays = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.values.items()}

    def names_of_rank(self, *ranks: int) -> list[str] | None:
        """Return the names of the outputs if they have exactly these ranks, in order; else None."""
        found = [len(shape) for shape in self.shapes.values()]
        return list(self.shapes) if found == list(ranks) else None

    def grid_strides(self, count: int, anchors: int = 1) -> tuple[int, ...] | None:
        """Return the strides whose grids have `count` cells together, times `anchors`; None if no known ones do."""
        for strides in STRIDES:
            cells = sum((self.height // stride) * (self.width // stride) for stride in strides)
            if cells * anchors == count:
                return strides
        return None


class Decoded(NamedTuple):
    """Names of values: all boxes (N, M, 4) xyxy in input pixels, scores (N, M), labels (N, M) of any type.

    `counted` (N, X): scores; those above the floor are the candidates. None for `scores`.
    """

    boxes: str
    scores: str
    labels: str
    counted: str | None = None


class Found(NamedTuple):
    """All detections of one image in numpy: boxes (M, 4) xyxy in input pixels, scores (M,), labels (M,)."""

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Decoding:
    """What a decoder needs to know.

    Attributes:
        op: adds nodes.
        outputs: name of the value of each output of the original, as float32 with a batch axis.
        signature: of the original.
        size: name of a float32 constant or value (4,): width, height, width, height of its input.
        columns: class columns of the original that are classes of the adopted model, in its order.
        slots: number of detections that are kept.
    """

    op: Operators
    outputs: Mapping[str, str]
    signature: Signature
    size: str
    columns: tuple[int, ...]
    slots: int


@dataclass(frozen=True)
class Format:
    """One layout of inputs and outputs.

    Attributes:
        name: for `--format`. `title`: one line for help and documents.
        matches: whether a signature has this format.
        columns: number of class scores of each box; None if the original outputs labels.
        decode: builds the decoding from plain operators.
        detections: the same in numpy, for one image, as the framework does it; arrays have a batch axis of 1.
        pixels: of the framework; metadata and options override them.
        pad: RGB of pixels outside the scene.
        nms_iou: threshold of the framework's NMS; None if the original suppresses duplicates, or needs no NMS.
        limited: whether the original returns at most a fixed number of detections.
        counted: whether the number of detections depends on the image.
        first_label: of the first class, where labels are an output.
        background: which class column is no class: "last", or "" for none.
    """

    name: str
    title: str
    matches: Callable[[Signature], bool]
    columns: Callable[[Signature], int | None]
    decode: Callable[[Decoding], Decoded]
    detections: Callable[[Arrays, Signature], Found]
    pixels: Pixels = Pixels()
    pad: tuple[int, int, int] = GREY
    nms_iou: float | None = None
    limited: bool = False
    counted: bool = False
    first_label: int = 0
    background: str = ""


def corners(op: Operators, boxes: str) -> str:
    """Centers and sizes (N, M, 4) -> xyxy (N, M, 4)."""
    center, size = op.slice(boxes, 2, 0, 2), op.slice(boxes, 2, 2, 4)
    half = op("Mul", size, op.constant(0.5))
    return op.concat(op("Sub", center, half), op("Add", center, half), axis=2)


def best_class(op: Operators, scores: str, columns: tuple[int, ...], count: int, axis: int) -> tuple[str, str]:
    """Class scores -> best score and its label, without the class axis, which has `count` columns."""
    if columns != tuple(range(count)):
        scores = op("Gather", scores, op.integers(*columns), axis=axis)
    return op.largest(scores, axis)


def best_pairs(decoding: Decoding, boxes: str, scores: str, count: int) -> Decoded:
    """Keep the best pairs of box and class, as DETR does: boxes (N, Q, 4), scores (N, Q, C) -> Decoded.

    Args:
        count: C.
    """
    op, columns = decoding.op, decoding.columns
    if columns != tuple(range(count)):
        scores = op("Gather", scores, op.integers(*columns), axis=2)
    every = op.reshape(scores, (0, -1))
    kept, index = op.several("TopK", every, op.integers(decoding.slots), outputs=2, axis=1)
    classes = op.integers(len(columns))
    query = op("Div", index, classes)  # of integers, hence exact
    label = op("Sub", index, op("Mul", query, classes))
    return Decoded(op.gather_rows(boxes, query, 4), kept, label, counted=every)


def corners_in_numpy(boxes: NDArray[Any]) -> NDArray[Any]:
    """Centers and sizes (M, 4) -> xyxy (M, 4)."""
    x, y, width, height = boxes.astype(np.float32).T
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
