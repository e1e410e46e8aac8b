"""Average precision and miss rate by object size, as the TinyPerson benchmark and COCO compute them.

`evaluate_detections` scores COCO results of any framework and needs only numpy. `evaluate_backend` runs a model on a
dataset and scores what it detects. `evaluate` takes paths or loaded objects for both.
"""

from __future__ import annotations

from tinydet.evaluate.protocols import PROTOCOLS, choose_protocol
from tinydet.evaluate.run import evaluate
from tinydet.evaluate.score import Scores, evaluate_detections, score_detections
from tinydet.evaluate.score_model import evaluate_backend

__all__ = [
    "PROTOCOLS",
    "Scores",
    "choose_protocol",
    "evaluate",
    "evaluate_backend",
    "evaluate_detections",
    "score_detections",
]
