"""SAHI and supervision's InferenceSlicer over the same exported model, for the benchmarks that compare with them.

They bring another OpenCV than tinydet, so keep them in a venv of their own:

    python -m venv .versus
    .versus/bin/pip install -e '.[openvino,geo]' sahi supervision

The adapters are as thin as they can be: a tile goes to the same backend, its boxes through the same NMS, and then to
the tool as the objects that it wants. Both tools get one tile at a time, as they do by default.
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

HOW = "in a venv of its own, see benchmarks/other_tools.py: pip install -e '.[openvino,geo]' sahi supervision"
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4) xyxy in scene pixels, scores (N,), labels (N,)
Tool = Callable[[np.ndarray, float], Answer]  # of a scene (H, W, 3) RGB and the least score


def available() -> dict[str, Callable[[Backend, int], Tool]]:
    """Those that are installed, by name; the others are named on standard output."""
    found: dict[str, Callable[[Backend, int], Tool]] = {}
    for name, over in (("SAHI", sahi_over), ("supervision", supervision_over)):
        if importlib.util.find_spec(name.lower()) is None:
            print(f"{name} is not measured, for it is not installed ({HOW})")
        else:
            found[name] = over
    return found


def sahi_over(backend: Backend, overlap: int) -> Tool:
    """`get_sliced_prediction` by its defaults, without the extra look at the whole scene.

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

    def look(scene: np.ndarray, score: float) -> Answer:
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

    return look


def supervision_over(backend: Backend, overlap: int) -> Tool:
    """`InferenceSlicer` by its defaults.

    Raises:
        ImportError: supervision is not installed.
    """
    import supervision

    def look(scene: np.ndarray, score: float) -> Answer:
        def callback(tile: np.ndarray) -> Any:
            boxes, scores, labels = on_tile(backend, tile, score)
            return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels.astype(int))

        slicer = supervision.InferenceSlicer(callback, slice_wh=backend.spec.tile, overlap_wh=overlap)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tiles without a box
            found = slicer(scene)
        if not len(found):
            empty = Detections.empty()
            return empty.boxes, empty.scores, empty.labels
        return found.xyxy, found.confidence, found.class_id

    return look


def on_tile(backend: Backend, tile: np.ndarray, score: float) -> Answer:
    """What a model gives for one tile of its size: after NMS, in tile pixels."""
    spec = backend.spec
    outputs = backend.run(np.ascontiguousarray(tile[None]))
    good = (outputs.labels[0] >= 0) & (outputs.scores[0] >= score)
    scores, labels = outputs.scores[0, good], outputs.labels[0, good]
    boxes = np.clip(outputs.boxes[0, good], 0, spec.tile)  # SAHI refuses what reaches beyond
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    if not spec.nms_in_graph and len(scores):
        kept = suppress(boxes, scores, spec.nms_iou, same=labels)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    return boxes, scores, labels
