"""Scenes, models, journals and outputs in an object store: a real S3 server on this machine."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from s3_server import ACCESS, SECRET, CountedServer, s3_server

from tinydet._internal.segments import SegmentedFile
from tinydet._internal.stores import StoreError, StorePath, public_address, to_path
from tinydet.infer.__main__ import main
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.sources import find_sources

pytest.importorskip("moto")
pytest.importorskip("s3fs")
BOXES = {"a": [[16, 24, 8, 8], [80, 8, 8, 8]], "b": [[160, 112, 8, 8]]}


@pytest.fixture(scope="module")
def server() -> Iterator[CountedServer]:
    with s3_server() as started:
        yield started


@pytest.fixture
def store(server: CountedServer) -> Iterator[CountedServer]:
    server.fail = None
    server.requests.clear()
    yield server
    server.fail = None


@pytest.fixture(scope="module")
def flight(server: CountedServer, make_onnx: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes and a model, in a folder and in the store."""
    folder = tmp_path_factory.mktemp("flight")
    rasterio = pytest.importorskip("rasterio")
    make_onnx(folder / "model.onnx")
    for name, boxes in BOXES.items():
        pixels = np.zeros((128, 192, 3), np.uint8)
        for x, y, w, h in boxes:
            pixels[y : y + h, x : x + w] = 255
        place = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5)
        size = {"width": 192, "height": 128, "count": 3, "dtype": "uint8"}
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", crs="EPSG:32633", transform=place, **size
        ) as file:
            file.write(np.moveaxis(pixels, -1, 0))
        to_path(f"s3://survey/flight/{name}.tif").upload(folder / f"{name}.tif")
    to_path("s3://survey/models/model.onnx").upload(folder / "model.onnx")
    return folder


def run(*words: object) -> int:
    return main([*map(str, words), "--overlap", "8", "--backend", "onnx"])


def rows(path: Path) -> list[list[str]]:
    """Return the table without the columns that name the scene."""
    with path.open("r", newline="") as file:
        return [row[1:] for row in csv.reader(file)]


def test_a_survey_in_a_store_gives_the_outputs_of_local_files(
    store: CountedServer,
    flight: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path / "cache"))
    out = to_path("s3://survey/found")
    words = ("s3://survey/flight/", "--model", "s3://survey/models/model.onnx", "--output", f"{out}/", "--resume")
    words += ("--format", "csv,geoparquet", "--stac", f"{out}/", "--summary", "s3://survey/run.json")
    assert run(*words) == 0
    assert run(*sorted(flight.glob("*.tif")), "--model", flight / "model.onnx", "--output", f"{tmp_path}/",
               "--format", "csv") == 0  # fmt: skip
    for name, boxes in BOXES.items():
        assert rows(out / f"{name}.detections.csv") == rows(tmp_path / f"{name}.detections.csv")
        assert len(rows(out / f"{name}.detections.csv")) == 1 + len(boxes)
        item = json.loads((out / f"{name}.detections.item.json").read_text())
        assert item["properties"]["tinydet:detections"] == len(boxes)
        assert item["assets"]["csv"]["href"] == f"./{name}.detections.csv"
        assert item["bbox"][0] == pytest.approx(15, abs=0.01)  # the central meridian of the zone
    written = [path for path in to_path("s3://survey/").files() if not path.is_relative_to("s3://survey/flight")]
    printed = capfd.readouterr()
    texts = [printed.out.encode(), printed.err.encode(), *(path.read_bytes() for path in written)]
    assert not [text for text in texts if ACCESS.encode() in text or SECRET.encode() in text]
    store.requests.clear()
    assert run(*words) == 0  # complete: no scene is read or written again
    assert "2 scenes already complete" in capfd.readouterr().out
    assert not [path for method, path, _ in store.requests if method == "PUT" and "/found/a" in path]


def test_parts_of_a_catalogue_join_to_the_files_of_one_process_in_a_store(
    store: CountedServer, flight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "unplaced.png"), np.zeros((64, 64, 3), np.uint8))
    to_path("s3://survey/unplaced.png").upload(tmp_path / "unplaced.png")
    places = ("s3://survey/unplaced.png", "s3://survey/flight/a.tif", (flight / "b.tif").as_uri())
    item = {"type": "Feature", "stac_version": "1.0.0", "properties": {"instruments": ["a camera"]}}
    assets = [{"visual": {"href": place, "roles": ["visual"]}} for place in places]
    items = [{**item, "id": str(number), "assets": each} for number, each in enumerate(assets)]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    words = (tmp_path / "items.json", "--model", flight / "model.onnx", "--format", "geoparquet", "--skip-unreadable")
    assert run(*words, "--output", "s3://survey/alone/") == 3  # not placed on the map, so skipped
    words = (*words, "--output", "s3://survey/joined/", "--journals", tmp_path)
    assert {run(*words, "--part", f"{number}/2") for number in (2, 1)} == {0, 3}
    assert "unplaced.png has no georeference" in capsys.readouterr().err
    assert run(*words, "--join") == 3
    alone, joined = (
        {path.name: path.read_bytes() for path in to_path(f"s3://survey/{name}/").files()}
        for name in ("alone", "joined")
    )
    assert alone == joined
    assert len(alone) == 2


def test_nothing_is_written_where_the_store_refuses(store: CountedServer, flight: Path, capsys: Any) -> None:
    words = ("s3://survey/flight/a.tif", "--model", flight / "model.onnx", "--output", "s3://survey/refused/a.json")
    store.fail = lambda method, path: ("403 Forbidden", "AccessDenied") if method == "PUT" else None
    assert run(*words) == 2
    assert "s3://survey/refused" in (message := capsys.readouterr().err)
    assert "access is denied (403)" in message
    store.fail = None
    assert not to_path("s3://survey/refused/").files()


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        ("403 Forbidden", "AccessDenied", PermissionError, r"access is denied \(403\)"),
        ("400 Bad Request", "ExpiredToken", PermissionError, "credentials have expired; renew them"),
        ("404 Not Found", "NoSuchKey", FileNotFoundError, "no such object"),
        ("404 Not Found", "NoSuchBucket", FileNotFoundError, "s3://survey: no such bucket"),
    ],
)
def test_each_refusal_of_a_store_says_what_to_do(
    store: CountedServer, status: str, code: str, kind: type[OSError], words: str
) -> None:
    store.fail = lambda method, path: (status, code)
    with pytest.raises(kind, match=words):
        open_scene(f"s3://survey/unread-{code}.tif")


def test_one_of_two_writers_of_a_journal_is_refused(store: CountedServer) -> None:
    path = StorePath.of("s3://survey/a.journal")
    first, second = SegmentedFile(path), SegmentedFile(path)
    first.append(b"one")
    assert second.read() == b"one"
    first.append(b"two")
    with pytest.raises(FileExistsError):
        second.append(b"other")
    assert SegmentedFile(path).read() == b"onetwo"
    third = SegmentedFile(path)
    third.remove()
    third.append(b"new")
    first.append(b"late")  # of a run that has lost its journal
    assert SegmentedFile(path).read() == b"new"


def test_an_address_is_public_without_its_signature() -> None:
    signed = "https://bob:pw@host/a.tif?X-Amz-Signature=s3&X-Amz-Credential=c&v=2"
    assert public_address(signed) == str(to_path(signed)) == "https://***@host/a.tif?v=2"
    assert to_path("https://h/a.tif?se=2026&sp=r&sig=s3cret").with_suffix(".json").name == "a.json"
    path = StorePath.of("s3://bucket/x//a b#1?.tif")
    assert (path.key, path.parent.name, str(path.with_name("c"))) == ("bucket/x//a b#1?.tif", "x", "s3://bucket/x/c")


def test_catalogues_name_their_scenes(store: CountedServer, flight: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = {"href": "../flight/a.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}
    thumb = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
    item: dict[str, Any] = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "properties": {}}
    item["assets"] = {"thumb": thumb, "B04": data}
    (tmp_path / "item.json").write_text(json.dumps(item))
    to_path("s3://survey/stac/item.json").upload(tmp_path / "item.json")
    [source] = find_sources(["s3://survey/stac/item.json"])
    assert source.location == "s3://survey/flight/a.tif"
    assert source.item is not None and source.item.id == "x"
    [source] = find_sources([tmp_path / "item.json"], asset="thumbnail")
    assert source.location == str(tmp_path / "t.png")
    item["assets"]["B08"] = {**data, "href": "https://host/b.tif"}
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item, item]}))
    with pytest.raises(ValueError, match="item x has several images; .*--asset: thumb, B04, B08"):
        find_sources([tmp_path / "items.json"])
    assert [each.location for each in find_sources([tmp_path / "items.json"], asset="B08")] == ["https://host/b.tif"]
    parquet.write_table(pyarrow.table({"path": ["s3://survey/flight/b.tif"]}), tmp_path / "scenes.parquet")
    assert [each.name for each in find_sources([tmp_path / "scenes.parquet"])] == ["b"]
    item["assets"] = {"B04": {**data, "href": "file:///etc/passwd"}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    to_path("s3://survey/stac/item.json").upload(tmp_path / "item.json")
    with pytest.raises(ValueError, match="names a file of this machine"):
        find_sources(["s3://survey/stac/item.json"])


@pytest.mark.slow
def test_geoparquet_of_many_runs_is_one_data_set(flight: Path, tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    words = ("--model", flight / "model.onnx", "--output", f"{tmp_path}/found/", "--format", "geoparquet")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.tif").write_bytes((flight / "a.tif").read_bytes())
    for scenes in ([flight / "a.tif"], [flight / "a.tif", flight / "b.tif"], [tmp_path / "other" / "a.tif"]):
        assert run(*scenes, *words) == 0
    table = dataset.dataset(tmp_path / "found").to_table()
    assert sorted(table["scene"].to_pylist()) == sorted(
        [str(flight / "a.tif")] * 2 + [str(flight / "b.tif")] + [str(tmp_path / "other" / "a.tif")] * 2
    )
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    box = table["bbox"].to_pylist()[0]
    assert box["xmin"] < table["lon"].to_pylist()[0] < box["xmax"]
    assert table["geometry"].to_pylist()[0][:5] == b"\x01\x03\0\0\0"  # a little-endian polygon


@pytest.mark.slow
def test_windows_of_a_cog_fetch_only_the_blocks_they_need(store: CountedServer, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    side, block = 4096, 512
    texture = np.random.default_rng(0).integers(0, 9, (3, side, side), dtype=np.uint8)
    texture += (np.add.outer(np.arange(side), np.arange(side)) % 240).astype(np.uint8)
    size = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "c.tif", "w", driver="COG", compress="JPEG", blocksize=block, **size) as file:
        file.write(texture)
    path = to_path("s3://survey/c.tif")
    path.upload(tmp_path / "c.tif")
    windows = [(100, 100, 640, 640), (2000, 1500, 640, 640), (0, 3000, 4096, 640), (700, 100, 640, 640)]
    blocks = {
        (column, row)
        for x, y, w, h in windows
        for column in range(x // block, (x + w - 1) // block + 1)
        for row in range(y // block, (y + h - 1) // block + 1)
    }
    with rasterio.open(tmp_path / "c.tif") as file:
        needed = sum(int(file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1)) for x, y in blocks)
    store.requests.clear()
    with open_scene(path) as remote, open_scene(tmp_path / "c.tif") as local:
        for window in windows:
            assert np.array_equal(remote.read(*window), local.read(*window))
    assert store.sent("/survey/c.tif") <= 1.1 * needed
    assert needed < 0.7 * path.stat().st_size


@pytest.mark.slow
def test_a_store_that_asks_to_slow_down_is_retried_and_then_named(store: CountedServer, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 255, (1, 1024, 1024), dtype=np.uint8)
    size = {"width": 1024, "height": 1024, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(tmp_path / "n.tif", "w", driver="GTiff", **size) as file:
        file.write(pixels)
    to_path("s3://survey/n.tif").upload(tmp_path / "n.tif")
    with open_scene("s3://survey/n.tif") as scene:
        store.fail = lambda method, path: ("503 Slow Down", "SlowDown")
        with pytest.raises(StoreError, match=r"asks to slow down \(503\)"):
            scene.read(512, 512, 64, 64)
        store.fail = None  # the same handle reads, once the store answers again
        assert np.array_equal(scene.read(512, 512, 64, 64)[..., 0], pixels[0, 512:576, 512:576])


def test_cv2_is_the_reader_of_small_images_in_a_store(store: CountedServer, tmp_path: Path) -> None:
    pixels = np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3)
    cv2.imwrite(str(tmp_path / "p.png"), pixels[..., ::-1])
    to_path("s3://survey/p.png").upload(tmp_path / "p.png")
    store.requests.clear()
    with open_scene("s3://survey/p.png") as scene:
        assert np.array_equal(scene.read(0, 0, 96, 64), pixels)
    assert store.sent("/survey/p.png") == (tmp_path / "p.png").stat().st_size  # each byte once
