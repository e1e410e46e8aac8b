"""Warnings about scenes that differ from the training images of the model, and about doubtful scores."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from tinydet._internal.console import plural
from tinydet.infer.settings import Settings
from tinydet.infer.summary import RunSummary
from tinydet.runtime.domain import doubt, doubtful_below, gsd_of, unlike_training
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.score_calibration import minimum_scores
from tinydet.spec import ModelSpec

logger = logging.getLogger("tinydet.infer")

ROUNDING = 1e-6  # of a score in float32


class DomainWarnings:
    """Names the first scene of a run that differs from the training images, and counts the others.

    Attributes:
        doubtful: (2, C) scores of doubtful detections of each class: from the first to below the second.
    """

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self._spec, self._settings = spec, settings
        thresholds = minimum_scores(spec, settings.options.score)
        self._doubtful_below = [doubtful_below(each) for each in thresholds.tolist()]
        # Tracking keeps weaker detections, which continue a track. Rounding may put a score just below its threshold.
        self.doubtful = np.array([thresholds - ROUNDING, self._doubtful_below])
        self._shown = 0

    def check(self, scene: Scene, scale: float, path: Path | None = None) -> str:
        """Say how a scene differs from the training images; an empty text if it does not.

        Args:
            scale: resize factor of its scan.
            path: of its file, for the metadata of the camera.
        """
        if self._spec.domain is None:
            return ""
        gsd = self._settings.gsd
        if gsd is None:
            gsd = gsd_of(scene, None if path is None else read_camera(path))
        return unlike_training(scene, self._spec, gsd=gsd, scale=scale)

    def show(self, warning: str) -> None:
        """Log the first of the warnings, and count the others."""
        if warning and not self._shown:
            logger.warning(warning)
        self._shown += bool(warning)

    def end(self, summary: RunSummary) -> None:
        """Log how many scenes differ if there are several, and whether most detections are doubtful."""
        if self._shown > 1:
            scenes = plural(summary.images + summary.videos, "scene")
            logger.warning(
                f"{self._shown} of {scenes} are unlike the training images of the model; the first is named above, and "
                "--summary FILE lists all"
            )
        total = summary.total
        if warning := doubt(total.doubtful, int(total.by_class.sum()), self._doubtful_below):
            logger.warning(warning)
            summary.warnings.append(warning)
