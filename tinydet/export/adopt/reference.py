"""Run the original as its own framework does, with preprocessing, postprocessing and NMS in numpy.

It shares no code with the grafts, so that a verification against it shows their mistakes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.export.adopt.formats.format import Found
from tinydet.export.adopt.graft import Plan
from tinydet.export.adopt.original import Original
from tinydet.export.adopt.probe import extra_value
from tinydet.geometry.nms import suppress
from tinydet.runtime.backends import Backend, TileOutputs
from tinydet.spec import ModelSpec

LARGEST_SHARE = 1.5  # boxes may leave the image; no detector finds only objects of a pixel in one corner


class ReferenceBackend:
    """The untouched original with its framework's preprocessing and postprocessing, as a backend.

    Args:
        nms: apply the framework's NMS, where it has one.
    """

    def __init__(self, original: Original, plan: Plan, *, nms: bool = False) -> None:
        self.spec = replace(plan.spec, nms_in_graph=True) if nms else plan.spec
        self.name = f"{original.path.name} as its framework runs it"
        self._nms = nms and plan.format.nms_iou is not None
        self._original, self._plan = original, plan
        self._ports = {port.name: port for port in original.inputs}

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, one after the other."""
        return _stacked([self._run_one(image) for image in images])

    def _run_one(self, image: NDArray[np.uint8]) -> TileOutputs:
        plan, signature, spec = self._plan, self._plan.signature, self.spec
        count = signature.batch or 1
        height, width = (image.shape[:2]) if signature.multiple else (signature.height, signature.width)
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = spec.pad
        canvas[: image.shape[0], : image.shape[1]] = image
        pixels = canvas[:, :, ::-1] if plan.pixels.color == "bgr" else canvas
        mean, std = np.array(plan.pixels.mean, np.float32), np.array(plan.pixels.std, np.float32)
        normalized = (pixels.astype(np.float32) / np.float32(plan.pixels.scale) - mean) / std
        if signature.layout == "nchw":
            normalized = np.moveaxis(normalized, 2, 0)
        batch = np.repeat(normalized[None], count, axis=0).astype(signature.image.dtype)
        feeds: dict[str, NDArray[Any]] = {signature.image.name: batch if signature.batched else batch[0]}
        for name, meaning in signature.extras.items():
            feeds[name] = extra_value(self._ports[name], meaning, count, height, width)
        outputs = self._original.run(feeds)
        arrays = {name: array[None] if signature.bare else array[:1] for name, array in outputs.items()}
        found = plan.format.detections(arrays, replace(signature, height=height, width=width))
        self._check(found)
        boxes = found.boxes * np.array([width, height] * 2, np.float32) if plan.shares else found.boxes
        return self._final(boxes, found.scores, found.labels)

    def _check(self, found: Found) -> None:
        """Raise ValueError for detections that have no meaning, or another one than the plan says."""
        path, plan = self._original.path, self._plan
        strong = found.scores > plan.spec.score_floor
        boxes = found.boxes[strong]
        if np.isnan(found.scores).any() or not np.isfinite(boxes).all():
            raise ValueError(
                f"{path}: it returns NaN or infinite boxes or scores, fed {plan.pixels}; check these pixels, and if "
                "its weights are FP16, export it in FP32"
            )
        if (label := int(found.labels[strong].max(initial=0))) >= len(plan.labels):
            raise ValueError(
                f"{path}: it returns label {label}, but only the labels {plan.labels.index(0)} to "
                f"{len(plan.labels) - 1} have names; name all of them with --classes, and see --first-label"
            )
        if plan.shares is None and are_shares(boxes):
            raise ValueError(
                f"{path}: its boxes lie between 0 and 1, so they are shares of the image, not pixels; set "
                "--boxes shares"
            )

    def _final(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> TileOutputs:
        """Keep what the framework keeps, in the slots of one tile."""
        plan, spec = self._plan, self.spec
        known = dict(enumerate(plan.labels))
        classes = np.array([known.get(int(label), -1) for label in labels], np.int64)
        scores = scores.astype(np.float64)
        above = (scores > spec.score_floor) & (classes >= 0)
        candidates = int(above.sum())
        if plan.limit is not None and candidates >= plan.limit:
            candidates += 1
        order = np.argsort(-scores, kind="stable")
        best = order[above[order]][: spec.max_detections]
        if self._nms:
            best = best[_framework_nms(boxes[best].astype(np.float64), scores[best], classes[best], plan.spec.nms_iou)]
        corners = boxes[best].astype(np.float64).clip(0, spec.tile)
        inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        best, corners = best[inside], corners[inside]
        result = _empty(spec, 1)
        n = len(best)
        result.boxes[0, :n], result.scores[0, :n], result.labels[0, :n] = corners, scores[best], classes[best]
        result.candidates[0] = candidates
        return result


def are_shares(boxes: NDArray[Any]) -> bool:
    """Return whether boxes (M, 4) xyxy look like shares of the image: there are some, none reaches farther."""
    sized = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    return bool(len(sized)) and float(np.abs(sized).max()) <= LARGEST_SHARE


class ClippedBackend:
    """An adopted model whose boxes are clipped to the tile, as the runtime and the reference clip them."""

    def __init__(self, backend: Backend) -> None:
        self.spec, self.name = backend.spec, backend.name
        self._backend = backend

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB."""
        raw = self._backend.run(images)
        boxes = raw.boxes.clip(0, self.spec.tile)
        filled = (raw.labels >= 0) & (boxes[..., :2] < boxes[..., 2:]).all(axis=2)
        return _kept(raw._replace(boxes=boxes), [np.flatnonzero(row) for row in filled])


def after_nms(outputs: TileOutputs, iou: float, *, by_framework: bool) -> TileOutputs:
    """Apply NMS to the boxes of each tile: that of the frameworks, in numpy, or that of the runtime."""
    kept = []
    for boxes, scores, labels in zip(outputs.boxes, outputs.scores, outputs.labels, strict=True):
        filled = np.flatnonzero(labels >= 0)
        classes = labels[filled].astype(np.int64)
        if by_framework:
            chosen = _framework_nms(boxes[filled].astype(np.float64), scores[filled].astype(np.float64), classes, iou)
        else:
            chosen = suppress(boxes[filled], scores[filled], iou, same=classes).tolist()
        kept.append(filled[chosen])
    return _kept(outputs, kept)


def _framework_nms(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], classes: NDArray[np.int64], iou: float
) -> list[int]:
    """Greedy NMS within each class, box by box; return the kept indices by descending score."""
    areas = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    alive = np.ones(len(boxes), np.bool_)
    kept = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not alive[i]:
            continue
        kept.append(i)
        low, high = np.maximum(boxes[i, :2], boxes[:, :2]), np.minimum(boxes[i, 2:], boxes[:, 2:])
        common = (high - low).clip(0).prod(axis=1)
        union = areas[i] + areas - common
        alive &= ~((common > iou * union) & (classes == classes[i]))
    return kept


def _empty(spec: ModelSpec, count: int) -> TileOutputs:
    slots = spec.max_detections
    return TileOutputs(
        np.zeros((count, slots, 4), np.float32),
        np.zeros((count, slots), np.float32),
        np.full((count, slots), -1, np.int32),
        np.zeros(count, np.int32),
    )


def _kept(outputs: TileOutputs, slots: list[NDArray[np.int64]]) -> TileOutputs:
    """Return the outputs with these slots of each tile only, moved to the front."""
    boxes, scores, labels = outputs.boxes, outputs.scores, outputs.labels
    result = TileOutputs(np.zeros_like(boxes), np.zeros_like(scores), np.full_like(labels, -1), outputs.candidates)
    for i, kept in enumerate(slots):
        n = len(kept)
        result.boxes[i, :n], result.scores[i, :n] = boxes[i][kept], scores[i][kept]
        result.labels[i, :n] = labels[i][kept]
    return result


def _stacked(parts: list[TileOutputs]) -> TileOutputs:
    return TileOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
