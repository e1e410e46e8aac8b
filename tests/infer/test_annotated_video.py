from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.annotated_video import check_video_path, open_video
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import COLORS
from tinydet.runtime.scenes import open_scene

av = pytest.importorskip("av")
TIMES = (0.0, 0.04, 0.5, 0.54)  # a variable frame rate


def detection(box: list[float]) -> Detections:
    zero = np.zeros(1, np.int32)
    return Detections(np.float32([box]), np.float32([0.9]), zero)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_keep_their_time_stamps_and_show_their_boxes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    scene = open_scene(np.full((97, 161, 3), 90, np.uint8))  # odd sides
    with open_video(path, 161, 97) as write:
        for i, seconds in enumerate(TIMES):
            write(scene, detection([20 + 20 * i, 30, 40 + 20 * i, 60]), seconds)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert [frame.time - frames[0].time for frame in frames] == pytest.approx(TIMES, abs=0.002)
    assert (frames[0].width, frames[0].height) == (160, 96)
    yellow = np.array(COLORS[0])
    for i, frame in enumerate(frames):
        near = np.abs(frame.to_ndarray(format="rgb24").astype(int) - yellow).sum(-1) < 180
        columns = np.flatnonzero(near[34:56].any(axis=0))  # rows of the box, below its score
        assert columns.min() == pytest.approx(20 + 20 * i, abs=4)
        assert columns.max() == pytest.approx(40 + 20 * i, abs=4)
    assert cv2.VideoCapture(str(path)).read()[0]


def test_huge_frames_are_shrunk(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with open_video(path, 7000, 100) as write:
        write(open_scene(np.zeros((100, 7000, 3), np.uint8)), detection([10, 10, 20, 20]), 0.0)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_WIDTH) == 3840


def test_boxes_stay_on_their_objects_if_the_frame_size_changes(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with open_video(path, 160, 96) as write:
        for i, (width, height) in enumerate([(160, 96), (320, 96), (96, 160)]):
            box = [width / 4, height / 4, width / 2, height / 2]
            write(open_scene(np.full((height, width, 3), 90, np.uint8)), detection(box), i / 10)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            # The codec blurs colors.
            near = np.abs(frame.to_ndarray(format="rgb24").astype(int) - COLORS[0]).sum(-1) < 220
            columns = np.flatnonzero(near[28:44].any(axis=0))
            rows = np.flatnonzero(near[:, 44:76].any(axis=1))
            assert (columns.min(), columns.max()) == pytest.approx((40, 80), abs=4)
            assert rows.max() == pytest.approx(48, abs=4)


def test_wrong_suffixes_and_repeated_time_stamps_raise_and_leave_no_file(tmp_path: Path) -> None:
    scene = open_scene(np.zeros((64, 64, 3), np.uint8))

    def write_twice_at_one_time() -> None:
        with open_video(tmp_path / "out.mp4", 64, 64) as write:
            write(scene, Detections.empty(), 1.0)
            write(scene, Detections.empty(), 1.0)

    with pytest.raises(ValueError, match="not later than"):
        write_twice_at_one_time()
    with pytest.raises(ValueError, match=r"'\.gif'; use \.mp4"), open_video(tmp_path / "out.gif", 64, 64):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "height"), [(65, 49), (1, 1), (1, 9), (2, 2), (3, 2)])
def test_a_video_of_any_size_can_be_annotated(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with open_video(path, width, height) as write:
        for i in range(2):
            write(open_scene(np.full((height, width, 3), 90, np.uint8)), Detections.empty(), i / 10)
    with av.open(str(path)) as container:
        sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert sizes == 2 * [(max(2, width // 2 * 2), max(2, height // 2 * 2))]


def test_a_missing_encoder_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"ffv1"})
    with pytest.raises(ValueError, match=r"out.mp4: .* encodes neither libx264 nor mpeg4"):
        check_video_path(tmp_path / "out.mp4")
