"""Calibrated scores, and score thresholds of each class: from the scores of a graph to those of a result.

The calibrated score of a class is sigmoid(slope * logit(score) + offset): Platt scaling of the logit (Platt 1999, Guo
et al. 2017), which is temperature scaling for an offset of 0. The slope is above 0, so the order of the detections of a
class does not change. It is applied to the boxes of a scene after stitching: NMS and seams see the scores of the graph,
and keep the same boxes with and without a calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.shell import tinydet_command
from tinydet.spec import ModelSpec

Line = tuple[float, float]  # slope, offset
IDENTITY: Line = (1.0, 0.0)
LIMITS = (2.0**-25, 1 - 2.0**-25)  # logits are finite, and all float32 scores between them stay distinct


def logit(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return log(s / (1 - s)), with scores of 0 and 1 replaced by the nearest values with a finite logit."""
    inside = np.clip(np.asarray(scores, np.float64), *LIMITS)
    return np.log(inside) - np.log1p(-inside)


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-v)).

    >>> sigmoid(np.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    small = np.exp(-np.abs(values))
    result: NDArray[np.float64] = np.where(values >= 0, 1.0, small) / (1 + small)
    return result


def calibrate(scores: NDArray[Any], labels: NDArray[Any], lines: Sequence[Line]) -> NDArray[np.float64]:
    """Return the calibrated scores (N,) of detections.

    Args:
        scores: (N,) of the graph.
        labels: (N,) index of the class.
        lines: slope and offset of each class; empty for scores as they are.
    """
    if not len(lines):
        return np.asarray(scores, np.float64)
    slope, offset = np.array(lines, np.float64)[labels].reshape(-1, 2).T
    return sigmoid(slope * logit(scores) + offset)


def graph_score(score: float, line: Line) -> float:
    """Return the score of the graph whose calibrated score is `score`; 0 and 1 stay.

    >>> round(graph_score(0.5, (2.0, 1.0)), 4), graph_score(0.0, (2.0, 1.0))
    (0.3775, 0.0)
    """
    if line == IDENTITY or not 0 < score < 1:
        return score
    slope, offset = line
    return float(sigmoid((logit(np.array([score])) - offset) / slope)[0])


def score_thresholds(spec: ModelSpec, score: float | Literal["auto"]) -> NDArray[np.float32]:
    """Return (C,) the score of the graph from which on detections of each class are kept.

    Args:
        score: as in `ScanOptions`: minimum of the calibrated score, or "auto" for the thresholds of the model.

    Raises:
        ValueError: the model has no thresholds.
    """
    if score == "auto":
        if not spec.thresholds:
            choose = tinydet_command("evaluate", "--model", "MODEL", "--data", "DATA", "--operating-point", "f1")
            raise ValueError(
                "score auto needs score thresholds in the model, and it has none; give a number, or choose and store "
                f"them: {choose} --store MODEL"
            )
        return np.array(spec.thresholds, np.float32)
    lines = spec.calibration or (IDENTITY,) * len(spec.classes)
    return np.array([graph_score(score, line) for line in lines], np.float32)


def minimum_scores(spec: ModelSpec, score: float | Literal["auto"]) -> NDArray[np.float64]:
    """Return (C,) the lowest score that a detection of each class has in a result: `score_thresholds`, calibrated.

    Raises:
        ValueError: the score is "auto", and the model has no thresholds.
    """
    if score == "auto":
        thresholds = score_thresholds(spec, score)
        return calibrate(thresholds, np.arange(len(thresholds)), spec.calibration)
    return np.full(len(spec.classes), float(score))


def describe_thresholds(spec: ModelSpec) -> str:
    """Return the thresholds of the model as one line, as scores of results: "person >= 0.43, car >= 0.38 (F1)".

    >>> describe_thresholds(ModelSpec(("person", "car"), (1, 2), "any", "any", 640, thresholds=(0.43, 0.38)))
    'person >= 0.43, car >= 0.38'
    """
    scores = minimum_scores(spec, "auto")
    text = ", ".join(f"{name} >= {score:.3g}" for name, score in zip(spec.classes, scores, strict=True))
    return f"{text} ({spec.operating_point})" if spec.operating_point else text
