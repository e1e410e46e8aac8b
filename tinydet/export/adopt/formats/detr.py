"""Formats of detection transformers: a fixed number of queries, no NMS."""

from __future__ import annotations

import numpy as np

from tinydet.export.adopt.classes import COCO_NAMES, COCO_SLOTS
from tinydet.export.adopt.formats.format import (
    IMAGENET,
    MEAN_COLOR,
    Decoded,
    Decoding,
    Format,
    Found,
    Signature,
    best_class,
    best_pairs,
    corners,
    corners_in_numpy,
)
from tinydet.export.adopt.formats.yolo import is_transformer
from tinydet.export.adopt.original import Arrays

BLACK = (0, 0, 0)
MOST_QUERIES = 2000  # more boxes than these are cells of a grid


def _pair(signature: Signature, boxes: str, scores: str) -> bool:
    """Return whether two outputs are boxes (N, Q, 4) and class logits (N, Q, C) of the same queries."""
    shapes = signature.shapes
    if boxes not in shapes or scores not in shapes or len(shapes[boxes]) != 3 or len(shapes[scores]) != 3:
        return False
    return shapes[boxes][2] == 4 and shapes[boxes][:2] == shapes[scores][:2] and shapes[boxes][1] <= MOST_QUERIES


def _queries(boxes: str, logits: str, name: str, title: str, **more: object) -> Format:
    """Return the format of normalized boxes (N, Q, 4), centers and sizes, and logits (N, Q, C)."""

    def columns(signature: Signature) -> int:
        return signature.shapes[logits][2]

    def decode(decoding: Decoding) -> Decoded:
        op = decoding.op
        scaled = op("Mul", corners(op, decoding.outputs[boxes]), decoding.size)
        scores = op("Sigmoid", decoding.outputs[logits])
        return best_pairs(decoding, scaled, scores, columns(decoding.signature))

    def read(arrays: Arrays, signature: Signature) -> Found:
        size = np.array([signature.width, signature.height] * 2, np.float32)
        corner = corners_in_numpy(arrays[boxes][0]) * size
        scores = 1 / (1 + np.exp(-arrays[logits][0].astype(np.float64)))
        query, label = (each.ravel() for each in np.indices(scores.shape))
        return Found(corner[query], scores.ravel(), label)

    return Format(
        name=name,
        title=title,
        matches=lambda signature: _pair(signature, boxes, logits),
        columns=columns,
        decode=decode,
        detections=read,
        limited=True,
        **more,  # type: ignore[arg-type]
    )


HUGGING_FACE = _queries(
    "pred_boxes",
    "logits",
    "hf-detr",
    "RT-DETR, RT-DETRv2, D-FINE, Deformable and Conditional DETR of Hugging Face: logits, pred_boxes",
    pad=BLACK,
)
RF_DETR = _queries(
    "dets",
    "labels",
    "rf-detr",
    "RF-DETR: dets (N, queries, 4) and labels (N, queries, classes)",
    pixels=IMAGENET,
    pad=MEAN_COLOR,
    background="last",
)


# ---------------------------------------------------- softmax with a last class "no object": DETR, YOLOS and others


def _decode_softmax(decoding: Decoding) -> Decoded:
    op, count = decoding.op, _softmax_columns(decoding.signature)
    shares = op.slice(op("Softmax", decoding.outputs["logits"], axis=2), 2, 0, count)
    boxes = op("Mul", corners(op, decoding.outputs["pred_boxes"]), decoding.size)
    return Decoded(boxes, *best_class(op, shares, decoding.columns, count, axis=2))


def _read_softmax(arrays: Arrays, signature: Signature) -> Found:
    logits = arrays["logits"][0].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    size = np.array([signature.width, signature.height] * 2, np.float32)
    return Found(corners_in_numpy(arrays["pred_boxes"][0]) * size, shares.max(axis=1), shares.argmax(axis=1))


def _softmax_columns(signature: Signature) -> int:
    return signature.shapes["logits"][2] - 1


def has_no_object_column(signature: Signature, classes: int | None) -> bool:
    """Return whether logits have a column more than there are classes, or than COCO has labels."""
    if not SOFTMAX.matches(signature):
        return False
    expected = (COCO_SLOTS,) if classes is None else (COCO_SLOTS, classes) if classes == len(COCO_NAMES) else (classes,)
    return _softmax_columns(signature) in expected


SOFTMAX = Format(
    name="detr",
    title="DETR, YOLOS and Table Transformer of Hugging Face: logits with a last class for no object, pred_boxes",
    matches=lambda signature: HUGGING_FACE.matches(signature) and _softmax_columns(signature) > 0,
    columns=_softmax_columns,
    decode=_decode_softmax,
    detections=_read_softmax,
    pixels=IMAGENET,
    pad=MEAN_COLOR,
    limited=True,
)


# ------------------------------------------- official RT-DETR, D-FINE and DEIM exports, which take the image's size


def _is_sized(signature: Signature) -> bool:
    return set(signature.shapes) == {"labels", "boxes", "scores"} and "size" in signature.extras.values()


def _decode_sized(decoding: Decoding) -> Decoded:
    outputs = decoding.outputs
    return Decoded(outputs["boxes"], outputs["scores"], outputs["labels"])


def _read_sized(arrays: Arrays, signature: Signature) -> Found:
    return Found(arrays["boxes"][0], arrays["scores"][0], arrays["labels"][0].astype(np.int64))


RT_DETR = Format(
    name="rt-detr",
    title="RT-DETR, D-FINE and DEIM of their own repositories: images and orig_target_sizes to labels, boxes, scores",
    matches=_is_sized,
    columns=lambda signature: None,
    decode=_decode_sized,
    detections=_read_sized,
    limited=True,
    pad=BLACK,
)


# ------------------------------------------------------------------------------------------- Ultralytics' RT-DETR


def _is_ultralytics(signature: Signature) -> bool:
    return is_transformer(signature) and signature.names_of_rank(3) is not None


def _has_scores(signature: Signature) -> bool:
    """Return whether the output has a score and a label for each query (since 8.4), not a score for each class."""
    ((_, _, columns),) = signature.shapes.values()
    return columns == 6 and "head" in signature.metadata


def _ultralytics_columns(signature: Signature) -> int | None:
    ((_, _, columns),) = signature.shapes.values()
    return None if _has_scores(signature) else columns - 4


def _decode_ultralytics(decoding: Decoding) -> Decoded:
    op, (output,) = decoding.op, decoding.outputs.values()
    boxes = op("Mul", corners(op, op.slice(output, 2, 0, 4)), decoding.size)
    count = _ultralytics_columns(decoding.signature)
    if count is not None:
        return Decoded(boxes, *best_class(op, op.slice(output, 2, 4, 4 + count), decoding.columns, count, axis=2))
    return Decoded(boxes, *(op.squeeze(op.slice(output, 2, i, i + 1), 2) for i in (4, 5)))


def _read_ultralytics(arrays: Arrays, signature: Signature) -> Found:
    (output,) = arrays.values()
    rows = output[0]
    boxes = corners_in_numpy(rows[:, :4]) * np.array([signature.width, signature.height] * 2, np.float32)
    if _has_scores(signature):
        return Found(boxes, rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))
    labels = rows[:, 4:].argmax(axis=1)
    return Found(boxes, rows[np.arange(len(rows)), 4 + labels], labels)


ULTRALYTICS_RT_DETR = Format(
    name="ultralytics-rtdetr",
    title="RT-DETR of Ultralytics: (N, queries, 6), or (N, queries, 4 + classes) before 8.4",
    matches=_is_ultralytics,
    columns=_ultralytics_columns,
    decode=_decode_ultralytics,
    detections=_read_ultralytics,
    limited=True,
)
