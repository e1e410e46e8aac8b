"""Formats whose outputs are final boxes, scores and labels, and raw boxes with class scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.export.adopt.formats.format import (
    MEAN_COLOR,
    Decoded,
    Decoding,
    Format,
    Found,
    Pixels,
    Signature,
    best_class,
)
from tinydet.export.adopt.original import Arrays

MMDET = Pixels(1.0, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def _roles(signature: Signature) -> tuple[str, str, str] | None:
    """Return which outputs are boxes (.., M, 4), scores (.., M) and labels (.., M); None if they are not these."""
    shapes = signature.shapes
    if len(shapes) not in (3, 4):
        return None
    named = {key: [name for name in shapes if key in name.lower()] for key in ("box", "score", "label")}
    if all(len(names) == 1 for names in named.values()):
        boxes, scores, labels = (names[0] for names in named.values())
    else:
        flat = [name for name, shape in shapes.items() if not shape or shape[-1] != 4 or len(shape) < 2]
        whole = [name for name in flat if signature.values[name].dtype.kind in "iu" and shapes[name]]
        real = [name for name in flat if signature.values[name].dtype.kind == "f"]
        corner = [name for name in shapes if name not in flat]
        if len(corner) != 1 or len(whole) != 1 or len(real) != 1:
            return None
        (boxes,), (scores,), (labels,) = corner, real, whole
    box_shape = shapes[boxes]
    leading = box_shape[:-1]
    whole_boxes = len(box_shape) in (2, 3) and box_shape[-1] == 4
    return (boxes, scores, labels) if whole_boxes and shapes[scores] == shapes[labels] == leading else None


def _decode_roles(decoding: Decoding) -> Decoded:
    roles = _roles(decoding.signature)
    assert roles is not None
    return Decoded(*(decoding.outputs[name] for name in roles))


def _read_roles(arrays: Arrays, signature: Signature) -> Found:
    roles = _roles(signature)
    assert roles is not None
    boxes, scores, labels = (arrays[name][0] for name in roles)
    return Found(boxes, scores, labels.astype(np.int64))


TORCHVISION = Format(
    name="torchvision",
    title="torchvision's detectors: an image (3, H, W) to boxes, labels from 1, scores",
    matches=lambda signature: not signature.batched and _roles(signature) is not None,
    columns=lambda signature: None,
    decode=_decode_roles,
    detections=_read_roles,
    pad=MEAN_COLOR,
    limited=True,
    counted=True,
    first_label=1,
)
GENERIC = Format(
    name="boxes",
    title="any detector with outputs boxes (xyxy in pixels), scores and labels, after its own NMS",
    matches=lambda signature: _roles(signature) is not None,
    columns=lambda signature: None,
    decode=_decode_roles,
    detections=_read_roles,
    limited=True,
    counted=True,
)


# ---------------------------------------------------- mmdeploy, and SSD of model_api: (N, M, 5) and labels (N, M)


def _five(signature: Signature) -> tuple[str, str] | None:
    """Return the names of the outputs (.., M, 5), corners and score, and (.., M), labels."""
    shapes = signature.shapes
    boxes = [name for name, shape in shapes.items() if len(shape) in (2, 3) and shape[-1] == 5]
    labels = [name for name in shapes if name not in boxes and shapes[name] == (shapes[boxes[0]][:-1] if boxes else 0)]
    return (boxes[0], labels[0]) if len(boxes) == len(labels) == 1 else None


def _decode_five(decoding: Decoding) -> Decoded:
    names = _five(decoding.signature)
    assert names is not None
    op, rows, labels = decoding.op, *(decoding.outputs[name] for name in names)
    return Decoded(op.slice(rows, 2, 0, 4), op.squeeze(op.slice(rows, 2, 4, 5), 2), labels)


def _read_five(arrays: Arrays, signature: Signature) -> Found:
    names = _five(signature)
    assert names is not None
    rows, labels = (arrays[name][0] for name in names)
    return Found(rows[:, :4], rows[:, 4], labels.astype(np.int64))


MMDEPLOY = Format(
    name="mmdeploy",
    title="mmdeploy's detectors, and boxes with labels of model_api: dets (N, M, 5), labels (N, M)",
    matches=lambda signature: _five(signature) is not None,
    columns=lambda signature: None,
    decode=_decode_five,
    detections=_read_five,
    pixels=MMDET,
    limited=True,
    counted=True,
)


# ------------------------------------------------------------------- SSD of OpenVINO's DetectionOutput: (1, 1, M, 7)


def _is_seven(signature: Signature) -> bool:
    return signature.names_of_rank(4) is not None and next(iter(signature.shapes.values()))[1::2] == (1, 7)


def _decode_seven(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    rows = op.squeeze(output, 1)
    boxes = op("Mul", op.slice(rows, 2, 3, 7), decoding.size)
    scores, labels = (op.squeeze(op.slice(rows, 2, i, i + 1), 2) for i in (2, 1))
    return Decoded(boxes, scores, labels)


def _read_seven(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0, 0]
    boxes = rows[:, 3:7] * np.array([signature.width, signature.height] * 2, np.float32)
    return Found(boxes, rows[:, 2], rows[:, 1].astype(np.int64))


SSD = Format(
    name="ssd",
    title="SSD of OpenVINO (model_api): (1, 1, M, 7), corners as shares of the image",
    matches=_is_seven,
    columns=lambda signature: None,
    decode=_decode_seven,
    detections=_read_seven,
    pixels=Pixels(scale=1.0, color="bgr"),
    limited=True,
    counted=True,
)


# ------------------------------------------------------- raw boxes (N, A, 4) and class scores (N, A, C), without NMS


def _raw(signature: Signature) -> tuple[str, str] | None:
    """Return the names of the outputs boxes (N, A, 4) and scores (N, A, C)."""
    if signature.names_of_rank(3, 3) is None:
        return None
    names = list(signature.shapes)
    boxes = [name for name in names if "box" in name.lower()] or [n for n in names if signature.shapes[n][2] == 4]
    if not boxes or signature.shapes[boxes[0]][2] != 4:
        return None
    scores = next(name for name in names if name != boxes[0])
    same = signature.shapes[boxes[0]][:2] == signature.shapes[scores][:2]
    return (boxes[0], scores) if same and _are_scores(signature.values[scores]) else None


def _are_scores(values: NDArray[Any]) -> bool:
    return values.size > 0 and float(values.min()) >= 0 and float(values.max()) <= 1


def _raw_columns(signature: Signature) -> int:
    names = _raw(signature)
    assert names is not None
    return signature.shapes[names[1]][2]


def _decode_raw(decoding: Decoding) -> Decoded:
    names = _raw(decoding.signature)
    assert names is not None
    boxes, scores = (decoding.outputs[name] for name in names)
    return Decoded(boxes, *best_class(decoding.op, scores, decoding.columns, _raw_columns(decoding.signature), axis=2))


def _read_raw(arrays: Arrays, signature: Signature) -> Found:
    names = _raw(signature)
    assert names is not None
    boxes, scores = (arrays[name][0] for name in names)
    labels = scores.argmax(axis=1)
    return Found(boxes, scores[np.arange(len(scores)), labels], labels)


RAW = Format(
    name="boxes-scores",
    title="any detector with outputs boxes (N, A, 4), xyxy in pixels, and scores (N, A, classes), without NMS",
    matches=lambda signature: _raw(signature) is not None,
    columns=_raw_columns,
    decode=_decode_raw,
    detections=_read_raw,
    nms_iou=0.5,
)
