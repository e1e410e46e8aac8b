"""Scoring: average precision and miss rate by object size, as the TinyPerson benchmark and COCO compute them.

numpy only. `evaluate_detections` scores COCO results, `evaluate_backend` runs a model over a data set first.
"""

from __future__ import annotations

from tinydet.evaluate.dataset import evaluate_backend
from tinydet.evaluate.protocols import PROTOCOLS, choose_protocol
from tinydet.evaluate.score import evaluate_detections, score_detections

__all__ = ["PROTOCOLS", "choose_protocol", "evaluate_backend", "evaluate_detections", "score_detections"]
