"""Run an exported model with SAHI and with supervision's InferenceSlicer, for the benchmarks that compare with them.

They depend on another OpenCV package than tinydet, so install them in a separate environment:

    python -m venv .versus
    .versus/bin/pip install -e '.[openvino,geo]' sahi supervision

The adapters add as little as possible: a tile is run by the same backend, its boxes pass the same NMS and are converted
to the types of the tool. Both tools run one tile at a time, as they do by default.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydet.geometry.nms import suppress
from tinydet.runtime.backends import Backend
from tinydet.runtime.detections import Detections

INSTALL = "in a separate environment, see benchmarks/other_tools.py: pip install -e '.[openvino,geo]' sahi supervision"
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4) xyxy in scene pixels, scores (N,), labels (N,)
Detect = Callable[[np.ndarray, float], Boxes]  # takes a scene (H, W, 3) RGB and a score threshold
Tool = Callable[[Backend, int], Detect]  # takes a model and the overlap of tiles in pixels


def available() -> dict[str, Tool]:
    """Return the installed tools by name, and print the names of the others."""
    found: dict[str, Tool] = {}
    for name, tool in (("SAHI", sahi_tool), ("supervision", supervision_tool)):
        if importlib.util.find_spec(name.lower()) is None:
            print(f"{name} is skipped because it is not installed ({INSTALL})")
        else:
            found[name] = tool
    return found


def sahi_tool(backend: Backend, overlap: int) -> Detect:
    """`get_sliced_prediction` with its defaults, but without the extra prediction on the whole scene.

    Raises:
        ImportError: SAHI is not installed.
    """
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    spec = backend.spec

    class Adapter(DetectionModel):
        def load_model(self) -> None:
            self.model = backend
            self.category_mapping = {str(i): name for i, name in enumerate(spec.classes)}

        def perform_inference(self, image: np.ndarray) -> None:
            self._original_predictions = on_tile(backend, image, self.confidence_threshold)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
        ) -> None:
            boxes, scores, labels = self._original_predictions
            rows = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        category_name=spec.classes[label],
                        score=score,
                        shift_amount=shift_amount_list[0],
                        full_shape=full_shape_list[0],
                    )
                    for box, score, label in rows
                ]
            ]

    model = Adapter(device="cpu")

    def detect(scene: np.ndarray, score: float) -> Boxes:
        found = get_sliced_prediction(
            scene,
            model,
            slice_height=spec.tile,
            slice_width=spec.tile,
            overlap_height_ratio=overlap / spec.tile,
            overlap_width_ratio=overlap / spec.tile,
            perform_standard_pred=False,
            confidence_threshold=score,
            verbose=0,
        ).object_prediction_list
        boxes = np.array([one.bbox.to_xyxy() for one in found], np.float32).reshape(-1, 4)
        return boxes, np.array([one.score.value for one in found]), np.array([one.category.id for one in found], int)

    return detect


def supervision_tool(backend: Backend, overlap: int) -> Detect:
    """`InferenceSlicer` with its defaults.

    Raises:
        ImportError: supervision is not installed.
    """
    from supervision import Detections as Predictions
    from supervision import InferenceSlicer

    def detect(scene: np.ndarray, score: float) -> Boxes:
        def callback(tile: np.ndarray) -> Any:
            boxes, scores, labels = on_tile(backend, tile, score)
            return Predictions(xyxy=boxes, confidence=scores, class_id=labels.astype(int))

        slicer = InferenceSlicer(callback, slice_wh=backend.spec.tile, overlap_wh=overlap)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tiles without boxes
            found = slicer(scene)
        if not len(found):
            empty = Detections.empty()
            return empty.boxes, empty.scores, empty.labels
        return found.xyxy, found.confidence, found.class_id

    return detect


def on_tile(backend: Backend, tile: np.ndarray, score: float) -> Boxes:
    """Run a model on one tile of its size; return the boxes after NMS, in tile pixels."""
    spec = backend.spec
    outputs = backend.run(np.ascontiguousarray(tile[None]))
    good = (outputs.labels[0] >= 0) & (outputs.scores[0] >= score)
    scores, labels = outputs.scores[0, good], outputs.labels[0, good]
    boxes = np.clip(outputs.boxes[0, good], 0, spec.tile)  # SAHI rejects boxes that extend beyond the image
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    if not spec.nms_in_graph and len(scores):
        kept = suppress(boxes, scores, spec.nms_iou, same=labels)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    return boxes, scores, labels
