"""Measure tracking on synthetic drone videos, whose objects have known identities: MOTA, IDF1, HOTA and ID switches.

    python benchmarks/tracking.py

A video shows textured ground with persons (5 to 8 pixels) and cars (12 to 18 pixels) from a camera that pans, turns,
zooms and shakes. Objects cross each other, pass behind trees, and leave and enter the frame. The video is compressed by
H.264 and decoded again. A simulated detector misses objects, finds some of them weakly, reports false ones, and
displaces boxes. The tracker gets the decoded frames and these detections. Each flight is tracked with and without
compensation of the camera's motion, and with every frame or fewer. TrackEval computes the scores; a box belongs to an
object if their nearness (`tinydet.runtime.tracking.nearness`) is at least 0.5: the IoU of boxes of 6 pixels falls below
0.5 with an error of 2 pixels.

The cost, in CPU time, is measured on larger frames and with more objects. Takes about two minutes of CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from environment import ROOT, environment
from numpy.typing import NDArray

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.video import Video
from tinydet.runtime.tracking import IDENTITY, TRACK, CameraMotion, Tracker, nearness

RATE = 30  # frames per second
GROUND = 2400  # pixels, the side of the ground
PERSON, CAR = 0, 1
SAME = 0.5  # nearness of a box and the object that it shows
SCORE = 0.3  # a strong detection


@dataclass(frozen=True)
class Flight:
    """How a camera moves.

    Attributes:
        pan: pixels per frame.
        turn: degrees per second.
        zoom: amplitude, as a fraction.
        shake: standard deviation of the position of each frame, in pixels.
    """

    pan: float = 0.0
    turn: float = 0.0
    zoom: float = 0.0
    shake: float = 0.0


FLIGHTS = {
    "hovering": Flight(shake=0.3),
    "panning": Flight(pan=6, shake=0.5),
    "turning and zooming": Flight(pan=2, turn=15, zoom=0.25, shake=0.5),
    "shaking": Flight(pan=3, turn=5, zoom=0.1, shake=4),
}


@dataclass(frozen=True)
class Truth:
    """The visible objects of a frame.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the frame.
        labels, ids: (N,) class and identity.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int32]
    ids: NDArray[np.int64]


def fly(
    flight: Flight, *, seed: int, frames: int, size: tuple[int, int], persons: int, cars: int
) -> Iterator[tuple[NDArray[np.uint8], Truth]]:
    """Yield frames (H, W, 3) with their visible objects.

    Args:
        size: width and height of a frame.
    """
    rng = np.random.default_rng(seed)
    ground, trees = _ground(rng)
    count = persons + cars
    labels = np.repeat([PERSON, CAR], [persons, cars]).astype(np.int32)
    length = np.where(labels == PERSON, rng.uniform(5, 8, count), rng.uniform(12, 18, count))
    width = np.where(labels == PERSON, length, length / 2)
    speed = np.where(labels == PERSON, rng.uniform(0, 0.8, count), rng.uniform(0.5, 3.0, count))  # pixels per frame
    heading = rng.uniform(0, 2 * np.pi, count)
    heading[labels == CAR] = rng.choice(4, cars) * np.pi / 2  # streets cross at right angles
    position = rng.uniform(GROUND / 2 - 500, GROUND / 2 + 500, (count, 2))
    shade = np.where(rng.random(count) < 0.5, rng.uniform(10, 50, count), rng.uniform(210, 250, count))
    for t in range(frames):
        heading += np.where(labels == PERSON, rng.normal(0, 0.1, count), 0)
        position += speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        camera = _camera(flight, t, frames, size, rng)
        image = cv2.warpAffine(ground, camera, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        hidden = cv2.warpAffine(trees, camera, size, flags=cv2.INTER_NEAREST)
        corners = _corners(position, heading, length, width) @ camera[:, :2].T + camera[:, 2]  # (N, 4, 2)
        canvas = image.copy()
        for polygon, gray in zip(corners, shade.tolist(), strict=True):
            fixed = np.round(polygon * 16).astype(np.int32)
            cv2.fillConvexPoly(canvas, fixed, (gray, gray, gray), cv2.LINE_AA, 4)
        image = np.where(hidden[..., None] > 0, image, canvas)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        visible = np.array([_visible(box, hidden) for box in boxes]) > 0.5
        yield image, Truth(boxes[visible], labels[visible], np.flatnonzero(visible))


def detect(truth: Truth, rng: np.random.Generator, size: tuple[int, int]) -> Detections:
    """Simulate a detector: 85 % strong detections, 9 % weak ones, 6 % misses, and a false one in every second frame."""
    count = len(truth.boxes)
    chance = rng.random(count)
    seen = chance < 0.94
    scores = np.where(chance < 0.85, rng.uniform(SCORE, 1, count), rng.uniform(SCORE / 3, SCORE, count))
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    error = rng.normal(0, 1, (count, 4)) * (0.3 + 0.05 * np.hstack([sides, sides]))
    false = rng.poisson(0.5)
    center, side = rng.uniform(0, size, (false, 2)), rng.uniform(5, 16, (false, 1))
    boxes = np.concatenate([(truth.boxes + error)[seen], np.hstack([center - side / 2, center + side / 2])])
    found = Detections(
        boxes.astype(np.float32),
        np.concatenate([scores[seen], rng.uniform(SCORE, 0.6, false)]).astype(np.float32),
        np.concatenate([truth.labels[seen], rng.integers(0, 2, false)]).astype(np.int32),
    )
    return found.by_score()


def track(
    path: Path, truths: Sequence[Truth], *, seed: int, every: int = 1, compensate: bool = True
) -> tuple[dict[str, float], float]:
    """Track the objects of a video. Return the scores, and the seconds of CPU time per frame of the tracker."""
    rng = np.random.default_rng(seed)
    tracker, camera, seconds = Tracker([SCORE] * 2), CameraMotion(), 0.0
    results = []
    with Video(str(path)) as video:
        for frame in video:
            found = detect(truths[frame.index], rng, (video.width, video.height))
            if frame.index % every:
                continue
            start = time.process_time()
            motion = camera.update(frame.scene, found.boxes) if compensate else IDENTITY
            tracked = tracker.update(found, frame.seconds, motion)
            seconds += time.process_time() - start
            results.append((truths[frame.index], tracked[tracked.data[TRACK] >= 0]))
    return scores(results), seconds / len(results)


def scores(results: Sequence[tuple[Truth, Detections]]) -> dict[str, float]:
    """Compare tracks with identities by TrackEval, over all classes."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    def dense(ids: list[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], int]:
        known = np.unique(np.concatenate(ids))
        return [np.searchsorted(known, some) for some in ids], len(known)

    gt_ids, objects = dense([truth.ids for truth, _ in results])
    tracker_ids, tracks = dense([found.data[TRACK] for _, found in results])
    data = {
        "gt_ids": gt_ids,
        "tracker_ids": tracker_ids,
        "num_gt_ids": objects,
        "num_tracker_ids": tracks,
        "num_gt_dets": sum(map(len, gt_ids)),
        "num_tracker_dets": sum(map(len, tracker_ids)),
        "num_timesteps": len(results),
        "similarity_scores": [
            np.where(truth.labels[:, None] == found.labels[None], nearness(truth.boxes, found.boxes), 0)
            for truth, found in results
        ],
    }
    options = {"PRINT_CONFIG": False, "THRESHOLD": SAME}
    clear, identity, hota = (metric.eval_sequence(data) for metric in (CLEAR(options), Identity(options), HOTA()))
    return {
        "MOTA": round(float(clear["MOTA"]), 4),
        "IDF1": round(float(identity["IDF1"]), 4),
        "HOTA": round(float(np.mean(hota["HOTA"])), 4),
        "id_switches": int(clear["IDSW"]),
        "objects": objects,
        "tracks": tracks,
        "boxes": data["num_gt_dets"],
    }


def write_video(path: Path, frames: Iterator[tuple[NDArray[np.uint8], Truth]], crf: int = 28) -> list[Truth]:
    """Compress frames by H.264. Return their objects."""
    import av

    truths, stream = [], None
    with av.open(str(path), "w") as container:
        for image, truth in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(RATE))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf), "preset": "veryfast"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            truths.append(truth)
        if stream is not None:
            container.mux(stream.encode())
    return truths


def _ground(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the ground (S, S, 3), and a mask (S, S) of the trees that hide objects."""
    texture = np.zeros((GROUND, GROUND), np.float32)
    for cell in (4, 12, 40, 160, 600):
        noise = rng.normal(0, 1, (GROUND // cell + 2,) * 2).astype(np.float32)
        texture += cv2.resize(noise, (GROUND, GROUND), interpolation=cv2.INTER_CUBIC) * (4 + cell**0.5)
    gray = np.clip(130 + texture, 60, 200).astype(np.uint8)
    image, trees = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), np.zeros((GROUND, GROUND), np.uint8)
    for _ in range(150):
        center, radius = rng.integers(0, GROUND, 2).tolist(), int(rng.integers(8, 22))
        cv2.circle(image, center, radius, rng.integers(40, 90, 3).tolist(), -1)
        cv2.circle(trees, center, radius, 255, -1)
    return image, trees


def _camera(
    flight: Flight, t: int, frames: int, size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the map (2, 3) from the ground to frame `t`."""
    phase = 2 * np.pi * t / frames
    zoom = 1 + flight.zoom * np.sin(2 * phase)
    angle = np.radians(flight.turn) * t / RATE
    reach = flight.pan * frames / (2 * np.pi)  # of a circle that is flown once
    center = GROUND / 2 + reach * np.array([np.cos(phase), np.sin(phase)])
    rotation = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array(size) / 2 - rotation @ center + rng.normal(0, flight.shake, 2)
    return np.hstack([rotation, shift[:, None]])


def _corners(
    position: NDArray[Any], heading: NDArray[Any], length: NDArray[Any], width: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the corners (N, 4, 2) of rectangles."""
    along = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length[:, None] / 2
    across = np.stack([-np.sin(heading), np.cos(heading)], axis=1) * width[:, None] / 2
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return np.stack([position + a * along + b * across for a, b in signs], axis=1)


def _visible(box: NDArray[np.float64], hidden: NDArray[np.uint8]) -> float:
    """Return the fraction of a box that is inside the frame and not hidden."""
    height, width = hidden.shape
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    inside = hidden[max(y1, 0) : max(min(y2, height), 0), max(x1, 0) : max(min(x2, width), 0)]
    return float((inside == 0).sum()) / max((x2 - x1) * (y2 - y1), 1)


def cost(side: tuple[int, int], objects: int) -> dict[str, Any]:
    """Measure the CPU time per frame of the camera's motion and of the tracks, in milliseconds: medians of 6 frames."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(_ground(rng)[0], (side[0] + 40, side[1]), interpolation=cv2.INTER_CUBIC)
    corner = rng.uniform(0, np.array(side) - 12, (objects, 2))
    camera, tracker, times = CameraMotion(), Tracker([SCORE]), []
    for t in range(8):
        scene = open_scene(np.ascontiguousarray(ground[:, 3 * t : 3 * t + side[0]]))
        moved = corner - [3 * t, 0] + rng.normal(0, 0.5, corner.shape)
        boxes = np.hstack([moved, moved + 8]).astype(np.float32)
        found = Detections(boxes, np.full(objects, 0.9, np.float32), np.zeros(objects, np.int32))
        start = time.process_time()
        motion = camera.update(scene, boxes)
        middle = time.process_time()
        tracker.update(found, t / RATE, motion)
        times.append((middle - start, time.process_time() - middle))
    motion_ms, tracks_ms = (1000 * np.median(times[2:], axis=0)).round(1).tolist()
    return {"width": side[0], "height": side[1], "objects": objects, "motion_ms": motion_ms, "tracks_ms": tracks_ms}


@command("benchmarks/tracking.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--frames", type=positive_int, default=300, metavar="N", help="frames of a flight (default: 300)"
    )
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N", help="flights of each kind (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tracking.json",
        metavar="FILE", help="write the results here (default: benchmarks/results/tracking.json)")  # fmt: skip
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"command": "python benchmarks/tracking.py", **environment(), "flights": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, flight in FLIGHTS.items():
            for seed in range(args.seeds):
                path, size = Path(folder) / "flight.mp4", (960, 720)
                truths = write_video(path, fly(flight, seed=seed, frames=args.frames, size=size, persons=40, cars=15))
                for every in (1, 5):
                    for compensate in (True, False):
                        found, seconds = track(path, truths, seed=seed, every=every, compensate=compensate)
                        row = {"flight": name, "seed": seed, "every": every, "compensate": compensate, **found}
                        result["flights"].append({**row, "ms_per_frame": round(1000 * seconds, 1)})
                        print(row, f"{1000 * seconds:.1f} ms", flush=True)
    result["cost"] = [cost(*case) for case in (((1920, 1080), 100), ((3840, 2160), 100), ((7680, 4320), 100),
        ((3840, 2160), 1000), ((3840, 2160), 3000))]  # fmt: skip
    for row in result["cost"]:
        print(row)
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
