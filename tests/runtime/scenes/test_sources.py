from __future__ import annotations

import base64
import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydet.runtime.scenes.signatures import HEAD, is_motion_jpeg, media_kind
from tinydet.runtime.scenes.sources import IMAGES, VIDEOS, Source, find_sources, is_stream, shortened


@pytest.fixture
def flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a drone flight that also holds outputs of an earlier run."""
    for name in ("b.JPG", "a.tif", "deep/c.png", "clip.mp4", "notes.txt", "a.detections.jpg", "a.detections.json",
                 ".hidden.png", "clip.detections.mp4"):  # fmt: skip
        path = tmp_path / "flight" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return Path("flight")


def names(sources: list[Source]) -> list[str]:
    return [Path(source.location).name for source in sources]


def test_a_folder_gives_its_images_and_videos_sorted_without_our_outputs(flight: Path) -> None:
    sources = find_sources([flight], first_id=5)
    assert names(sources) == ["a.tif", "b.JPG", "clip.mp4", "c.png"]
    assert [source.image_id for source in sources] == [5, 6, 7, 8]
    assert [source.moving for source in sources] == [False, False, True, False]


def test_a_pattern_is_expanded_as_by_glob(flight: Path) -> None:
    assert names(find_sources(["flight/*.*"])) == ["a.tif", "b.JPG", "clip.mp4", "notes.txt"]
    assert names(find_sources(["flight/**/*.png"])) == ["c.png"]
    assert names(find_sources(["flight/[ab].*"])) == ["a.tif", "b.JPG"]


def test_an_existing_file_is_not_taken_for_a_pattern(flight: Path) -> None:
    (flight / "scene[1].png").write_bytes(b"x")
    assert names(find_sources(["flight/scene[1].png"])) == ["scene[1].png"]


def test_repeated_files_are_dropped_and_named_files_may_have_any_suffix(flight: Path) -> None:
    sources = find_sources([flight / "notes.txt", flight / "a.tif", flight])
    assert names(sources) == ["notes.txt", "a.tif", "b.JPG", "clip.mp4", "c.png"]
    assert len({source.image_id for source in sources}) == 5


@pytest.mark.parametrize(
    ("location", "name"),
    [("rtsp://10.0.0.1:554/pier", "10-0-0-1-554-pier"), ("0", "0"), ("/dev/video3", "dev-video3")],
)
def test_streams_and_webcams_are_distinguished_from_files(
    location: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = find_sources([location])
    assert source == Source(location, 1, moving=True, file_name=location)
    assert source.name == name
    assert not is_stream("C:/scene.tif")


def test_an_existing_file_named_like_a_webcam_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").write_bytes(b"x")
    assert find_sources(["7"]) == [Source("7", 1, moving=False, file_name="7")]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("empty", "empty is a folder without images"),
        ("flight/*.webp", r"no file matches flight/\*.webp; quote the pattern"),
        ("gone.tif", "gone.tif does not exist"),
    ],
)
def test_a_source_without_scenes_is_refused(flight: Path, word: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_sources([word])


# The first bytes of files, written by FFmpeg and by cameras, and of images that nothing here can write.
HEADS = {
    "video": [
        b"\0\0\0\x1cftypisom\0\0\2\0", b"\0\0\0\x14ftypqt  ", b"\0\0\0\x14ftyp3gp6", b"\0\0\0\x08wide\0\0\1\0mdat",
        b"\x1aE\xdf\xa3\xa3B\x86\x81\x01", b"RIFF\x0e\x19\0\0AVI LIST", b"FLV\1\1\0\0\0\t", b"OggS\0\2",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\6\x0e\x2b\x34\2\5\1\1", b"\0\0\1\xbaD\0", b"\0\0\1\xb3\4\0", b"IMKH",
        b"\0\0\0\1gd\0\n", b"\0\0\1gd\0\n", b"\0\0\0\1@\1\x0c", b"DKIF\0\0", b"YUV4MPEG2 W64", b"DHAV",
        (b"G" + bytes(187)) * 3, (bytes(4) + b"G" + bytes(187)) * 3, (b"G" + bytes(203)) * 3,
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x18ftypmjp2",
    ],
    "image": [
        b"II*\0\x10\0\0\0", b"MM\0+\0\x08", b"\0\0\0\x18ftypheic\0\0", b"\0\0\0\x1cftypavif", b"\0\0\0\x18ftypmif1",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", b"\xffO\xffQ\0", b"P5\n64 48", b"P7\nWIDTH", b"EHFA_HEADER_TAG",
        b"NITF02.10", b'<VRTDataset rasterXSize="1"', b'\xef\xbb\xbf<?xml version="1.0"?>\n<VRTDataset', b"\0\0\1\0\1",
    ],
    None: [b"", b"hello", b"<html>", b"BMW is a car.", b"RIFF\0\0\0\0WAVE", b"G is a letter" * 40, b"ID3", b"Pyramid"],
}  # fmt: skip


@pytest.mark.parametrize(("head", "kind"), [(head, kind) for kind, heads in HEADS.items() for head in heads])
def test_first_bytes_tell_videos_from_images(head: bytes, kind: str | None) -> None:
    assert media_kind(head) == kind


@pytest.mark.parametrize("form", ["jpeg", "png", "gif", "bmp", "webp", "tiff", "ppm", "jpeg2000", "avif", "ico"])
def test_an_image_is_never_taken_for_a_video_whatever_its_suffix(form: str, tmp_path: Path) -> None:
    for suffix in (".mp4", ".ts", ".MJPG", ".jpg", "", ".unknown"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"a{suffix}", form)
        assert not find_sources([tmp_path / f"a{suffix}"])[0].moving


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", "mpeg4"), ("mov", "mpeg4"), ("3gp", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4"),
     ("flv", "flv"), ("mpegts", "mpeg2video"), ("vob", "mpeg2video"), ("mpeg2video", "mpeg2video"),
     ("mxf", "mpeg2video"), ("h264", "libx264"), ("asf", "wmv2"), ("ogg", "libvpx"), ("ivf", "libvpx"),
     ("mjpeg", "mjpeg"), ("nut", "mpeg4")],
)  # fmt: skip
def test_a_video_is_recognized_whatever_its_suffix(form: str, codec: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg without {codec}")
    with av.open(str(tmp_path / "clip"), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, stream.pix_fmt)))
        container.mux(stream.encode())
    data = (tmp_path / "clip").read_bytes()
    for suffix in ("", ".mp4", ".PNG", ".unknown"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        assert find_sources([path])[0].moving


def test_several_jpeg_images_are_a_video_unless_they_are_a_multi_picture_file(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "b.mpo", save_all=True, append_images=[image])
    one, several = (tmp_path / "a.jpg").read_bytes(), (tmp_path / "b.mpo").read_bytes()
    assert len(several) > 2 * len(one) - 100
    assert not is_motion_jpeg(one)
    assert not is_motion_jpeg(one + b"MotionPhoto")
    assert not is_motion_jpeg(several)
    assert is_motion_jpeg(2 * one)


def test_what_is_not_recognized_goes_by_its_suffix(flight: Path) -> None:
    (flight / "a.ts").write_bytes(b"cut in the middle of a packet")
    assert [find_sources([flight / name])[0].moving for name in ("a.ts", "clip.mp4", "b.JPG")] == [True, True, False]


def test_other_files_of_a_folder_are_counted_and_obvious_ones_are_not(
    flight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (flight / "b.JPG").rename(flight / "b.jfif")
    assert len(find_sources([flight])) == 4
    assert not caplog.records
    for name in ("a.HEIC", "b.heic", "c.dng", "d.pdf", "README", "a.aux.xml", "a.tfw", "x.yaml"):
        (flight / name).write_bytes(b"x")
    Image.new("L", (8, 8)).save(flight / "nameless", "png")
    if ".heic" in IMAGES:
        pytest.skip("pillow-heif is installed")
    assert len(find_sources([flight])) == 4
    text = "flight: left out 5 files of other kinds: 2 .heic, 1 .dng, 1 .pdf, 1 without suffix; convert them"
    assert text in caplog.text
    Path("raw").mkdir()
    Path("raw/a.dng").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"raw is a folder without images or videos .*, it holds 1 \.dng"):
        find_sources(["raw"])


def test_suffixes_are_lower_case_and_of_one_kind() -> None:
    assert not IMAGES & VIDEOS
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGES | VIDEOS)


def test_a_file_with_several_names_is_read_once(flight: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.link("flight/a.tif", "flight/z.tif")
    os.symlink("flight", "linked")
    found = find_sources(["flight/a.tif", "flight/z.tif", "linked/b.JPG", "flight/b.JPG", "./flight/a.tif"])
    assert [source.location for source in found] == ["flight/a.tif", "linked/b.JPG"]
    assert "left out 2 links to files that are read under another name" in caplog.text


def test_a_file_uri_is_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / os.fsdecode("Größe 1#?[2]-".encode() + b"\xe9.png")
    path.write_bytes(b"x")
    for uri in (
        path.as_uri(),
        path.as_uri().replace("file:///", "file://localhost/"),
        path.as_uri().replace("file:///", "FILE:/"),
        f"file://{path}".replace("%", "%25"),
    ):
        assert find_sources([uri]) == [Source(str(path), 1, file_name=path.name)]
    assert find_sources([tmp_path.as_uri()]) == [Source(str(path), 1, file_name=path.name)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("file://server/a.png", "names a file of the host server"),
        ("file:a.png", "has no absolute path; write file:///folder/file"),
        ("file:///tmp/no%20such.png", "/tmp/no such.png does not exist"),
        ("hdfs://bucket/a.tif", r"cannot be read; download the file and name it\. Streams have rtsp"),
        ("/vsicurl/http://host/a.tif", "does not exist"),
        ("", "empty name"),
        ("fifo.png", "fifo.png is a device or a pipe"),
        ("dangling.png", "dangling.png is a link to gone.png, which does not exist"),
        ("loop", "loop is a link to loop, which does not exist"),
    ],
)
def test_a_location_that_cannot_be_read_is_refused_in_one_line(flight: Path, word: str, message: str) -> None:
    os.mkfifo("fifo.png")
    os.symlink("gone.png", "dangling.png")
    os.symlink("loop", "loop")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        find_sources([word])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("first", [-(2**63), 2**63 - 1, 10**400])
def test_image_ids_stay_within_64_bits(flight: Path, first: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        find_sources(["flight"], first)
    assert find_sources(["flight"], 2**62)[3].image_id == 2**62 + 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server of the folder `web`, and the credentials that were sent to it."""
    (tmp_path / "web").mkdir()
    sent: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.headers.get("Authorization", ""))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "web"))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{httpd.server_port}", sent
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_an_image_on_a_web_server_is_known_by_its_content(server: tuple[str, list[str]], tmp_path: Path) -> None:
    host, sent = server
    Image.new("RGB", (64, 48)).save(tmp_path / "web" / "clip.mp4", "tiff")
    (tmp_path / "web" / "photo.jpg").write_bytes(HEADS["video"][0])
    [source] = find_sources([f"http://bob:p%40ss@{host}/clip.mp4?token=s3cret"])
    assert not source.moving
    assert source.name == "clip"
    assert not {"p%40ss", "s3cret"} & set(re.split(r"[/:@?=&]", f"{source.label} {source.file_name} {source.path}"))
    assert sent == [f"Basic {base64.b64encode(b'bob:p@ss').decode()}"]
    assert find_sources([f"http://{host}/photo.jpg"])[0].moving
    assert not find_sources([f"http://{host}/missing.tif"])[0].moving


def test_names_of_outputs_hold_no_secret_and_fit_any_file_system() -> None:
    for location in (
        "rtsp://bob:s3cret@10.0.0.1:554/pier?token=s3cret&channel=1",
        f"https://host/{'ä' * 300}?sig=s3cret",
        "rtsp://bob:../../s3cret@../../x",
        os.fsdecode(b"folder/pl\xe9ge\n.png"),
        f"folder/{'x' * 251}.png",
        f"folder/{'日' * 80}.png",
    ):
        name = Source(location, 1, moving=True).name
        assert "s3cret" not in name
        assert not set(name) & set("/\\\n\0")
        assert 0 < len(name.encode()) <= 200
        assert name not in (".", "..")
    assert Source("rtsp://bob:s3cret@10.0.0.1:554/pier", 1, moving=True).name == "10-0-0-1-554-pier"
    assert shortened("x" * 300) != shortened("x" * 301)


def test_a_source_has_a_state_while_its_file_exists(flight: Path) -> None:
    source = find_sources([flight / "a.tif"])[0]
    assert source.state == (1, (flight / "a.tif").stat().st_mtime_ns)
    (flight / "a.tif").unlink()
    assert source.state is None


def test_unreadable_first_bytes_are_left_to_the_reader(flight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        assert [source.moving for source in find_sources(["flight"])] == [False, False, True, False]
    assert HEAD >= 3 * 204


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["flight"], ["a.png", "day/a.png"]),
        (["flight/a.png"], ["a.png"]),
        (["flight/a.png", "flight/day/a.png"], ["a.png", "day/a.png"]),
        (["flight/day", "other/b.png"], ["flight/day/a.png", "other/b.png"]),
        (["flight/**/a.png"], ["a.png", "day/a.png"]),
        (["flight/da*/a.png"], ["day/a.png"]),
        (["flight/day/../a.png"], ["a.png"]),
    ],
)
def test_file_names_are_relative_to_the_folder_that_holds_all_scenes(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("flight/a.png", "flight/day/a.png", "other/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"\x89PNG")
    assert [source.file_name for source in find_sources(words)] == expected
    absolute = [str(Path(word).absolute()) for word in words]
    assert [source.file_name for source in find_sources(absolute)] == expected


@pytest.mark.parametrize("name", ["annotations.json", "data.yaml", "model.pth", "model.ONNX"])
def test_a_file_that_is_no_scene_is_refused_before_it_is_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="not an image"):
        find_sources([tmp_path / name])


def test_a_misspelled_scene_is_answered_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "scene.jpg").touch()
    for name in ("scen.jpg", "scene.jpeg", "SCENE.tif"):
        with pytest.raises(FileNotFoundError, match=r"did you mean .*scene\.jpg\?$"):
            find_sources([tmp_path / name])
