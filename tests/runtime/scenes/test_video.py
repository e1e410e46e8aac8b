from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime.scenes.video import Frame, Video

av = pytest.importorskip("av")


def write_video(path: Path, count: int = 12, rate: int = 5, rotation: int = 0, **options: object) -> Path:
    """Write gray frames, each 20 levels brighter than the one before, with a white mark in the upper left corner."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(count):
            pixels = np.full((64, 96, 3), 20 * i % 256, np.uint8)
            pixels[:16, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shade(frame: Frame) -> int:
    """The number of a frame that `write_video` wrote, from its brightness."""
    return round(float(frame.scene.read(40, 20, 40, 30).mean()) / 20)


def test_a_file_yields_every_frame_with_its_time(tmp_path: Path) -> None:
    with Video(str(write_video(tmp_path / "a.mp4"))) as video:
        assert (video.width, video.height, video.frames, video.live) == (96, 64, 12, False)
        frames = list(video)
    assert [frame.index for frame in frames] == list(range(12))
    assert [shade(frame) for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([i / 5 for i in range(12)])
    assert frames[3].scene.name.endswith("a.mp4#3")
    assert frames[0].clock is None


def test_skipped_frames_keep_their_numbers_and_times(tmp_path: Path) -> None:
    with Video(str(write_video(tmp_path / "a.mp4")), every=5) as video:
        assert video.frames == 3
        frames = list(video)
    assert [(frame.index, shade(frame)) for frame in frames] == [(0, 0), (5, 5), (10, 10)]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, -1)), (-90, (-1, 0)), (180, (-1, -1))])
def test_rotated_videos_give_upright_frames(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """A counterclockwise rotation by 90 degrees moves the mark from the upper left to the lower left."""
    with Video(str(write_video(tmp_path / "a.mp4", 2, rotation=rotation))) as video:
        frame = next(iter(video))
    pixels = frame.scene.read(0, 0, frame.scene.width, frame.scene.height)
    assert pixels.shape[:2] == ((64, 96) if rotation == 180 else (96, 64))
    marked = {90: pixels[-8:, :8], -90: pixels[:8, -8:], 180: pixels[-8:, -8:]}[rotation]
    assert marked.mean() > 200


def test_decoding_a_file_waits_for_a_slow_reader(tmp_path: Path) -> None:
    with Video(str(write_video(tmp_path / "a.mp4", 30))) as video:
        frames = iter(video)
        taken = [next(frames)]
        (decoder,) = [thread for thread in threading.enumerate() if thread.name == "tinydet-video"]
        decoder.join(0.2)
        assert decoder.is_alive()  # it waits: the number of frames decoded ahead is bounded
        taken += list(frames)
    assert [frame.index for frame in taken] == list(range(30))
    assert video.dropped == 0


def test_stopping_early_ends_the_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with Video(str(write_video(tmp_path / "a.mp4", 30))) as video:
        frames = iter(video)
        next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A local server of a live stream that closes each connection after one pass, and a list of its connections."""
    data = write_video(tmp_path / "live.ts", 8, format="mpegts").read_bytes()
    server = socket.create_server(("127.0.0.1", 0))
    calls: list[int] = []

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:  # closed
                return
            calls.append(1)
            with client, contextlib.suppress(OSError):
                client.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{server.getsockname()[1]}", calls
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_broken_live_source_is_reopened_and_its_numbers_and_times_continue(
    camera: tuple[str, list[int]],
) -> None:
    url, calls = camera
    with Video(url) as video:
        assert video.live
        assert video.frames == 0
        frames = []
        for frame in video:
            frames.append(frame)
            if video.reconnects == 2:
                break
    assert len(calls) >= 3
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] >= 8
    assert all(later.seconds >= earlier.seconds for earlier, later in itertools.pairwise(frames))
    assert all(frame.clock is not None and frame.clock.tzinfo is not None for frame in frames)


def test_a_slow_reader_of_a_live_source_gets_the_newest_frame_and_a_count_of_the_others(
    camera: tuple[str, list[int]],
) -> None:
    with Video(camera[0], reconnect=0) as video:
        frames = iter(video)
        first = next(frames)
        (decoder,) = [thread for thread in threading.enumerate() if thread.name == "tinydet-video"]
        decoder.join(5)  # the stream ends while the reader holds the first frame
        rest = list(frames)
    assert [frame.index for frame in rest] == [7]
    assert video.dropped == 6 - first.index
    assert len(camera[1]) == 1


def test_a_live_source_that_cannot_be_reopened_is_an_error(camera: tuple[str, list[int]]) -> None:
    url, _ = camera
    with Video(url, reconnect=0.5) as video:
        video._location = "tcp://127.0.0.1:1"  # no server
        with pytest.raises(OSError, match="no frame for 0 s.*check the source"):
            list(video)


def test_a_damaged_video_is_refused_by_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    whole = path.read_bytes()
    (tmp_path / "text.mp4").write_text("<html>not found</html>")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=f"{name}: cannot be opened as a video") as error:
            Video(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="gone.mp4"):
        Video(str(tmp_path / "gone.mp4"))
    with pytest.raises(ValueError, match="n at least 1, got 0"):
        Video(str(path), every=0)
