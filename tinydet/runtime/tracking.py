"""Follow objects through the frames of a video: give the detections of one object one number.

The tracker is BoT-SORT (Aharon et al., 2022) as the package `trackers` implements it: a Kalman filter for each object,
optimal assignment of detections to predicted boxes, a second assignment for weak detections, and compensation of the
camera's motion. What differs here is for tiny objects and drones:

- Boxes of a few pixels rarely overlap from frame to frame, so boxes are compared by the distance between them relative
  to their size (`nearness`), not by IoU.
- The motion of the camera is estimated on a reduced frame without the detections, so its cost is bounded, and objects
  that all move do not count as the camera.
- Predictions depend on the time between two frames, so skipped and dropped frames do not slow the objects down.
- Objects of different classes never share a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.runtime.detections import Detections
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scenes import Scene
from tinydet.runtime.score_calibration import minimum_scores
from tinydet.spec import ModelSpec

TRACK = "track"  # column of `Detections.data`
NO_TRACK = -1  # in that column: the detection belongs to no track, or its track is not confirmed yet
WEAK = 1 / 3  # of the minimum score of a class; a detection from here up may continue a track but not start one
LOST = 2.0  # seconds for which a track without detections is kept
CONFIRMED = 2  # detections after which a track gets its number
MOTION_SIDE = 960  # pixels; larger frames are reduced to this side to estimate the motion of the camera
CORNERS = 600  # points that are followed from frame to frame to estimate it
SPACING = 8  # pixels of the reduced frame between two points, so that one rich corner does not hold all of them
QUALITY = 0.01  # of the weakest corner, relative to the strongest
MARGIN = 2  # pixels of the reduced frame around a detection in which no corner is taken
TOLERANCE = 1.5  # pixels of the reduced frame; a corner agrees with a motion that explains its place so exactly
FEWEST, AGREEING = 8, 0.25  # corners, and the fraction of all corners, that must agree
SMALLEST = 4.0  # pixels; boxes are compared as if they were at least this large, because detectors are not more exact
NEAR, NEAR_WEAK = 0.2, 0.4  # smallest nearness of two boxes of one object; of a weak detection and its track
REFERENCE_RATE = 30.0  # frames per second for which BoT-SORT's noise constants were chosen

Affine = NDArray[np.float64]  # (2, 3): x' = m[0, 0] x + m[0, 1] y + m[0, 2], and y' by the second row
IDENTITY: Affine = np.eye(2, 3)


def nearness(one: NDArray[Any], two: NDArray[Any]) -> NDArray[np.float64]:
    """Compare boxes by exp(-W / s): W is the Wasserstein distance of Xu et al. (2022), s the geometric mean size.

    Equal boxes have 1. For equal sizes W is the distance of the centers, so boxes next to each other have exp(-1).

    >>> nearness(np.array([[0, 0, 8, 8]]), np.array([[0, 0, 8, 8], [8, 0, 16, 8]])).round(2).tolist()
    [[1.0, 0.37]]

    Args:
        one: (N, 4) xyxy. two: (M, 4) xyxy.

    Returns:
        (N, M), 0 to 1.
    """
    a, b = (_gaussians(boxes) for boxes in (one, two))
    squared = np.zeros((len(a), len(b)))
    for k in range(4):
        squared += (a[:, None, k] - b[None, :, k]) ** 2
    sizes = [np.maximum(np.sqrt(np.maximum(4 * g[:, 2] * g[:, 3], 0)), SMALLEST) for g in (a, b)]
    result: NDArray[np.float64] = np.exp(-np.sqrt(squared / (sizes[0][:, None] * sizes[1][None])))
    return result


def weak_score(spec: ModelSpec, options: ScanOptions) -> float:
    """Return the minimum score of a scan that also finds the weak detections of tracks."""
    return WEAK * float(minimum_scores(spec, options.score).min())


def check_tracking() -> None:
    """Raise ModuleNotFoundError if `trackers` is not installed. Call it before the work."""
    with needs_extra("track"):
        import trackers  # noqa: F401


class CameraMotion:
    """Estimates how the image moves between consecutive frames, because the camera moves.

    Corners are followed by sparse optical flow. The motion is the similarity (shift, rotation and zoom) that most of
    them agree on. Detections are left out, so it is the motion of the ground, also if only objects have contrast.

    Attributes:
        failed: number of frames so far whose motion could not be estimated.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._size: tuple[int, int] | None = None
        self._gray: NDArray[np.uint8] = np.zeros((1, 1), np.uint8)
        self._corners: NDArray[np.float32] | None = None  # (P, 1, 2) in pixels of the reduced previous frame

    def update(self, scene: Scene, boxes: NDArray[Any]) -> Affine:
        """Return the map from pixels of the previous frame to pixels of this one.

        If the motion cannot be estimated, it is the identity; if the frame has another size, the change of scale.

        Args:
            scene: the frame.
            boxes: (N, 4) xyxy of its detections.
        """
        size = scene.width, scene.height
        shrink = min(1.0, MOTION_SIDE / max(size))
        reduced = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
        gray: Any = cv2.cvtColor(scene.read(0, 0, *size, reduced), cv2.COLOR_RGB2GRAY)
        scale = np.array(reduced) / size
        previous, self._size = self._size, size
        motion = IDENTITY.copy()
        if previous is not None and previous != size:
            motion[:, :2] = np.diag(np.array(size) / previous)
        elif previous is not None:
            found = self._similarity(gray)
            if found is None:
                self.failed += 1
            else:  # from pixels of the reduced frame to pixels of the frame
                motion = np.hstack([found[:, :2] * scale / scale[:, None], found[:, 2:] / scale[:, None]])
        ground = np.full(gray.shape, 255, np.uint8)
        low, high = np.floor(boxes[:, :2] * scale) - MARGIN, np.ceil(boxes[:, 2:] * scale) + MARGIN
        for x1, y1, x2, y2 in np.maximum(np.hstack([low, high]), 0).astype(int).tolist():
            ground[y1:y2, x1:x2] = 0
        corners: Any = cv2.goodFeaturesToTrack(gray, CORNERS, QUALITY, SPACING, mask=ground)
        self._gray, self._corners = gray, corners
        return motion

    def _similarity(self, gray: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return the map (2, 3) from the previous reduced frame to this one; None if too few corners agree."""
        if self._corners is None or len(self._corners) < FEWEST:
            return None
        moved, status, _ = cv2.calcOpticalFlowPyrLK(self._gray, gray, self._corners, None)  # type: ignore[call-overload]
        seen = status.ravel() > 0
        if seen.sum() < FEWEST:
            return None
        found, agree = cv2.estimateAffinePartial2D(self._corners[seen], moved[seen], ransacReprojThreshold=TOLERANCE)
        if found is None or agree.sum() < max(FEWEST, AGREEING * len(self._corners)):
            return None
        return np.asarray(found, np.float64)


class Tracker:
    """Numbers the objects of one video, from 1 in the order of their appearance.

    Attributes:
        counts: (C,) number of objects of each class so far.
    """

    def __init__(self, scores: Sequence[float] | NDArray[Any]) -> None:
        """
        Args:
            scores: for each class, the score from which on a detection may start a track. Weaker ones, down to `WEAK`
                of this score, may continue a track.

        Raises:
            ModuleNotFoundError: `trackers` is not installed.
        """
        with needs_extra("track"):
            import supervision
            from trackers import CMC, BaseIoU, BoTSORTTracker

        class Nearness(BaseIoU):
            def _compute(self, boxes_1: NDArray[Any], boxes_2: NDArray[Any]) -> NDArray[np.float64]:
                return nearness(boxes_1, boxes_2)

        def new(*, first: bool) -> Any:
            return BoTSORTTracker(
                lost_track_buffer=round(LOST * 30),  # the package counts frames of 1/30 s
                frame_rate=REFERENCE_RATE,
                minimum_consecutive_frames=CONFIRMED,
                instant_first_frame_activation=first,
                # Detections are passed as 1 (strong) or 0.5 (weak), whatever the scale of the model's scores.
                track_activation_threshold=0.75,
                high_conf_det_threshold=0.75,
                minimum_iou_threshold_first_assoc=NEAR,
                minimum_iou_threshold_second_assoc=NEAR_WEAK,
                minimum_iou_threshold_unconfirmed_assoc=NEAR,
                enable_cmc=False,  # see `update`
                iou=Nearness(),
            )

        self.counts = np.zeros(len(scores), np.int64)
        self._scores = np.asarray(scores, np.float64)
        self._new = new
        self._detections, self._move = supervision.Detections, CMC.apply_batch
        self._by_class: dict[int, Any] = {}
        self._numbers: dict[tuple[int, int], int] = {}  # by class and the number that its tracker gave
        self._seconds: float | None = None

    def update(self, found: Detections, seconds: float, motion: Affine = IDENTITY) -> Detections:
        """Return the detections of the next frame with their numbers in the column `track`, in the same order.

        Weak detections that continue no track are left out. `NO_TRACK` marks strong ones that have no number yet: an
        object gets its number with its second detection, or at once in the first frame.

        Args:
            found: detections of the frame, in its pixels.
            seconds: time of the frame.
            motion: of the camera, from the previous frame to this one.
        """
        found = found[found.scores >= WEAK * self._scores[found.labels]]
        strong = found.scores >= self._scores[found.labels]
        first = self._seconds is None
        # The time stamps of some sources repeat or run backwards.
        self._seconds = seconds if self._seconds is None else max(seconds, self._seconds + 0.001)
        numbers = np.full(len(found), NO_TRACK, np.int64)
        for label in sorted({*self._by_class, *found.labels.tolist()}):
            tracker = self._by_class.get(label)
            if tracker is None:
                tracker = self._by_class[label] = self._new(first=first)
            which = np.flatnonzero(found.labels == label)
            # Before the package predicts: moving a state and predicting it commute, as both are linear.
            self._move(motion, tracker.tracks)
            tracked = tracker.update(
                self._detections(
                    xyxy=found.boxes[which].astype(np.float64),
                    confidence=np.where(strong[which], 1.0, 0.5),
                    data={"index": which},
                ),
                timestamp=self._seconds,
            )
            if len(tracked):
                numbers[tracked.data["index"]] = tracked.tracker_id
            for i in which[numbers[which] >= 0].tolist():
                key = label, int(numbers[i])
                if key not in self._numbers:
                    self.counts[label] += 1
                    self._numbers[key] = int(self.counts.sum())
                numbers[i] = self._numbers[key]
        alive = {(label, track.tracker_id) for label, tracker in self._by_class.items() for track in tracker.tracks}
        self._numbers = {key: number for key, number in self._numbers.items() if key in alive}
        kept = strong | (numbers != NO_TRACK)
        return replace(found, data={**found.data, TRACK: numbers})[kept]


class VideoTracker:
    """Numbers the objects of one video from its frames and their detections.

    Attributes:
        options: how to scan the frames.
    """

    def __init__(self, spec: ModelSpec, options: ScanOptions) -> None:
        """
        Args:
            options: whose `score` is that of the detections that may start a track.

        Raises:
            ModuleNotFoundError: `trackers` is not installed.
        """
        self.options = replace(options, score=weak_score(spec, options))
        self._tracker, self._camera = Tracker(minimum_scores(spec, options.score)), CameraMotion()

    def update(self, scene: Scene, found: Detections, seconds: float) -> Detections:
        """Return the detections of the next frame as `Tracker.update` does."""
        return self._tracker.update(found, seconds, self._camera.update(scene, found.boxes))


def _gaussians(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N, 4): the center of each box, and half of its width and height, the scale of its Gaussian."""
    boxes = np.asarray(boxes, np.float64)
    return np.hstack([boxes[:, :2] + boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]]) / 2
