from __future__ import annotations

from pathlib import Path

import pytest

from tinydet.runtime.scenes.sources import Source, find_sources, is_stream


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
    assert source == Source(location, 1, moving=True)
    assert source.name == name
    assert not is_stream("C:/scene.tif")


def test_an_existing_file_named_like_a_webcam_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").write_bytes(b"x")
    assert find_sources(["7"]) == [Source("7", 1, moving=False)]


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
