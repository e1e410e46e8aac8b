"""Tracking: laws of the numbers that objects get, and of the camera's motion."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

pytest.importorskip("trackers")

from tinydet.runtime import load, open_scene
from tinydet.runtime.detections import Detections
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.score_calibration import minimum_scores
from tinydet.runtime.tracking import (
    CONFIRMED,
    LOST,
    NO_TRACK,
    TRACK,
    CameraMotion,
    Tracker,
    nearness,
    weak_score,
)
from tinydet.spec import ModelSpec

RATE = 25.0


def found(centers: object, *, side: float = 6, scores: object = 0.9, labels: object = 0) -> Detections:
    center = np.asarray(centers, np.float32).reshape(-1, 2)
    boxes = np.hstack([center - side / 2, center + side / 2])
    shape = len(center)
    return Detections(
        boxes, np.broadcast_to(np.float32(scores), shape).copy(), np.broadcast_to(np.int32(labels), shape).copy()
    )


def numbers(tracker: Tracker, frames: list[Detections], step: float = 1 / RATE) -> list[list[int]]:
    return [tracker.update(frame, i * step).data[TRACK].tolist() for i, frame in enumerate(frames)]


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_nearness_is_one_for_equal_boxes_symmetric_and_falls_with_distance_at_any_scale() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (20, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 20, (20, 2))])
    near = nearness(boxes, boxes)
    assert np.diag(near) == pytest.approx(1)
    assert near == pytest.approx(near.T)
    assert nearness(3 * boxes, 3 * boxes) == pytest.approx(near)
    moved = [nearness(boxes[:1], boxes[:1] + shift)[0, 0] for shift in range(5)]
    assert moved == sorted(moved, reverse=True)


def test_tiny_objects_without_overlap_between_frames_keep_their_numbers() -> None:
    frames = [found([[20 + 5 * t, 20], [100, 80 - 5 * t]], side=4) for t in range(12)]  # IoU 0 with the frame before
    assert numbers(Tracker([0.3]), frames) == [[1, 2]] * 12


def test_crossing_objects_do_not_exchange_their_numbers() -> None:
    frames = [found([[10 + 4 * t, 50], [90 - 4 * t, 51]]) for t in range(20)]
    assert numbers(Tracker([0.3]), frames) == [[1, 2]] * 20


def test_an_object_that_appears_later_gets_its_number_with_its_second_detection() -> None:
    assert CONFIRMED == 2
    frames = [found([[20, 20]])] + [found([[20, 20], [60, 60]])] * 3
    assert numbers(Tracker([0.3]), frames) == [[1], [1, NO_TRACK], [1, 2], [1, 2]]


def test_a_false_detection_in_one_frame_gets_no_number() -> None:
    tracker = Tracker([0.3])
    frames = [found([[20, 20], [90, 90]] if t == 3 else [[20, 20]]) for t in range(6)]
    assert max(map(max, numbers(tracker, frames))) == 1
    assert tracker.counts.tolist() == [1]


def test_weak_detections_continue_tracks_but_start_none() -> None:
    scores = [0.9, 0.9, 0.2, 0.9, 0.09, 0.9]
    frames = [found([[20 + t, 20], [90, 90]], scores=[score, 0.2]) for t, score in enumerate(scores)]
    assert numbers(Tracker([0.3]), frames) == [[1], [1], [1], [1], [], [1]]


def test_score_auto_starts_tracks_at_the_thresholds_of_the_model_as_calibrated_scores() -> None:
    # sigmoid(logit(0.5) + 1) = 0.7311
    spec = ModelSpec(("a", "b"), (1, 2), "any", "any", 64, thresholds=(0.5, 0.8), calibration=((1.0, 1.0), (1.0, 0.0)))
    assert minimum_scores(spec, "auto") == pytest.approx([0.7311, 0.8], abs=1e-4)
    assert weak_score(spec, ScanOptions(score="auto")) == pytest.approx(0.7311 / 3, abs=1e-4)
    assert minimum_scores(spec, 0.3).tolist() == [0.3, 0.3]


def test_the_score_that_starts_a_track_is_that_of_the_class() -> None:
    frames = [found([[20, 20], [60, 60]], scores=[0.5, 0.5], labels=[0, 1])] * 3
    tracker = Tracker([0.4, 0.6])
    assert numbers(tracker, frames) == [[1]] * 3
    assert tracker.counts.tolist() == [1, 0]


def test_an_object_that_is_hidden_keeps_its_number_until_it_is_lost() -> None:
    for hidden, expected in ((LOST / 2, 1), (2 * LOST, 2)):
        tracker, after = Tracker([0.3]), 0.4 + hidden
        for i in range(10):
            tracker.update(found([[20 + i, 20]]), i / RATE)
        for t in (after, after + 1 / RATE):
            last = tracker.update(found([[20 + t * RATE, 20]]), t)
        assert last.data[TRACK].tolist() == [expected]


def test_objects_of_different_classes_at_one_place_have_different_numbers() -> None:
    frames = [found([[20, 20], [20, 20]], labels=[0, 1])] * 3
    assert numbers(Tracker([0.3, 0.3]), frames) == [[1, 2]] * 3


def test_skipped_frames_do_not_slow_an_object_down() -> None:
    times = [*range(10), 16, 22, 28, 34]  # with every frame, then every sixth
    tracker = Tracker([0.3])
    results = [tracker.update(found([[20 + 1.5 * t, 20]]), t / RATE).data[TRACK].tolist() for t in times]
    assert results == [[1]] * len(times)


def test_empty_frames_repeated_times_and_no_detections_at_all() -> None:
    tracker = Tracker([0.3])
    assert len(tracker.update(Detections.empty(), 0.0)) == 0
    for seconds in (1.0, 1.0, 0.5, 1.0):  # a source whose time stamps run backwards
        last = tracker.update(found([[20, 20]]), seconds)
    assert last.data[TRACK].tolist() == [1]
    assert TRACK in tracker.update(Detections.empty(), 2.0).data


def test_numbers_do_not_depend_on_earlier_videos() -> None:
    rng = np.random.default_rng(0)
    frames = [found(rng.uniform(0, 60, (30, 2)), scores=rng.uniform(0.1, 1, 30)) for _ in range(8)]
    assert numbers(Tracker([0.3]), frames) == numbers(Tracker([0.3]), frames)


@pytest.mark.parametrize("size", [(320, 240), (2560, 1920)])
def test_the_motion_of_the_camera_is_found_at_any_size_although_objects_move(size: tuple[int, int]) -> None:
    width, height = size
    ground, k = texture(480, 640), width / 320
    truth = np.array([[1.02, -0.03, 3.0], [0.03, 1.02, -2.0]])  # of a frame of 320 pixels
    views = [np.array([[1.0, 0, -100], [0, 1, -80]])]
    views.append(np.vstack([truth, [0, 0, 1]])[:2] @ np.vstack([views[0], [0, 0, 1]]))
    camera = CameraMotion()
    for t, view in enumerate(views):
        image = cv2.warpAffine(ground, view, (320, 240))
        for n in range(6):
            cv2.rectangle(image, (40 * n + 6 * t, 30 * n), (40 * n + 6 * t + 9, 30 * n + 9), (255, 255, 255), -1)
        motion = camera.update(open_scene(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)), np.zeros((0, 4)))
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    expected = corners @ truth[:, :2].T + k * truth[:, 2]
    assert np.abs(corners @ motion[:, :2].T + motion[:, 2] - expected).max() < 0.5 * k


def test_a_camera_that_moves_faster_than_the_objects_are_large_needs_compensation() -> None:
    ground, rng = texture(300, 900), np.random.default_rng(1)
    objects = rng.uniform([150, 20], [400, 180], (8, 2))
    results = {}
    for compensate in (True, False):
        camera, tracker, results[compensate] = CameraMotion(), Tracker([0.3]), set()
        for t in range(10):
            left = (0, 30, 4, 26, 9, 30)[t % 6]  # shakes
            frame = found(objects - [100 + left, 0])
            view = open_scene(np.ascontiguousarray(ground[:200, 100 + left : 500 + left]))
            motion = camera.update(view, frame.boxes)
            tracked = tracker.update(frame, t / RATE, *([motion] if compensate else []))
            results[compensate] |= set(tracked.data[TRACK].tolist())
    assert results[True] == set(range(1, 9))
    assert results[False] != results[True]


def test_featureless_frames_and_changes_of_size_give_a_usable_motion() -> None:
    camera, flat = CameraMotion(), np.full((48, 64, 3), 90, np.uint8)
    nothing = np.zeros((0, 4))
    for _ in range(3):
        assert camera.update(open_scene(flat), nothing) == pytest.approx(np.eye(2, 3))
    assert camera.failed == 2
    assert camera.update(open_scene(texture(96, 128)), nothing) == pytest.approx(np.diag([2.0, 2.0, 0])[:2])
    assert camera.update(open_scene(np.full((1, 1, 3), 9, np.uint8)), nothing).shape == (2, 3)


def test_a_change_of_scene_is_no_motion_of_the_camera() -> None:
    camera, nothing = CameraMotion(), np.zeros((0, 4))
    for seed in range(3):
        assert camera.update(open_scene(texture(240, 320, seed)), nothing) == pytest.approx(np.eye(2, 3))
    assert camera.failed == 2


def test_objects_that_all_move_alike_are_not_taken_for_the_camera() -> None:
    ground = 100 + texture(240, 320) // 16  # weak contrast
    for t, camera in zip(range(2), [CameraMotion()] * 2, strict=True):
        image, boxes = ground.copy(), []
        for n in range(24):
            x, y = 20 + 45 * (n % 6) + 5 * t, 20 + 55 * (n // 6)
            cv2.rectangle(image, (x, y), (x + 8, y + 8), (255, 255, 255), -1)
            boxes.append([x, y, x + 9, y + 9])
        motion = camera.update(open_scene(image), np.array(boxes))
    assert camera.failed == 0
    assert motion == pytest.approx(np.eye(2, 3), abs=0.2)


def test_the_images_of_an_iterable_are_the_frames_of_one_video(make_onnx: Callable, tmp_path) -> None:
    make_onnx(tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx", backend="onnx", overlap=8, score=0.6)
    frames = []
    for t in range(6):
        pixels = np.zeros((64, 128, 3), np.uint8)
        pixels[16:24, 8 * t : 8 * t + 8] = 255
        frames.append(pixels)
    plain = [prediction.tracks for prediction in model.stream(frames)]
    tracked = [prediction.tracks for prediction in model.stream(frames, track=True)]
    assert plain == [None] * 6
    assert all(set(tracks.tolist()) <= {1, 2, 3, NO_TRACK} for tracks in tracked)
    assert len({track for tracks in tracked for track in tracks.tolist() if track > 0}) == 1
