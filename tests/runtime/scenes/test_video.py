from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime.scenes.scene import DamagedSceneError
from tinydet.runtime.scenes.video import Frame, LostStreamError, Video

av = pytest.importorskip("av")


def write_video(path: Path, count: int = 12, rate: int = 5, rotation: int = 0, **options: object) -> Path:
    """Write gray frames, each 20 levels brighter than the one before, with a white mark in the upper left corner."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this release of PyAV writes no rotation")
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
        for thread in threading.enumerate():
            if thread.name == "tinydet-video":
                thread.join(5)  # the stream ends while the reader holds the first frame
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


def write_clip(
    path: Path,
    stamps: list[int] = [0, 1, 2, 3, 4, 5],  # noqa: B006 - not changed
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    **container_options: object,
) -> Path:
    """Write gray frames of 10 per second, each 20 levels brighter than the one before, at the given time stamps."""
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg without {codec}")
    with av.open(str(path), "w", **container_options) as container:
        stream = add_stream(container, codec, size, pix_fmt, options)
        add_frames(container, stream, stamps)
    return path


def add_stream(
    container: object,
    codec: str,
    size: tuple[int, int],
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> object:
    stream = container.add_stream(codec, rate=10, options=options or {})
    stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
    return stream


def add_frames(container: object, stream: object, stamps: list[int]) -> None:
    for i, stamp in enumerate(stamps):
        frame = av.VideoFrame.from_ndarray(
            np.full((stream.height, stream.width, 3), 20 * i % 240, np.uint8), format="rgb24"
        )
        frame.pts, frame.time_base = stamp, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def read(path: Path) -> list[tuple[float, int]]:
    """The seconds of each frame, and its number from its brightness."""
    with Video(str(path)) as video:
        return [(round(frame.seconds, 3), round(float(frame.scene.read(4, 4, 8, 8).mean()) / 20)) for frame in video]


EVERY_TENTH = [(round(i / 10, 3), i) for i in range(6)]


@pytest.mark.parametrize(
    ("first", "second"),
    [([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [36000, 36001, 36002]), ([36000, 36001, 36002], [7, 8, 9])],
)
def test_times_continue_where_recordings_were_joined(tmp_path: Path, first: list[int], second: list[int]) -> None:
    joined = b"".join(write_clip(tmp_path / "a.ts", stamps).read_bytes() for stamps in (first, second))
    (tmp_path / "joined.ts").write_bytes(joined)
    assert [seconds for seconds, _ in read(tmp_path / "joined.ts")] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_times_continue_when_the_counter_of_mpeg_ts_wraps_around(tmp_path: Path) -> None:
    wrap = 2**33 // 9000  # in tenths of a second
    stamps = [wrap - 100 + 20 * i for i in range(10)]
    assert [seconds for seconds, _ in read(write_clip(tmp_path / "a.ts", stamps))] == [2 * i for i in range(10)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "flv", "nut"])
def test_uneven_frame_times_and_long_pauses_are_kept(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", [0, 1, 5, 6, 20, 300])
    assert [seconds for seconds, _ in read(path)] == [0, 0.1, 0.5, 0.6, 2.0, 30.0]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "libx264"), ("a.h264", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.m4v", "mpeg4"),
     ("a.mxf", "libx264")],
)  # fmt: skip
def test_frames_are_in_order_and_evenly_timed_in_every_container(tmp_path: Path, name: str, codec: str) -> None:
    """H.264 reorders frames; AVI stores no time stamps for that, and raw streams none at all."""
    rate = 25 if name == "a.mxf" else 10
    if rate == 25:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(6):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, np.uint8))))
            container.mux(stream.encode())
    else:
        write_clip(tmp_path / name, codec=codec)
    assert read(tmp_path / name) == [(round(i / rate, 3), i) for i in range(6)]


def test_a_negative_first_time_stamp_is_time_zero(tmp_path: Path) -> None:
    assert read(write_clip(tmp_path / "a.mkv", [-3, -2, -1, 0, 1, 2])) == EVERY_TENTH


def test_the_frame_size_may_change(tmp_path: Path) -> None:
    clips = write_clip(tmp_path / "a.ts", [0, 1]), write_clip(tmp_path / "b.ts", [0, 1], size=(32, 96))
    (tmp_path / "joined.ts").write_bytes(b"".join(clip.read_bytes() for clip in clips))
    with Video(str(tmp_path / "joined.ts")) as video:
        sizes = [(frame.scene.width, frame.scene.height) for frame in video]
    assert sizes == [(64, 48)] * 2 + [(32, 96)] * 2


def test_a_cover_image_is_not_the_video(tmp_path: Path) -> None:
    """A drone writes a JPEG before the video, and marks it as the default stream."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover, video = add_stream(container, "mjpeg", (160, 128), "yuvj420p"), add_stream(container, "mpeg4", (64, 48))
        cover.disposition, video.disposition = 1, 0  # default
        add_frames(container, cover, [0])
        add_frames(container, video, [0, 1, 2])
    assert read(path) == EVERY_TENTH[:3]


def test_a_song_with_a_cover_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound, cover = container.add_stream("aac", rate=8000), add_stream(container, "mjpeg", (64, 48), "yuvj420p")
        cover.disposition = 0x400  # an attached picture
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        add_frames(container, cover, [0])
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(DamagedSceneError, match="only a cover image"):
        Video(str(path))


def test_of_several_cameras_the_largest_is_read_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        small, large = add_stream(container, "mpeg4", (64, 48)), add_stream(container, "mpeg4", (96, 64))
        add_frames(container, small, [0, 1])
        add_frames(container, large, [0, 1, 2])
    with caplog.at_level(logging.INFO, "tinydet"), Video(str(path)) as video:
        assert [frame.scene.width for frame in video] == [96] * 3
    assert "a.mkv: 2 video streams; only stream 1 (96x64) is read" in caplog.text


def test_a_recording_that_begins_between_keyframes_starts_at_the_first_one(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.ts", list(range(12)), options={"g": "6", "bf": "0", "sc_threshold": "0"})
    packets = [whole.read_bytes()[n : n + 188] for n in range(0, whole.stat().st_size, 188)]
    first = next(n for n in range(3, len(packets)) if packets[n][1] & 0x40 and packets[n][1:3] == packets[2][1:3])
    (tmp_path / "cut.ts").write_bytes(b"".join(packets[:2] + packets[first:]))
    assert read(tmp_path / "cut.ts") == [(round(i / 10, 3), 6 + i) for i in range(6)]


def test_a_video_without_a_frame_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.ts", options={"bf": "0"}).read_bytes()
    keyframe = whole.index(b"\0\0\1\x65")
    (tmp_path / "none.ts").write_bytes(whole.replace(whole[keyframe - 600 : keyframe + 30], b"", 1)[188 * 2 :])
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    avi = write_clip(tmp_path / "a.avi", codec="mpeg4").read_bytes()
    (tmp_path / "codec.avi").write_bytes(avi.replace(b"FMP4", b"ZZZZ").replace(b"fmp4", b"ZZZZ"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in (
        ("none.ts", "no frame can be decoded: it has no keyframe"),
        ("audio.mp4", "no video stream"),
        ("codec.avi", "no decoder for its codec, ZZZZ"),
        ("empty.mp4", "cannot be opened as a video"),
    ):
        with (
            pytest.raises(DamagedSceneError, match=f"{name}.*{message}") as error,
            Video(str(tmp_path / name)) as video,
        ):
            list(video)
        assert "\n" not in str(error.value)


def test_a_video_that_is_cut_off_is_read_to_there_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_clip(tmp_path / "a.mkv", list(range(40)), codec="ffv1").read_bytes()
    assert len(read(tmp_path / "a.mkv")) == 40
    assert not caplog.records
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    frames = read(tmp_path / "cut.mkv")
    assert frames == [(round(i / 10, 3), i % 12) for i in range(len(frames))]
    assert 10 < len(frames) < 30
    assert f"cut.mkv: ends after {frames[-1][0]:.1f} s of 4.0 s" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile a.ts\n",
     "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"],
)  # fmt: skip
def test_a_playlist_named_like_a_video_reads_no_other_file(tmp_path: Path, text: str) -> None:
    write_clip(tmp_path / "a.ts")
    for name in ("list.mp4", "list.m3u8"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DamagedSceneError, match="cannot be opened as a video"):
            Video(str(tmp_path / name))


def test_a_file_named_like_a_protocol_of_ffmpeg_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.ts|b.ts", "img%03d.ts", "data:x", b"pl\xe9ge.ts"):
        path = Path(name if isinstance(name, str) else name.decode(errors="surrogateescape"))
        write_clip(tmp_path / "a.ts").rename(path)
        assert read(path) == EVERY_TENTH


def test_no_message_of_a_stream_shows_its_password() -> None:
    with pytest.raises(LostStreamError) as error:
        Video("rtsp://bob:s3cret@127.0.0.1:1/pier?token=s3cret")
    assert str(error.value).startswith("rtsp://***@127.0.0.1:1/pier?token=***: cannot be opened")
    assert "s3cret" not in str(error.value)
    assert isinstance(error.value, DamagedSceneError)  # --skip-unreadable covers it


def reference(frame: object) -> np.ndarray:
    """Convert a frame to RGB through FFmpeg's filters, as its command line does."""
    graph = av.filter.Graph()
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/25"
    source = graph.add("buffer", f"{size}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}")
    nodes = [source, graph.add("scale"), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
    for one, other in itertools.pairwise(nodes):
        one.link_to(other)
    graph.configure()
    source.push(frame)
    return graph.pull().to_ndarray()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p10le", "yuv444p", "gray", "nv12", "yuv420p10le"])
def test_colors_are_those_of_ffmpeg(pix_fmt: str) -> None:
    from tinydet.runtime.scenes.video import _scene

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    colorspaces = (1, 2, 5, 9)  # BT.709, not stated, BT.601, BT.2020
    color_ranges = (0, 1, 2)  # not stated, limited, full
    for stated in itertools.product(colorspaces, color_ranges):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
        frame.colorspace, frame.color_range = stated
        expected = reference(frame)
        frame.colorspace, frame.color_range = stated
        np.testing.assert_array_equal(_scene(frame, "a").read(0, 0, 64, 48), expected, err_msg=str(stated))


@pytest.mark.parametrize("matrix", list(itertools.product((0, 1), (1, -1), (1, -1))))
def test_a_display_matrix_turns_and_mirrors_the_frame(matrix: tuple[int, int, int]) -> None:
    """Every pixel goes where the matrix sends it."""
    from tinydet.runtime.scenes.video import _upright

    swap, p, q = matrix
    a, b, c, d = (0, q, p, 0) if swap else (p, 0, 0, q)
    values = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32)
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = _upright(pixels, values)
    places = {(a * x + c * y, b * x + d * y): pixels[y, x] for x in range(3) for y in range(2)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    for (x, y), value in places.items():
        np.testing.assert_array_equal(turned[y - top, x - left], value)
