"""Every format, read by the libraries that users read it with."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import resource
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes.georeference import Georeference, georeference_of
from tinydet.runtime.writers import FORMATS, SceneDetections, check_output, format_of, open_writer, text, write_classes
from tinydet.spec import ModelSpec

SPEC = ModelSpec(classes=("person, swimming", "boat"), category_ids=(7, 3), detector="d", backbone="b", tile=64)
SCENES = {"north-up": ("bigscene-brighton-geotiff", 15), "rotated": ("bigscene-plaza", 35)}  # folder, UTM zone


def some(count: int, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 900, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 40, (count, 2))], 1).astype(np.float32)
    seam = rng.uniform(0, 100, count).astype(np.float32)
    seam[::2] = np.inf
    integers = [rng.integers(0, most, count).astype(np.int32) for most in (2, 9, 2)]
    columns = {"tile": integers[1], "pass": integers[2], "seam_distance": seam}
    return Detections(boxes, rng.uniform(0.3, 1, count).astype(np.float32), integers[0], columns)


def scene(name: str, image_id: int, count: int, georeference: Georeference | None = None) -> SceneDetections:
    return SceneDetections(name, image_id, 1000, 1200, some(count, image_id), georeference)


NORTH_UP = Georeference((0.5, 0, 300_000, 0, -0.5, 5_000_000), "EPSG:32635")


def save(path: Path, *scenes: SceneDetections, kind: str | None = None) -> Path:
    with open_writer(path, SPEC, kind) as write:
        for found in scenes:
            write(found)
    return path


def tracked(found: SceneDetections, tracks: Sequence[int]) -> SceneDetections:
    """A frame of a video with numbered objects."""
    columns = {**found.detections.data, "track": np.asarray(tracks, np.int64)}
    return replace(found, frame=found.image_id - 1, detections=replace(found.detections, data=columns))


def test_a_detection_without_a_track_has_no_number_in_any_format(tmp_path: Path) -> None:
    parquet, pyogrio = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyogrio")
    scenes = [
        tracked(scene("v#0", 1, 0, NORTH_UP), []),
        tracked(scene("v#1", 2, 3, NORTH_UP), [12, -1, 5]),
        tracked(scene("v#2", 3, 1, NORTH_UP), [-1]),
    ]
    files = {kind: save(tmp_path / f"{kind}{form.suffix}", *scenes, kind=kind) for kind, form in FORMATS.items()}
    with files["csv"].open(newline="") as file:
        assert [row["track_id"] for row in csv.DictReader(file)] == ["12", "", "5", ""]
    column = parquet.read_table(files["parquet"])["track_id"]
    assert str(column.type) == "int64"
    assert column.to_pylist() == [12, None, 5, None]
    for rows in (json.loads(files["coco"].read_text())["annotations"], json.loads(files["coco-results"].read_text())):
        assert [row.get("track_id") for row in rows] == [12, None, 5, None]
    features = json.loads(files["geojson"].read_text())["features"]
    assert [feature["properties"]["track_id"] for feature in features] == [12, None, 5, None]
    assert pyogrio.read_info(files["gpkg"])["features"] == 4
    lines = [line.split(",") for line in files["mot"].read_text().splitlines()]
    assert [line[:2] for line in lines] == [["2", "12"], ["2", "5"]]


def test_tracks_are_required_for_the_format_mot_and_add_no_column_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mot holds tracked objects of a video, and a\.png has none"):
        save(tmp_path / "found.txt", scene("a.png", 1, 2), kind="mot")
    assert "track" not in save(tmp_path / "found.csv", scene("a.png", 1, 2)).read_text()


def test_coco_results_are_loaded_by_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    scenes = [scene("a.jpg", 4, 3), scene("b.jpg", 9, 0), scene("c.jpg", 2, 5)]
    path = save(tmp_path / "found.json", *scenes, kind="coco-results")
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": i} for i in (2, 4, 9)],
        "categories": [{"id": 3, "name": "boat"}, {"id": 7, "name": "person"}],
        "annotations": [],
    }
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(str(path))
    assert len(loaded.anns) == 8
    assert [row["score"] for row in loaded.loadAnns(loaded.getAnnIds(imgIds=[4]))] == scenes[
        0
    ].detections.scores.tolist()
    assert json.loads(save(tmp_path / "none.json", kind="coco-results").read_text()) == []


def test_a_coco_file_is_opened_by_pycocotools_with_images_and_names(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    scenes = [scene("in/a.jpg", 4, 3), scene("in/b.jpg", 9, 0), replace(scene("in/c.jpg", 2, 5), file_name="day/c.jpg")]
    path = save(tmp_path / "found.json", *scenes)
    with redirect_stdout(io.StringIO()):
        loaded = coco.COCO(str(path))
    assert loaded.imgs == {
        4: {"id": 4, "file_name": "a.jpg", "width": 1000, "height": 1200},
        9: {"id": 9, "file_name": "b.jpg", "width": 1000, "height": 1200},
        2: {"id": 2, "file_name": "day/c.jpg", "width": 1000, "height": 1200},
    }
    assert loaded.cats == {7: {"id": 7, "name": "person, swimming"}, 3: {"id": 3, "name": "boat"}}
    assert sorted(loaded.anns) == list(range(1, 9))
    for found in scenes:
        rows = loaded.loadAnns(loaded.getAnnIds(imgIds=[found.image_id]))
        keys = ("image_id", "category_id", "bbox", "score")
        assert [{key: row[key] for key in keys} for row in rows] == found.detections.to_coco(
            found.image_id, SPEC.category_ids
        )
        for row in rows:
            assert (row["area"], row["iscrowd"]) == (row["bbox"][2] * row["bbox"][3], 0)
    empty = json.loads(save(tmp_path / "none.json").read_text())
    assert (empty["images"], empty["annotations"], len(empty["categories"])) == ([], [], 2)


def test_the_parts_of_a_scene_and_frames_without_boxes_are_one_image_each(tmp_path: Path) -> None:
    whole = scene("a.jpg", 1, 5)
    parts = [replace(whole, detections=whole.detections[part]) for part in (slice(0, 2), slice(2, 5))]
    frames = [
        replace(scene("clip.mp4#3", 2, 0), frame=3, seconds=0.12345),
        replace(scene("a.jpg", 7, 1), corner=(10, 20, 1010, 1220)),
    ]
    document = json.loads(save(tmp_path / "found.json", *parts, *frames).read_text())
    size = {"width": 1000, "height": 1200}
    assert document["images"] == [
        {"id": 1, "file_name": "a.jpg", **size},
        {"id": 2, "file_name": "clip.mp4#3", **size, "frame": 3, "seconds": 0.123},
        {"id": 7, "file_name": "a.jpg", **size, "corner": [10, 20, 1010, 1220]},
    ]
    assert [row["id"] for row in document["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_a_coco_file_is_read_by_supervision(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    (tmp_path / "day").mkdir()
    for name in ("a.png", "day/b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((1200, 1000, 3), np.uint8))
    scenes = [scene("a.png", 1, 4), replace(scene("day/b.png", 2, 3), file_name="day/b.png")]
    path = save(tmp_path / "found.json", *scenes)
    dataset = supervision.DetectionDataset.from_coco(str(tmp_path), str(path))
    assert sorted(dataset.classes) == ["boat", "person, swimming"]
    for name, found in zip(("a.png", "day/b.png"), scenes, strict=True):
        np.testing.assert_allclose(dataset.annotations[str(tmp_path / name)].xyxy, found.detections.boxes, atol=1e-3)


def test_many_images_wait_outside_of_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with open_writer(tmp_path / "found.json", SPEC) as write:
            for n in range(count):
                write(SceneDetections(f"{n:0100}.jpg", n, 10, 10, Detections.empty()))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == count
        assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
        return most

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "IN_MEMORY", 20_000)
        peak(500)  # one-time allocations
        assert peak(4000) < 1.3 * peak(1000)


def test_a_table_holds_every_box_exactly(tmp_path: Path) -> None:
    found = scene("a.tif", 4, 6, NORTH_UP)
    rows = list(csv.DictReader(save(tmp_path / "found.csv", found, scene("b.jpg", 5, 1)).open(newline="")))
    assert len(rows) == 7
    of = found.detections
    for row, box, score, label in zip(rows[:6], of.boxes, of.scores, of.labels, strict=True):
        assert [np.float32(row[name]) for name in ("x1", "y1", "x2", "y2")] == box.tolist()
        assert np.float32(row["score"]) == score
        assert (row["class"], int(row["category_id"])) == (SPEC.classes[label], SPEC.category_ids[label])
    assert [row["seam_distance"] == "" for row in rows[:6]] == [True, False] * 3
    assert rows[0]["lon"]
    assert rows[6]["lon"] == ""
    assert [int(row["pass"]) for row in rows[:6]] == of.passes.tolist()


def test_parquet_is_read_by_pyarrow_and_pandas_with_its_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    scenes = [scene("a.tif", 4, 6, NORTH_UP), scene("b.jpg", 5, 0), scene("c.jpg", 6, 2)]
    table = parquet.read_table(save(tmp_path / "found.parquet", *scenes))
    assert [str(table.schema.field(name).type) for name in ("scene", "score", "x1", "tile", "lon")] == [
        "string",
        "float",
        "float",
        "int32",
        "double",
    ]
    both = Detections.concatenate([found.detections for found in scenes])
    for i, name in enumerate(("x1", "y1", "x2", "y2")):
        assert table[name].to_pylist() == both.boxes[:, i].tolist()
    assert table["lon"].null_count == 2
    assert table["seam_distance"].null_count == int(np.isinf(both.seam_distance).sum())
    frame = table.to_pandas()
    assert frame.groupby("scene").size().to_dict() == {"a.tif": 6, "c.jpg": 2}


def test_parquet_has_few_row_groups_even_for_many_frames(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    frames = [scene(f"clip.mp4#{i}", i, 300) for i in range(70)]
    file = parquet.ParquetFile(save(tmp_path / "found.parquet", *frames))
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [10_200, 10_200, 600]
    assert file.read()["x1"].to_pylist() == np.concatenate([f.detections.boxes[:, 0] for f in frames]).tolist()


def test_yolo_coordinates_are_relative_to_the_scene(tmp_path: Path) -> None:
    found = scene("a.jpg", 1, 5)
    rows = np.loadtxt(save(tmp_path / "a.txt", found, kind="yolo-conf"))
    assert rows[:, 0].tolist() == found.detections.labels.tolist()
    center, size = rows[:, 1:3] * (1000, 1200), rows[:, 3:5] * (1000, 1200)
    np.testing.assert_allclose(
        np.concatenate([center - size / 2, center + size / 2], 1), found.detections.boxes, atol=1e-4
    )
    assert rows[:, 5].astype(np.float32).tolist() == found.detections.scores.tolist()
    assert np.array_equal(np.loadtxt(save(tmp_path / "b.txt", found)), rows[:, :5])
    assert save(tmp_path / "none.txt", scene("b.jpg", 1, 0)).read_text() == ""


def utm_to_lon_lat(east: float, north: float, zone: int) -> tuple[float, float]:
    """The inverse transverse Mercator projection by Krüger's series to the third order, WGS 84, to millimeters."""
    a, f = 6378137.0, 1 / 298.257223563
    n = f / (2 - f)
    radius = a / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    xi, eta = north / (0.9996 * radius), (east - 500_000) / (0.9996 * radius)
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    waves = [(2 * j, value) for j, value in enumerate(beta, 1)]
    xi, eta = (
        xi - sum(b * math.sin(k * xi) * math.cosh(k * eta) for k, b in waves),
        eta - sum(b * math.cos(k * xi) * math.sinh(k * eta) for k, b in waves),
    )
    chi = math.asin(math.sin(xi) / math.cosh(eta))
    latitude = chi + sum(d * math.sin(2 * j * chi) for j, d in enumerate(delta, 1))
    longitude = math.atan2(math.sinh(eta), math.cos(xi))
    return zone * 6 - 183 + math.degrees(longitude), math.degrees(latitude)


@pytest.fixture(params=SCENES)
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, int]:
    pytest.importorskip("rasterio")
    folder, zone = SCENES[request.param]
    return next((shared / "data" / folder / "images").glob("*.tif")), zone


def test_box_corners_agree_with_the_krueger_series(real: tuple[Path, int], tmp_path: Path) -> None:
    """The expected corners apply the geotransform and the inverse projection by hand."""
    path, zone = real
    georeference = georeference_of(path)
    assert georeference is not None
    found = scene(path.name, 1, 12, georeference)
    features = json.loads(save(tmp_path / "found.geojson", found).read_text())["features"]
    assert len(features) == 12
    a, b, c, d, e, f = georeference.transform
    for feature, (x1, y1, x2, y2) in zip(features, found.detections.boxes.astype(float), strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        for place, (x, y) in zip(ring, [(x1, y1), (x1, y2), (x2, y2), (x2, y1)], strict=False):
            expected = utm_to_lon_lat(a * x + b * y + c, d * x + e * y + f, zone)
            assert place == pytest.approx(expected, abs=1e-8)  # a millimeter
        area = sum(p[0] * q[1] - q[0] * p[1] for p, q in itertools.pairwise(ring))
        assert area > 0, "RFC 7946: an outer ring runs counterclockwise"


@pytest.mark.parametrize("real", ["rotated"], indirect=True)
def test_boxes_of_a_rotated_raster_are_rotated(real: tuple[Path, int]) -> None:
    georeference = georeference_of(real[0])
    assert georeference is not None
    assert georeference.transform[1] != 0
    ((ring,),) = georeference.polygons(np.array([[100, 100, 200, 200]]))
    assert len(np.unique(np.round(ring[:4, 0], 7))) == 4  # a north-up box has two longitudes


@pytest.mark.parametrize("name", ["found.geojson", "found.gpkg"])
def test_gdal_reads_the_map_formats(name: str, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    pytest.importorskip("rasterio")
    scenes = [scene("a.tif", 1, 4, NORTH_UP), scene("b.tif", 2, 0, NORTH_UP), scene("ü.tif", 3, 3, NORTH_UP)]
    path = save(tmp_path / name, *scenes)
    info = pyogrio.read_info(path)
    assert info["features"] == 7
    assert info["geometry_type"] == "Polygon"
    assert "4326" in info["crs"] or "CRS84" in info["crs"]
    _, _, geometry, values = pyogrio.raw.read(path)
    table = dict(zip(info["fields"], values, strict=True))
    assert table["scene"].tolist() == ["a.tif"] * 4 + ["ü.tif"] * 3
    both = Detections.concatenate([found.detections for found in scenes])
    np.testing.assert_allclose(table["score"].astype(float), both.scores, rtol=1e-6)
    rings = np.stack([np.frombuffer(shape[13:], "<f8").reshape(5, 2) for shape in geometry])
    expected = [ring for (ring,) in NORTH_UP.polygons(both.boxes)]
    np.testing.assert_allclose(rings, expected, atol=1e-9)
    assert [p.name for p in tmp_path.iterdir()] == [name], "no journal is left behind"


ANTIMERIDIAN = Georeference((0.25, 0, 179, 0, -0.25, 10), "EPSG:4326")  # 180 degrees at column 4
BOXES = np.float32([[1, 1, 2, 2], [3, 4, 5, 6], [6, 4, 8, 6]])  # before, across and beyond the antimeridian


def boxes_of(georeference: Georeference, boxes: np.ndarray) -> SceneDetections:
    found = Detections(boxes, np.linspace(0.9, 0.5, len(boxes)).astype(np.float32), np.zeros(len(boxes), np.int32))
    return SceneDetections("a.tif", 1, 1000, 1200, found, georeference)


@pytest.mark.parametrize("name", ["found.geojson", "found.gpkg"])
def test_a_box_across_the_antimeridian_becomes_a_multipolygon(name: str, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    pytest.importorskip("rasterio")
    others = scene("b.tif", 2, 12, NORTH_UP)  # written before the layer changes its type
    path = save(tmp_path / name, others, boxes_of(ANTIMERIDIAN, BOXES), others)
    info = pyogrio.read_info(path)
    assert info["features"] == 27
    assert info["geometry_type"] == ("MultiPolygon" if name.endswith(".gpkg") else "Unknown")  # GeoJSON mixes types
    meta, _, shapes, values = pyogrio.raw.read(path)
    polygons = [polygons_of(shape) for shape in shapes]
    assert [len(rings) for rings in polygons] == [1] * 12 + [1, 2, 1] + [1] * 12
    assert sorted((rings[:, 0].min(), rings[:, 0].max()) for rings in polygons[13]) == [(-180, -179.75), (179.75, 180)]
    assert polygons[14][0][:, 0].tolist() == pytest.approx([-179.5, -179.5, -179, -179, -179.5])
    scores = dict(zip(meta["fields"], values, strict=True))["score"]
    expected = [*others.detections.scores, 0.9, 0.7, 0.5, *others.detections.scores]
    np.testing.assert_allclose(scores.astype(float), expected, rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def polygons_of(wkb: bytes) -> list[np.ndarray]:
    """Read the rings of a Polygon or MultiPolygon in well-known binary."""
    kind, count = np.frombuffer(wkb, "<u4", 2, 1)
    if kind == 6:
        rings, start = [], 9
        for _ in range(count):
            (ring,) = polygons_of(wkb[start:])
            rings.append(ring)
            start += 13 + ring.nbytes
        return rings
    assert (kind, count) == (3, 1)
    (points,) = np.frombuffer(wkb, "<u4", 1, 9)
    return [np.frombuffer(wkb, "<f8", 2 * points, 13).reshape(-1, 2)]


@pytest.mark.parametrize("name", ["found.geojson", "found.gpkg"])
def test_a_box_without_longitude_and_latitude_has_no_geometry(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    pytest.importorskip("rasterio")
    beyond = Georeference((1, 0, 0, 0, -1, 100), "EPSG:4326")  # the first ten rows are beyond the pole
    path = save(tmp_path / name, boxes_of(beyond, np.float32([[1, 1, 2, 2], [1, 40, 2, 41]])))
    shapes = pyogrio.raw.read(path)[2]
    assert [shape is None for shape in shapes] == [True, False]
    assert "no geometry for 1 box" in caplog.text


def test_map_files_without_boxes_can_be_read(tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    for name in ("none.geojson", "none.gpkg"):
        assert pyogrio.read_info(save(tmp_path / name))["features"] == 0


def test_a_scene_without_a_georeference_is_refused_in_map_formats(tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    for name in ("found.geojson", "found.gpkg"):
        with pytest.raises(ValueError, match=r"a\.jpg has no georeference.*\.csv"):
            save(tmp_path / name, scene("a.jpg", 1, 2))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [f"found{form.suffix}" for form in FORMATS.values()])
def test_a_failure_leaves_the_older_file_unchanged(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_text("older")

    def interrupted() -> None:
        with open_writer(path, SPEC) as write:
            write(scene("a.tif", 1, 3, NORTH_UP))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [f"found{form.suffix}" for form in FORMATS.values()])
def test_a_second_writer_of_a_file_is_refused_without_harm_to_the_first(name: str, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    pytest.importorskip("pyarrow")
    expected = save(tmp_path / f"alone{Path(name).suffix}", scene("a.tif", 1, 8, NORTH_UP)).read_bytes()
    found = scene("a.tif", 1, 8, NORTH_UP)
    with open_writer(tmp_path / name, SPEC) as write:
        write(replace(found, detections=found.detections[:5]))
        with pytest.raises(OSError, match="another run is writing it"), open_writer(tmp_path / name, SPEC):
            pytest.fail("two writers of one file")
        write(replace(found, detections=found.detections[5:]))
    if name.endswith(".gpkg"):
        assert pyogrio.read_info(tmp_path / name)["features"] == 8
    elif not name.endswith(".parquet"):
        assert (tmp_path / name).read_bytes() == expected


def test_a_geopackage_that_is_removed_while_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    pytest.importorskip("rasterio")

    def vanishing() -> None:
        with open_writer(tmp_path / "found.gpkg", SPEC) as write:
            write(scene("a.tif", 1, 5, NORTH_UP))
            for path in tmp_path.iterdir():
                path.unlink()
            write(scene("b.tif", 2, 3, NORTH_UP))

    with pytest.raises(OSError, match=r"found\.gpkg was not written"):
        vanishing()
    assert list(tmp_path.iterdir()) == []


ODD = "a\udce9\ud800\0\r\n\t\"=cmd,;'$\u202e\u2028船.tif"  # undecodable bytes, control characters, separators


@pytest.mark.parametrize("kind", FORMATS)
def test_any_text_in_a_name_gives_a_valid_file(kind: str, tmp_path: Path) -> None:
    pyogrio, parquet = pytest.importorskip("pyogrio"), pytest.importorskip("pyarrow.parquet")
    spec = replace(SPEC, classes=(ODD, "boat"))
    path = tmp_path / f"found{FORMATS[kind].suffix}"
    found = scene(ODD, 1, 6, NORTH_UP)
    if FORMATS[kind].tracked:
        found = tracked(found, range(1, 7))
    with open_writer(path, spec, kind) as write:
        write(found)
    content = path.read_bytes().decode(
        "utf-8", "strict" if path.suffix in (".json", ".geojson", ".csv", ".txt") else "ignore"
    )
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
        names = [row["scene"] for row in rows]
        assert all(None not in row and None not in row.values() for row in rows)
    elif path.suffix == ".parquet":
        names = parquet.read_table(path)["scene"].to_pylist()
    elif path.suffix in (".geojson", ".gpkg"):
        meta, _, _, values = pyogrio.raw.read(path)
        names = dict(zip(meta["fields"], values, strict=True))["scene"].tolist()
    elif kind == "coco":
        document = json.loads(content)
        names = [document["images"][0]["file_name"]] * len(document["annotations"])
        assert document["categories"][0]["name"].endswith("船.tif")
    else:  # ids and numbers only
        assert len(json.loads(content) if path.suffix == ".json" else content.splitlines()) == 6
        return
    assert len(names) == 6
    assert names[0].startswith("a")
    assert names[0].endswith("船.tif")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes of a file fail, with EFBIG in place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("boxes", [0, 300])
@pytest.mark.parametrize("name", [f"found{form.suffix}" for form in FORMATS.values()])
def test_a_full_disk_names_the_file_and_leaves_nothing(name: str, boxes: int, tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    pytest.importorskip("pyarrow")
    scenes = [scene("a.tif", i, boxes, NORTH_UP) for i in range(3) if boxes]
    path = save(tmp_path / name, *scenes)
    size = path.stat().st_size
    path.unlink()
    for limit in sorted({0, size // 9, size // 3, size // 2, size - 1} if size else ()):
        with (
            file_size_limit(limit),
            pytest.raises(OSError, match=rf"{path} was not written \(File too large\)"),
        ):
            save(path, *scenes)
        assert list(tmp_path.iterdir()) == []
    save(path, *scenes)


def test_images_and_rasters_without_a_crs_have_no_georeference(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
        assert georeference_of(tmp_path / name) is None


def test_an_unknown_suffix_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\.xml.*\.geojson"):
        format_of(Path("found.xml"))
    with pytest.raises(ValueError, match="coco, coco-results, geojson"):
        format_of(Path("found.json"), ["xml"])
    assert format_of(Path("FOUND.GPKG")) is FORMATS["gpkg"]
    assert format_of(Path("found.json"), ["csv", "coco-results"]) is FORMATS["coco-results"]
    with pytest.raises(ValueError, match=r"none of the requested formats \(csv\); name it found\.csv"):
        format_of(Path("found.json"), ["csv"])


def test_classes_are_listed_once_per_line_and_other_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    write_classes(path, replace(SPEC, classes=("person\nswimming", "boat")))
    assert path.read_text() == "person swimming\nboat\n"
    write_classes(path, replace(SPEC, classes=("person swimming", "boat")))
    with pytest.raises(ValueError, match="lists other classes than the model"):
        write_classes(path, replace(SPEC, classes=("boat", "person swimming")))


def test_a_yolo_file_holds_one_scene() -> None:
    check_output(Path("a.txt"), 1)
    with pytest.raises(ValueError, match="one; name a folder"):
        check_output(Path("a.txt"), 2)
