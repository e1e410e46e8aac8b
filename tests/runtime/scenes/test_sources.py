from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tinydet.runtime.scenes.sources import Source, coco_sources, find_sources, is_stream


@pytest.fixture
def flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a drone leaves it, after we wrote beside the scenes."""
    for name in ("b.JPG", "a.tif", "deep/c.png", "clip.mp4", "notes.txt", "a.detections.jpg", "a.detections.json",
                 ".hidden.png", "clip.detections.mp4"):  # fmt: skip
        path = tmp_path / "flight" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return Path("flight")


def names(sources: list[Source]) -> list[str]:
    return [Path(source.location).name for source in sources]


def test_a_folder_gives_its_images_and_videos_sorted_and_nothing_that_we_wrote(flight: Path) -> None:
    sources = find_sources([flight], first_id=5)
    assert names(sources) == ["a.tif", "b.JPG", "clip.mp4", "c.png"]
    assert [source.image_id for source in sources] == [5, 6, 7, 8]
    assert [source.moving for source in sources] == [False, False, True, False]


def test_a_pattern_reaches_as_deep_as_it_says(flight: Path) -> None:
    assert names(find_sources(["flight/*.*"])) == ["a.tif", "b.JPG", "clip.mp4", "notes.txt"]
    assert names(find_sources(["flight/**/*.png"])) == ["c.png"]
    assert names(find_sources(["flight/[ab].*"])) == ["a.tif", "b.JPG"]


def test_a_file_with_the_characters_of_a_pattern_in_its_name_is_that_file(flight: Path) -> None:
    (flight / "scene[1].png").write_bytes(b"x")
    assert names(find_sources(["flight/scene[1].png"])) == ["scene[1].png"]


def test_what_is_named_twice_is_taken_once_and_a_named_file_may_be_called_anything(flight: Path) -> None:
    sources = find_sources([flight / "notes.txt", flight / "a.tif", flight])
    assert names(sources) == ["notes.txt", "a.tif", "b.JPG", "clip.mp4", "c.png"]
    assert len({source.image_id for source in sources}) == 5


@pytest.mark.parametrize(
    ("location", "name"),
    [("rtsp://10.0.0.1:554/pier", "10-0-0-1-554-pier"), ("0", "0"), ("/dev/video3", "dev-video3")],
)
def test_streams_and_webcams_are_told_from_files(
    location: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = find_sources([location])
    assert source == Source(location, 1, moving=True)
    assert source.name == name
    assert not is_stream("C:/scene.tif")


def test_a_file_called_as_a_webcam_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_holds_no_scene_is_said(flight: Path, word: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_sources([word])


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_coco_file_gives_its_images_with_its_ids(flight: Path, compress: type) -> None:
    images = [{"id": 40, "file_name": "b.JPG"}, {"id": 7, "file_name": "deep/c.png"}]
    Path("set.json").write_bytes(compress(json.dumps({"images": images}).encode()))
    sources = coco_sources(Path("set.json"), flight)
    assert [(source.image_id, source.path) for source in sources] == [
        (40, flight / "b.JPG"),
        (7, flight / "deep/c.png"),
    ]
    flight.rename("images")
    assert coco_sources(Path("set.json"))[0].path == Path("images/b.JPG")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"images": [{"id": 1, "file_name": "gone.png"}]}', "names 1 of 1 images that do not exist, first .*--images"),
        (
            '{"images": [{"id": 1, "file_name": "a.tif"}, {"id": 1, "file_name": "b.JPG"}]}',
            "two images have the same id",
        ),
        ('{"images": []}', "has no images"),
        ('{"images": [{"id": "1", "file_name": "a.tif"}]}', "no COCO file"),
        ("[1, 2]", "no COCO file"),
        ("{", "no COCO file"),
    ],
)
def test_a_coco_file_that_leads_nowhere_is_refused(flight: Path, document: str, message: str) -> None:
    Path("set.json").write_text(document)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        coco_sources(Path("set.json"), flight)


def test_the_sets_of_real_images_are_found_whole(shared: Path) -> None:
    folder = shared / "data" / "hituav-val"
    sources = coco_sources(folder / "annotations.json")
    assert len(sources) == 100
    assert {source.path for source in sources} == {source.path for source in find_sources([folder / "images"])}
