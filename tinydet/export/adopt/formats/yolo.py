"""Formats of YOLO detectors: boxes on the cells of a grid, and the ones that end in the best detections."""

from __future__ import annotations

import numpy as np

from tinydet.export.adopt.formats.format import (
    Decoded,
    Decoding,
    Format,
    Found,
    Pixels,
    Signature,
    best_class,
    corners,
    corners_in_numpy,
)
from tinydet.export.adopt.original import Arrays

SMALLEST_DECODED = 0.25  # of the input's width: raw offsets within a cell stay far below, decoded centers reach farther


def is_ultralytics(signature: Signature) -> bool:
    return "names" in signature.metadata and "stride" in signature.metadata


def is_transformer(signature: Signature) -> bool:
    """Return whether Ultralytics' metadata say RT-DETR, whose boxes are shares of the image."""
    head, description = signature.metadata.get("head", ""), signature.metadata.get("description", "")
    return head == "RTDETRDecoder" or "rtdetr" in description.lower().replace("-", "")


# ------------------------------------------------------------------------------------- v8 and later: (N, 4 + C, A)


def _is_v8(signature: Signature) -> bool:
    if signature.names_of_rank(3) is None:
        return False
    ((_, rows, cells),) = signature.shapes.values()
    return 5 <= rows < cells and signature.grid_strides(cells) is not None


def _v8_columns(signature: Signature) -> int:
    ((_, rows, _),) = signature.shapes.values()
    return rows - 4


def _decode_v8(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    boxes = corners(op, op.transpose(op.slice(output, 1, 0, 4), (0, 2, 1)))
    count = _v8_columns(decoding.signature)
    return Decoded(boxes, *best_class(op, op.slice(output, 1, 4, 4 + count), decoding.columns, count, axis=1))


def _read_v8(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0].T
    classes = rows[:, 4:].argmax(axis=1)
    return Found(corners_in_numpy(rows[:, :4]), rows[np.arange(len(rows)), 4 + classes], classes)


YOLOV8 = Format(
    name="yolov8",
    title="Ultralytics YOLOv8, 11, 12, v5u, v9, and 26 or v10 without end-to-end head: (N, 4 + classes, cells)",
    matches=_is_v8,
    columns=_v8_columns,
    decode=_decode_v8,
    detections=_read_v8,
    nms_iou=0.7,
)


# ------------------------------------------------------------------------------- v5: (N, A, 5 + C), with objectness


def _objectness_rows(signature: Signature) -> tuple[int, int] | None:
    """Return boxes and columns of an output (N, A, 5 + C); None if the output has another shape."""
    if signature.names_of_rank(3) is None:
        return None
    ((_, boxes, columns),) = signature.shapes.values()
    return (boxes, columns) if boxes > columns >= 6 else None


def _is_v5(signature: Signature) -> bool:
    rows = _objectness_rows(signature)
    if rows is None:
        return False
    if signature.grid_strides(rows[0], anchors=3) is not None:
        return True
    (output,) = signature.values.values()
    one_per_cell = signature.grid_strides(rows[0]) is not None
    return one_per_cell and bool((output[..., 4] == 1).all())  # YOLOv6 has the column, filled with ones


def _objectness_columns(signature: Signature) -> int:
    ((_, _, columns),) = signature.shapes.values()
    return columns - 5


def _with_objectness(decoding: Decoding, boxes: str) -> Decoded:
    """Boxes (N, A, 4) and the output (N, A, 5 + C) -> Decoded, with scores of objectness times class."""
    op, (output,) = decoding.op, decoding.outputs.values()
    count = _objectness_columns(decoding.signature)
    scores, labels = best_class(op, op.slice(output, 2, 5, 5 + count), decoding.columns, count, axis=2)
    return Decoded(boxes, op("Mul", scores, op.squeeze(op.slice(output, 2, 4, 5), 2)), labels)


def _decode_v5(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    return _with_objectness(decoding, corners(op, op.slice(output, 2, 0, 4)))


def _read_v5(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0]
    scores = rows[:, 4:5] * rows[:, 5:]
    classes = scores.argmax(axis=1)
    return Found(corners_in_numpy(rows[:, :4]), scores[np.arange(len(rows)), classes], classes)


YOLOV5 = Format(
    name="yolov5",
    title="YOLOv5, v7 (and v6): (N, anchors, 5 + classes), decoded, with objectness",
    matches=_is_v5,
    columns=_objectness_columns,
    decode=_decode_v5,
    detections=_read_v5,
    nms_iou=0.45,
)


# ------------------------------------------------------------------------------------------ YOLOX: (N, A, 5 + C)


def _is_decoded(signature: Signature) -> bool:
    """Return whether centers are pixels of the input already (`--decode_in_inference`)."""
    (output,) = signature.values.values()
    return float(np.abs(output[..., :2]).max(initial=0.0)) > SMALLEST_DECODED * min(signature.height, signature.width)


def _is_yolox(signature: Signature) -> bool:
    rows = _objectness_rows(signature)
    return rows is not None and signature.grid_strides(rows[0]) is not None and not _is_v5(signature)


def _grid(signature: Signature) -> tuple[np.ndarray, np.ndarray]:
    """Cell positions (A, 2) and strides (A, 1) of all levels, finest first."""
    ((_, boxes, _),) = signature.shapes.values()
    strides = signature.grid_strides(boxes)
    if strides is None:
        raise ValueError(f"{boxes} boxes are not the cells of strides 8, 16, 32 in {signature.width} pixels")
    positions, sizes = [], []
    for stride in strides:
        y, x = np.mgrid[: signature.height // stride, : signature.width // stride]
        positions.append(np.stack([x.ravel(), y.ravel()], axis=1))
        sizes.append(np.full((x.size, 1), stride))
    return np.concatenate(positions).astype(np.float32), np.concatenate(sizes).astype(np.float32)


def _decode_yolox(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    boxes = op.slice(output, 2, 0, 4)
    if not _is_decoded(decoding.signature):
        positions, strides = _grid(decoding.signature)
        stride = op.constant(strides)
        center = op("Mul", op("Add", op.slice(boxes, 2, 0, 2), op.constant(positions)), stride)
        boxes = op.concat(center, op("Mul", op("Exp", op.slice(boxes, 2, 2, 4)), stride), axis=2)
    return _with_objectness(decoding, corners(op, boxes))


def _read_yolox(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0].astype(np.float32)
    if not _is_decoded(signature):
        first = 0
        for stride in signature.grid_strides(len(rows)) or ():
            columns = signature.width // stride
            cells = (signature.height // stride) * columns
            level, number = rows[first : first + cells], np.arange(cells)
            level[:, 0] = (level[:, 0] + number % columns) * stride
            level[:, 1] = (level[:, 1] + number // columns) * stride
            level[:, 2:4] = np.exp(level[:, 2:4]) * stride
            first += cells
    return _read_v5({"rows": rows[None]}, signature)


YOLOX = Format(
    name="yolox",
    title="YOLOX, with or without --decode_in_inference: (N, cells, 5 + classes)",
    matches=_is_yolox,
    columns=_objectness_columns,
    decode=_decode_yolox,
    detections=_read_yolox,
    pixels=Pixels(scale=1.0, color="bgr"),
    nms_iou=0.45,
)


# -------------------------------------------------------- end-to-end heads and exports with NMS: (N, M, 6), sorted


def _is_rows(signature: Signature) -> bool:
    """Return whether rows are corners, descending scores and whole labels; on noise they may all be zero."""
    if signature.names_of_rank(3) is None or is_transformer(signature):
        return False
    (output,) = signature.values.values()
    if output.shape[2] != 6 or output.shape[1] <= 1:
        return False
    scores, labels = output[..., 4].astype(np.float32), output[..., 5]
    descending = bool((np.diff(scores, axis=1) <= 0).all())
    return descending and bool((scores >= 0).all() and (scores <= 1).all() and (labels == np.rint(labels)).all())


def _decode_rows(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    return Decoded(
        op.slice(output, 2, 0, 4), op.squeeze(op.slice(output, 2, 4, 5), 2), op.squeeze(op.slice(output, 2, 5, 6), 2)
    )


def _read_rows(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0]
    return Found(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))


END_TO_END = Format(
    name="end2end",
    title="Ultralytics YOLO26, v10 (end-to-end) and any Ultralytics export with nms=True: (N, detections, 6)",
    matches=_is_rows,
    columns=lambda signature: None,
    decode=_decode_rows,
    detections=_read_rows,
    limited=True,
)
