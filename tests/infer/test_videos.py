"""The command on videos: their files, and resuming after an interruption."""

from __future__ import annotations

import csv
import errno
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.infer.jobs import OutputOptions, plan_jobs
from tinydet.infer.scenes import InferenceRun
from tinydet.infer.settings import Settings
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.runtime.drawing import COLORS
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scenes.sources import find_sources

av = pytest.importorskip("av")
COUNT = 10


def write_clip(path: Path, rotation: int = 0, *, smooth: bool = False, **options: object) -> Path:
    """A white cell that moves right by 16 pixels every second frame, or by 8 in every frame."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 64, "yuv420p", 4_000_000
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this release of PyAV writes no rotation")
            stream.set_display_rotation(rotation)
        for i in range(COUNT):
            pixels = np.zeros((64, 128, 3), np.uint8)
            x = 8 * i if smooth else 16 * (i // 2)
            pixels[16:24, x : x + 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx")
    write_clip(tmp_path / "clip.mp4")
    return tmp_path


def run(*words: object) -> int:
    return main([*map(str, words), "--overlap", "8", "--backend", "onnx", "--score", "0.6"])


def places(path: Path) -> list[tuple]:
    return [(row["image_id"], *row["bbox"][:2]) for row in json.loads(path.read_text())["annotations"]]


def test_bands_of_a_video_are_refused_rather_than_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--image", "clip.mp4", "--bands", "1,2,3") == 2
    assert "videos are always RGB" in capsys.readouterr().err
    assert not list(folder.glob("clip.detections*"))


def test_a_video_gives_results_a_table_of_frames_and_an_annotated_video(folder: Path) -> None:
    assert run("--image", "clip.mp4", "--format", "coco,csv") == 0
    names = ["csv", "frames.csv", "json", "mp4"]
    assert sorted(p.name for p in folder.glob("clip.*.*")) == [f"clip.detections.{name}" for name in names]
    assert places(folder / "clip.detections.json") == [(i + 1, 16 * (i // 2), 16) for i in range(COUNT)]
    capture = cv2.VideoCapture(str(folder / "clip.detections.mp4"))
    for i in range(COUNT):
        ok, bgr = capture.read()
        assert ok
        ring = np.abs(bgr[14:26, :, ::-1].astype(int) - COLORS[0]).sum(-1) < 200
        assert abs(np.flatnonzero(ring.any(axis=0)).mean() - (16 * (i // 2) + 4)) < 8
    assert not capture.read()[0]


def test_tracked_objects_have_their_numbers_in_every_output(folder: Path, capsys) -> None:
    pytest.importorskip("trackers")
    pq = pytest.importorskip("pyarrow.parquet")
    write_clip(folder / "smooth.mp4", smooth=True)
    words = ("--image", "smooth.mp4", "--track", "--summary", "run.json", "--draw", "out.mp4")
    assert run(*words, "--output", "out.json", "--format", "coco,csv,parquet") == 0
    assert "of 1 track in 10 frames" in capsys.readouterr().out
    annotations = json.loads((folder / "out.json").read_text())["annotations"]
    assert [row["track_id"] for row in annotations] == [1] * COUNT
    with (folder / "out.csv").open(newline="") as file:
        assert [row["track_id"] for row in csv.DictReader(file)] == ["1"] * COUNT
    assert pq.read_table("out.parquet")["track_id"].to_pylist() == [1] * COUNT
    assert json.loads((folder / "run.json").read_text())["scenes"][0]["tracks"] == {"square": 1, "bar": 0}
    assert run(*words, "--output", "out.txt", "--format", "mot") == 0
    lines = [line.split(",") for line in (folder / "out.txt").read_text().splitlines()]
    assert [line[:6] for line in lines] == [
        [str(i + 1), "1", f"{8 * i}.000", "16.000", "8.000", "8.000"] for i in range(COUNT)
    ]
    assert all(len(line) == 10 for line in lines)


def test_the_annotated_video_shows_the_path_of_a_tracked_object(folder: Path) -> None:
    pytest.importorskip("trackers")
    write_clip(folder / "smooth.mp4", smooth=True)
    assert run("--image", "smooth.mp4", "--draw", "plain.mp4") == 0
    assert run("--image", "smooth.mp4", "--draw", "tracks.mp4", "--track") == 0
    yellow = {}
    for name in ("plain", "tracks"):
        capture = cv2.VideoCapture(f"{name}.mp4")
        *_, last = (bgr for ok, bgr in iter(capture.read, (False, None)))
        yellow[name] = np.abs(last[20, :, ::-1].astype(int) - COLORS[0]).sum(-1) < 300  # the row of the centers
    assert not yellow["plain"][24:60].any()  # behind the object, which is at x = 72
    assert yellow["tracks"][24:60].mean() > 0.8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["still.png", "--track"], "--track follows objects through a video or stream, and still.png is a still image"),
        (["clip.mp4", "still.png", "--track", "--output", "found/"], "still.png is a still image"),
        (["clip.mp4", "--output", "a.txt", "--format", "mot"], "--format mot holds tracked objects; add --track"),
    ],
)
def test_tracking_of_still_images_is_refused_before_the_work(
    folder: Path, words: list[str], message: str, capsys
) -> None:
    assert cv2.imwrite("still.png", np.zeros((64, 64), np.uint8))
    before = sorted(folder.rglob("*"))
    assert run("--image", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(folder.rglob("*")) == before


def test_only_named_outputs_are_written_and_an_upright_phone_video_stays_upright(folder: Path) -> None:
    write_clip(folder / "phone.mp4", rotation=90)
    before = {path.name for path in folder.iterdir()}
    assert run("--image", "phone.mp4", "--draw", "out.mkv") == 0
    assert {path.name for path in folder.iterdir()} - before == {"out.mkv"}
    with av.open("out.mkv") as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 128)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draw", "out.gif"], "cannot write a video as '.gif'; use .mp4, .mkv, .mov"),
        (["--crops", "out.jpg"], "--crops needs a still image, and clip.mp4 is a video"),
        (
            ["still.png", "--crops", "cr/"],
            "clip.mp4 is a video, so nothing would be written for it; leave",
        ),
        (["still.png", "--crops", "cr/", "--resume"], "clip.mp4 is a video, so nothing would be written for it"),
        (["--output", "a.txt"], "a.txt cannot hold the frames of clip.mp4; write .json, .csv or .parquet"),
        (["still.png", "--output", "all.json"], "name a folder for one file per scene: --output all/"),
    ],
)
def test_impossible_outputs_of_a_video_are_refused_before_the_work(
    folder: Path, words: list[str], message: str, capsys
) -> None:
    assert cv2.imwrite("still.png", np.zeros((64, 64), np.uint8))
    assert run("--image", "clip.mp4", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_damaged_video_in_a_folder_is_skipped_and_named(folder: Path, capsys) -> None:
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:900])
    assert run("--image", "cut.mp4", "clip.mp4", "--output", "found/", "--skip-unreadable") == 3
    assert "  cut.mp4: " in capsys.readouterr().err.partition("1 of 2 scenes was skipped:")[2]
    assert sorted(path.name for path in (folder / "found").iterdir()) == [
        "clip.detections.frames.csv", "clip.detections.json"
    ]  # fmt: skip


@pytest.mark.parametrize("track", [[], ["--track"]])
def test_an_interrupted_video_resumes_and_a_second_run_changes_nothing(
    folder: Path, runs: list[int], track: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    if track:
        pytest.importorskip("trackers")
    outputs = [folder / f"clip.detections.{suffix}" for suffix in ("json", "frames.csv", "mp4")]
    command = ("--image", "clip.mp4", *track)
    assert run(*command) == 0
    expected = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    runs.clear()
    counted = OnnxRuntimeBackend.run

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 6:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", stops)
        assert run(*command, "--resume") == 130
    assert "6 frames are kept in clip.detections.journal; --resume continues" in capsys.readouterr().out
    assert not any(path.exists() for path in outputs)
    assert run(*command, "--resume") == 0
    assert len(runs) == COUNT
    assert "6 frames were finished by an earlier run" in capsys.readouterr().out
    assert [path.read_bytes() for path in outputs] == expected
    changed = [path.stat().st_mtime_ns for path in outputs]
    assert run(*command, "--resume") == 0
    assert "already complete" in capsys.readouterr().out
    assert len(runs) == COUNT
    assert [path.stat().st_mtime_ns for path in outputs] == changed
    assert run(*command, "--resume", "--every", "2") == 2
    assert "every was 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scene", "kept"), [("clip.mp4", "3 frames are kept in"), ("a.png", "12 of 49 tiles are kept")]
)
def test_after_a_failure_the_message_names_the_journal(
    folder: Path, scene: str, kept: str, runs: list[int], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert cv2.imwrite("a.png", np.zeros((400, 400), np.uint8))
    counted = OnnxRuntimeBackend.run

    def fails(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 3:
            raise OSError("CUDA: out of memory")
        return counted(self, images)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", fails)
    assert run("--image", scene, "--output", "found.json") == 2
    captured = capsys.readouterr()
    assert kept in captured.out
    assert "found.journal; --resume continues from there" in captured.out
    assert "out of memory" in captured.err


@pytest.mark.parametrize("track", [[], ["--track"]])
def test_an_interrupted_stream_resumes_with_its_current_frame(
    folder: Path, runs: list[int], track: list[str], capsys
) -> None:
    if track:
        pytest.importorskip("trackers")
    data = write_clip(folder / "live.ts", format="mpegts").read_bytes()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            client, _ = server.accept()
            with client:
                client.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    words = ("--image", f"tcp://127.0.0.1:{server.getsockname()[1]}", "--output", "live.json", "--reconnect", "0")
    words = (*words, *track)
    with server:
        assert run(*words, "--resume") == 0
        before = json.loads((folder / "live.json").read_text())["annotations"]
        (folder / "live.json").unlink()  # as if the run had ended before writing its files
        first = len(runs)
        assert run(*words, "--resume") == 0
        thread.join(10)
    with (folder / "live.frames.csv").open() as file:
        rows = [(int(row["frame"]), float(row["seconds"])) for row in csv.DictReader(file)]
    assert len(rows) == len(runs) > first > 0
    assert rows == sorted(rows)
    assert len(dict(rows)) == len(rows)
    assert f"{first} frames were finished by an earlier run" in capsys.readouterr().out
    after = json.loads((folder / "live.json").read_text())["annotations"]
    assert after[: len(before)] == before  # also the numbers of the objects
    assert ("track_id" in after[0]) == bool(track)


def test_a_lost_stream_leaves_its_files_and_resuming_does_not_replace_its_video(folder: Path, capsys) -> None:
    data = write_clip(folder / "live.ts", format="mpegts").read_bytes()

    def serve_once(port: int = 0) -> tuple[int, threading.Thread]:
        server = socket.create_server(("127.0.0.1", port))

        def serve() -> None:
            client, _ = server.accept()
            server.close()
            with client:
                client.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        return server.getsockname()[1], thread

    port, thread = serve_once()
    words = ["--image", f"tcp://127.0.0.1:{port}", "--output", "live.json", "--draw", "live.mp4", "--resume"]
    assert run(*words, "--reconnect", "0.1") == 2
    assert "check the source" in capsys.readouterr().err
    thread.join()
    first = places(folder / "live.json")
    assert first
    assert cv2.VideoCapture("live.mp4").read()[0]
    _, thread = serve_once(port)
    assert run(*words, "--reconnect", "0") == 2
    assert "live.mp4 shows the frames before the interruption" in capsys.readouterr().err
    thread.join()
    (folder / "live.mp4").rename("before.mp4")
    _, thread = serve_once(port)
    assert run(*words, "--reconnect", "0") == 0
    thread.join()
    assert places(folder / "live.json")[: len(first)] == first
    assert cv2.VideoCapture("live.mp4").read()[0]


def test_the_password_of_a_stream_is_in_no_file_and_no_line(folder: Path, capsys) -> None:
    data = write_clip(folder / "live.ts", format="mpegts").read_bytes()
    (folder / "live.ts").unlink()
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def serve() -> None:
        for _ in range(3):
            client, _ = server.accept()
            with client:
                client.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"tcp://bob:s3cret@127.0.0.1:{port}?token=s3cret"
    with server:
        assert run("--image", address, "--reconnect", "0", "--resume") == 0
        outputs = ("--output", "out.csv", "--format", "csv,coco", "--draw", "out.mp4")
        assert run("--image", address, "--reconnect", "0", "--resume", *outputs) == 0
        assert run("--image", address, address.replace("bob", "eve"), "--output", "out.csv/x/") == 2  # before the work
        with pytest.raises(SystemExit, match="2"):
            run("--image", address, "--tile", address)
        assert run("--image", address, "--crops", "a.jpg") == 2
        with socket.create_connection(("127.0.0.1", port)):
            thread.join(10)
    assert run("--image", address, "--output", "gone.csv") == 2  # no server is listening
    captured = capsys.readouterr()
    assert f"tcp://***@127.0.0.1:{port}?token=***" in captured.out
    assert "s3cret" not in captured.out + captured.err
    written = sorted(path.name for path in folder.rglob("*"))
    assert f"127-0-0-1-{port}-token.detections.json" in written
    assert "out.csv" in written
    for path in folder.rglob("*"):
        assert "s3cret" not in path.name
        assert b"s3cret" not in path.read_bytes()
    with (folder / "out.csv").open() as file:
        assert {row["scene"].partition("#")[0] for row in csv.DictReader(file)} == {
            f"tcp://***@127.0.0.1:{port}?token=***"
        }


def test_streams_whose_addresses_differ_in_the_password_get_files_of_their_own(folder: Path) -> None:
    sources = find_sources([f"rtsp://{user}:pw@host/pier" for user in ("a", "b", "c")] + ["rtsp://host/pier-2"])
    jobs = plan_jobs(sources, OutputOptions("found/")).jobs
    names = [job.results[0].name.removesuffix(".detections.json") for job in jobs]
    assert names == ["host-pier", "host-pier-2", "host-pier-3", "host-pier-2-2"]


def test_each_kind_of_unreadable_video_is_skipped_and_named(folder: Path, capsys) -> None:
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "flight").mkdir()
    (folder / "flight" / "empty.mkv").write_bytes(b"")
    (folder / "flight" / "text.avi").write_text("<html>not found</html>")
    (folder / "flight" / "cut.mov").write_bytes(whole[:900])
    (folder / "flight" / "good.flv").write_bytes(whole)
    write_clip(folder / "late.ts", format="mpegts")
    stream = (folder / "late.ts").read_bytes()
    (folder / "flight" / "headless.ts").write_bytes(stream[:376] + stream[-376:])
    words = ("--image", "flight", "tcp://bob:s3cret@127.0.0.1:1", "--output", "found/", "--reconnect", "0")
    assert run(*words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    run(*words, "--skip-unreadable")
    captured = capsys.readouterr()
    for name in ("empty.mkv", "text.avi", "cut.mov", "headless.ts", "tcp://***@127.0.0.1:1"):
        assert f"{name}: " in captured.out + captured.err
    assert "5 of 6 scenes" in captured.out + captured.err
    assert sorted(path.name for path in (folder / "found").iterdir()) == [
        "good.detections.frames.csv", "good.detections.json"
    ]  # fmt: skip


def test_a_video_that_vanishes_after_it_was_listed_is_skipped(folder: Path, capsys) -> None:
    write_clip(folder / "gone.mp4")
    plan = plan_jobs(find_sources(["gone.mp4", "clip.mp4"]), OutputOptions("found/"))
    (folder / "gone.mp4").unlink()
    backend = OnnxRuntimeBackend(folder / "model.onnx")
    settings = Settings(ScanOptions(8, batch=1), skip_unreadable=True)
    InferenceRun(backend, "hash", settings).run(plan)
    assert sorted(path.name for path in (folder / "found").glob("*.json")) == ["clip.detections.json"]


def test_a_failure_while_the_annotated_video_is_closed_names_the_journal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run("--image", "clip.mp4", "--draw", "out.mp4") == 2
    captured = capsys.readouterr()
    assert "10 frames are kept in out.journal; --resume continues from there" in captured.out
    assert "out.mp4 was not written (No space left on device)" in captured.err
    assert not (folder / "out.mp4").exists()
