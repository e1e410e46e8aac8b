"""Drone photos: where the camera was, detections on the ground with --gps, and --scale auto from the metadata."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base

from tests.support.drone_photos import NADIR, gps, write_photo, xmp
from tinydet.infer.__main__ import main
from tinydet.runtime import load
from tinydet.spec import ModelSpec

pytest.importorskip("rasterio")
LENS = {Base.FocalLengthIn35mmFilm: 36}  # a photo of 3:2 is as wide as the camera is high: 100 m in 192 pixels
OBLIQUE = xmp({**NADIR, "drone-dji:GimbalPitchDegree": "-45.0"})


@pytest.fixture
def flight(make_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model."""
    monkeypatch.chdir(tmp_path)
    sizes = (6.0, 8.0, 10.0)
    classes = ("square", "bar")
    spec = ModelSpec(classes, (1, 2), "d", "b", tile=64, max_detections=50, nms_in_graph=True, object_sizes=sizes)
    make_onnx(tmp_path / "model.onnx", spec=spec)
    return tmp_path


def photo(name: str, **changes: Any) -> Path:
    """A photo of 192x128 pixels with one square, whose center is at (100, 60)."""
    pixels = Image.new("RGB", (192, 128))
    pixels.paste((255, 255, 255), (96, 56, 104, 64))
    return write_photo(Path(name), pixels=pixels, **{"lens": LENS, "position": gps(0.0, 8.0), **changes})


def run(*words: object) -> int:
    return main([*map(str, words), "--overlap", "8", "--backend", "onnx"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_table_has_the_position_of_the_camera_and_not_of_the_object(flight: Path) -> None:
    photo("a.png")
    assert run("--image", "a.png", "--output", "a.csv") == 0
    (row,) = rows(flight / "a.csv")
    assert (float(row["camera_lon"]), float(row["camera_lat"])) == pytest.approx((8, 0), abs=1e-11)
    assert (row["lon"], row["lat"], row["position_error"]) == ("", "", "")


def test_gps_places_the_object_and_states_the_error(flight: Path) -> None:
    photo("a.png")
    assert run("--image", "a.png", "--gps", "--output", "a.csv", "--format", "csv,geojson,gpkg") == 0
    (row,) = rows(flight / "a.csv")
    gsd = 100 / 192
    assert (float(row["lon"]) - 8) * 111319.5 == pytest.approx(4 * gsd, abs=0.02)
    assert float(row["lat"]) * 110574.3 == pytest.approx(4 * gsd, abs=0.02)
    assert 5 < float(row["position_error"]) < 6
    (feature,) = json.loads((flight / "a.geojson").read_text())["features"]
    (ring,) = feature["geometry"]["coordinates"]
    assert [round((lon - 8) * 111319.5 / gsd) for lon, _ in ring] == [0, 0, 8, 8, 0]
    assert [round(lat * 110574.3 / gsd) for _, lat in ring] == [8, 0, 0, 8, 8]
    assert feature["properties"]["position_error"] == float(row["position_error"])
    assert feature["properties"]["camera_lon"] == pytest.approx(8)


def test_a_map_of_a_photo_is_refused_before_the_work_and_names_gps(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("a.png")
    assert run("--image", "a.png", "--output", "a.geojson") == 2
    assert "a.png has no georeference, which a.geojson requires, only the GPS position" in (
        err := capsys.readouterr().err
    )
    assert "--gps places" in err
    assert not (flight / "a.geojson").exists()


def test_an_oblique_photo_has_no_place_on_a_map_and_only_a_camera_in_a_table(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("low.png", packet=OBLIQUE)
    assert run("--image", "low.png", "--gps", "--output", "a.geojson") == 2
    err = capsys.readouterr().err
    assert "low.png: an oblique photo, 45° from straight down, where at most 10° can be placed on the ground" in err
    assert err.count("\n") == 1
    assert run("--image", "low.png", "--gps", "--output", "a.csv") == 0
    (row,) = rows(flight / "a.csv")
    assert (row["lon"], row["position_error"]) == ("", "")
    assert float(row["camera_lon"]) == pytest.approx(8)
    assert "lon and lat are left empty" in capsys.readouterr().err


def test_photos_that_cannot_be_placed_are_counted_and_the_first_is_named(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flight / "flight").mkdir()
    for name in "acd":
        photo(f"flight/{name}.png", packet=OBLIQUE)
    photo("flight/b.png")
    assert run("--image", "flight", "--gps", "--output", "out.csv") == 0
    first, count = [line for line in capsys.readouterr().err.splitlines() if "left empty" in line]
    assert "a.png: an oblique photo" in first
    assert "lon and lat are left empty for 3 of 4 scenes" in count
    assert {row["scene"][-5:] for row in rows(flight / "out.csv") if row["lon"]} == {"b.png"}


def test_skip_unreadable_leaves_oblique_photos_out_of_a_map(flight: Path) -> None:
    (flight / "flight").mkdir()
    photo("flight/low.png", packet=OBLIQUE)
    photo("flight/high.png")
    assert run("--image", "flight", "--gps", "--skip-unreadable", "--output", "a.geojson") == 3
    (feature,) = json.loads((flight / "a.geojson").read_text())["features"]
    assert feature["properties"]["scene"] == "flight/high.png"


def test_a_picture_without_metadata_is_refused_with_gps(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (192, 128)).save("plain.png")
    assert run("--image", "plain.png", "--gps", "--output", "a.geojson") == 2
    assert "plain.png: it has no camera metadata (EXIF or XMP)" in capsys.readouterr().err


def test_the_scale_of_a_photo_follows_from_its_metadata(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo("a.png")
    words = ("--image", "a.png", "--output", "a.csv", "--scale", "auto", "--object-size")
    assert run(*words, f"{16 * 100 / 192}m") == 0
    out = capsys.readouterr().out
    assert "a.png: 52.1 cm per pixel on the ground, from its metadata (altitude 100 m above take-off, Focal" in out
    assert "at scale 0.5" in out
    assert run(*words, "16") == 0  # pixels need no ground sample distance
    assert "cm per pixel" not in capsys.readouterr().out
    photo("low.png", packet=OBLIQUE)
    assert run("--image", "low.png", *words[2:], "4m") == 2
    assert "an oblique photo, 45° from straight down" in (err := capsys.readouterr().err)
    assert "--gsd 0.05" in err


def test_a_finished_scene_is_written_again_with_gps(flight: Path) -> None:
    photo("a.png")
    assert run("--image", "a.png", "--output", "a.csv", "--resume") == 0
    assert run("--image", "a.png", "--output", "b.csv", "--resume", "--gps") == 0
    assert rows(flight / "a.csv")[0]["lon"] == ""
    assert rows(flight / "b.csv")[0]["lon"] != ""
    assert run("--image", "a.png", "--output", "a.csv", "--resume", "--gps") == 2  # the journal has other settings


def test_python_places_detections_as_the_command_does(flight: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo("a.png")
    photo("low.png", packet=OBLIQUE)
    assert run("--image", "a.png", "--gps", "--output", "a.geojson") == 0
    model = load("model.onnx", overlap=8, backend="onnx")
    expected = (flight / "a.geojson").read_bytes()
    placed = [model.detect("a.png", gps=True), model.detect(["a.png"], gps=True)[0], *model.stream("a.png", gps=True)]
    for found in placed:
        found.save("b.geojson")
        assert (flight / "b.geojson").read_bytes() == expected
    with pytest.raises(ValueError, match="has no georeference"):
        model.detect("a.png").save("c.geojson")
    assert "°" not in caplog.text
    found = model.detect("low.png", gps=True)
    assert found.georeference is None
    assert "low.png: an oblique photo, 45° from straight down" in caplog.text
