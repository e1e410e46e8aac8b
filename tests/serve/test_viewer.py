"""Scenes and detections for the page: tiles, queries, files of other tools, `tinydet view`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_fixtures import SPEC

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import ArrayScene, Scene
from tinydet.runtime.writers import FORMATS, SceneDetections, open_writer, write_classes
from tinydet.serve.detection_files import SceneName, read_detections
from tinydet.serve.found import Found
from tinydet.serve.page import FOLDER, POLICY
from tinydet.serve.tiles import TILE, Levels, SceneTiles, TilePendingError, pyramid
from tinydet.serve.view import DATA, export_view, open_view, with_tiles
from tinydet.serve.view_command import main as view

SIZE = (700, 530)
BOXES = 400


def pixels(width: int = SIZE[0], height: int = SIZE[1]) -> np.ndarray:
    """Smooth colors, which JPEG keeps."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [127 + 120 * np.sin(x / 90 + k) * np.cos(y / 70 - k) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def found(count: int = BOXES, classes: int = len(SPEC.classes)) -> Detections:
    rng = np.random.default_rng(3)
    low = rng.uniform(0, (SIZE[0] - 20, SIZE[1] - 20), (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(2, 20, (count, 2))], axis=1).astype(np.float32)
    data = {"tile": rng.integers(0, 9, count).astype(np.int32), "pass": rng.integers(0, 2, count).astype(np.int32)}
    data["seam_distance"] = np.where(rng.random(count) < 0.2, np.inf, rng.uniform(0, 99, count)).astype(np.float32)
    scores = rng.integers(5, 100, count).astype(np.float32) / np.float32(100)
    return Detections(boxes, scores, rng.integers(0, classes, count).astype(np.int32), data).by_score()


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "scene.png"
    Image.fromarray(pixels()).save(path)
    return path


def write(path: Path, kind: str, detections: Detections, scene: str = "scene.png") -> Path:
    with open_writer(path, SPEC, kind) as written:
        written(SceneDetections(scene, 1, *SIZE, detections))
    if kind.startswith("yolo"):
        write_classes(path.with_name("classes.txt"), SPEC)
    return path


# -------------------------------------------------------------------------------------------------------------- tiles


def decode(data: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 1024), (700, 530)])
def test_levels_halve_down_to_one_pixel(size: tuple[int, int]) -> None:
    levels = Levels(*size)
    assert levels.size(levels.max_level) == size
    assert levels.size(0) == (1, 1)
    assert levels.max_level == int(np.ceil(np.log2(max(size))))  # the rule of Deep Zoom
    for level in range(levels.max_level):
        assert levels.size(level) == tuple(-(-side // 2) for side in levels.size(level + 1))


def test_tiles_of_the_full_level_make_up_the_scene() -> None:
    tiles = SceneTiles(lambda: ArrayScene("a", pixels()))
    top = tiles.levels.max_level
    columns, rows = tiles.levels.shape(top)
    image = np.concatenate(
        [np.concatenate([decode(tiles.tile(top, x, y)) for x in range(columns)], axis=1) for y in range(rows)]
    )
    assert image.shape[:2] == SIZE[::-1]
    assert np.abs(image - pixels()).mean() < 2
    with pytest.raises(LookupError):
        tiles.tile(top, columns, 0)


def test_tiles_read_at_once_are_those_read_one_by_one() -> None:
    scene = ArrayScene("a", pixels(1100, 777))
    tiles = SceneTiles(lambda: scene)
    at_once = dict(pyramid(scene, tiles.levels.max_level))
    assert len(at_once) == tiles.levels.count(tiles.levels.max_level)
    for key, data in at_once.items():
        single = decode(tiles.tile(*key))
        assert decode(data).shape == single.shape
        if key[0] > 7:  # on small levels of an odd size, the pixels of the two lie elsewhere by parts of a pixel
            assert np.abs(decode(data) - single).mean() < 4, key


class Strips(Scene):
    """A scene without overviews that counts the pixels that are read."""

    name, width, height = "strips", 8192, 6000
    read_pixels = 0

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Any:
        self.read_pixels += width * height
        return np.full((size[1], size[0], 3), 90, np.uint8)


def test_without_overviews_the_file_is_read_once_for_all_coarse_tiles() -> None:
    scene = Strips()
    tiles = SceneTiles(lambda: scene)
    with contextlib.suppress(TilePendingError):  # unless the thread is faster
        tiles.tile(0, 0, 0)
    assert tiles.wait(30)
    assert tiles.progress == 1
    once = scene.width * scene.height
    assert scene.read_pixels == once
    for level in range(11):
        columns, rows = tiles.levels.shape(level)
        for column in range(columns):
            for row in range(rows):
                assert decode(tiles.tile(level, column, row)).mean() == pytest.approx(90, abs=2)
    assert scene.read_pixels == once
    tiles.tile(12, 0, 0)
    assert scene.read_pixels <= once + (2 * TILE) ** 2
    tiles.close()


# ------------------------------------------------------------------------------------------------------------ queries


def test_a_query_selects_what_a_loop_selects() -> None:
    of = Found(found())
    corners, score, labels = (100.0, 50.0, 400.0, 300.0), 0.4, [0]
    expected = [
        i
        for i, (x1, y1, x2, y2) in enumerate(of.boxes.tolist())
        if x2 >= 100 and x1 <= 400 and y2 >= 50 and y1 <= 300
        if of.detections.scores[i] >= np.float32(0.4) and of.detections.labels[i] == 0
    ]
    assert of.select(corners, score, labels).tolist() == expected


def test_a_density_counts_each_center_once() -> None:
    of = Found(found())
    grid = np.array(of.density(of.select(), (0, 0, 1024, 1024), 8))
    assert grid.sum() == BOXES
    x, y = ((of.boxes[0, :2] + of.boxes[0, 2:]) / 2 // 128).astype(int)
    assert grid[y, x] >= 1


def test_counts_by_score_are_those_of_queries_at_every_threshold() -> None:
    of = Found(found())
    summary = of.summary(len(SPEC.classes))
    counts = np.array(summary["counts"])
    for place, edge in enumerate(summary["score_edges"][:-1]):
        for label in range(len(SPEC.classes)):
            assert counts[label, place:].sum() == len(of.select(score=edge, labels=[label]))
        assert np.sum(of.summary(len(SPEC.classes), edge)["sizes"]) == len(of.select(score=edge))


def test_scores_of_any_range_have_bins() -> None:
    of = found(50)
    of = Found(Detections(of.boxes, of.scores * 300 - 80, of.labels))
    summary = of.summary(len(SPEC.classes))
    assert np.sum(summary["counts"]) == 50
    assert summary["score_edges"][0] <= of.detections.scores.min()


def test_a_box_is_of_the_tile_that_shows_it_best() -> None:
    grid = TileGrid(*SIZE, 256, 64)
    of = with_tiles(Detections(found().boxes, found().scores, found().labels), grid)
    for box, tile, distance in zip(of.boxes.astype(float), of.tiles, of.seam_distance, strict=True):
        inner = []
        for x1, y1, x2, y2 in grid.bounds(np.arange(len(grid))).tolist():
            sides = [box[0] - x1 if x1 else np.inf, x2 - box[2] if x2 < SIZE[0] else np.inf]
            sides += [box[1] - y1 if y1 else np.inf, y2 - box[3] if y2 < SIZE[1] else np.inf]
            inner.append(min(sides))
        assert distance == pytest.approx(max(inner), abs=1e-3)
        assert inner[tile] == pytest.approx(max(inner), abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- files

KINDS = [kind for kind, form in FORMATS.items() if not form.tracked and not form.placed]


@pytest.mark.parametrize("kind", KINDS)
def test_what_infer_writes_is_read_back(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    mine = found(30)
    path = write(tmp_path / f"a{FORMATS[kind].suffix}", kind, mine)
    read = read_detections(path, SceneName("scene.png", *SIZE))
    back = read.detections
    np.testing.assert_allclose(back.boxes, mine.boxes, atol=1e-3)
    if kind != "yolo":
        np.testing.assert_array_equal(back.scores, mine.scores)
    names = [read.classes[label] for label in back.labels]
    if kind == "coco-results":
        assert names == [f"category {SPEC.category_ids[label]}" for label in mine.labels]
    else:
        assert names == [SPEC.classes[label] for label in mine.labels]
    if kind in ("csv", "parquet"):
        np.testing.assert_array_equal(back.tiles, mine.tiles)
        np.testing.assert_array_equal(back.passes, mine.passes)
        np.testing.assert_array_equal(back.seam_distance, mine.seam_distance)


RESULT = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
IMAGE = {"id": 7, "file_name": "scene.png", "width": SIZE[0], "height": SIZE[1]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([RESULT, {**RESULT, "image_id": 8}], "2 images (ids 7, 8); choose the one of scene.png: --image-id 7"),
        ([{**RESULT, "bbox": [1, 2, "x", 4]}], "bbox"),
        ([{**RESULT, "bbox": [1, 2, -3, 4]}], "negative side"),
        ([{**RESULT, "bbox": [9000, 2, 3, 4]}], "outside of scene.png (700x530 pixels)"),
        ({"images": [{**IMAGE, "width": 99}], "categories": [], "annotations": [RESULT]}, "has 99x530 pixels"),
        (
            {
                "images": [{**IMAGE, "file_name": "a.png"}, {**IMAGE, "id": 8, "file_name": "b.png"}],
                "categories": [],
                "annotations": [],
            },
            "no image named scene.png",
        ),
        ({"type": "FeatureCollection", "features": [{"properties": {"score": 1}}]}, "no column x1"),
    ],
)
def test_a_file_of_other_detections_is_refused_in_one_line(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(said)):
        read_detections(path, SceneName("scene.png", *SIZE))


def test_an_image_id_and_category_names_choose_from_results_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([RESULT, {**RESULT, "image_id": 8, "category_id": 3}]))
    read = read_detections(path, SceneName("scene.png", *SIZE, image_id=8, categories={3: "boat", 4: "buoy"}))
    assert (len(read.detections), read.classes, read.category_ids) == (1, ("boat", "buoy"), (3, 4))


# ------------------------------------------------------------------------------------------------------- page, folder


def test_the_vendored_file_is_the_one_that_is_recorded() -> None:
    record = (FOLDER / "vendor" / "README.md").read_text(encoding="utf-8")
    data = (FOLDER / "vendor" / "openseadragon.min.js").read_bytes()
    assert hashlib.sha256(data).hexdigest() in record
    assert re.search(rb"openseadragon (\S+)", data).group(1).decode() in record  # type: ignore[union-attr]
    assert (FOLDER / "vendor" / "openseadragon.LICENSE.txt").is_file()


def test_the_page_has_the_policy_of_the_server_and_names_no_other_host() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert POLICY.replace("; frame-ancestors 'none'", "") in html
    for path in FOLDER.glob("*.*"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|eval\(|innerHTML|style=", text), path.name


def test_no_detections_are_results_too(scene: Path, tmp_path: Path) -> None:
    """A link to a folder is the folder."""
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "page").mkdir()
    (tmp_path / "link").symlink_to("page")
    for _ in range(2):  # an earlier export is replaced
        export_view(open_view(scene, [tmp_path / "none.json"]), tmp_path / "link")
        described = json.loads((tmp_path / "page" / DATA).read_text(encoding="utf-8"))
        assert described["results"][0]["count"] == 0 and described["results"][0]["classes"] == []
    assert (tmp_path / "link").is_symlink()
    assert Found(Detections.empty()).summary(0)["counts"] == []


def test_an_exported_folder_holds_the_detections_and_all_tiles(scene: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.csv", "csv", found())
    shown = open_view(scene, [file, file])
    export_view(shown, tmp_path / "page")
    described = json.loads((tmp_path / "page" / DATA).read_text(encoding="utf-8"))
    assert [each["job"] for each in described["results"]] == ["mine", "mine-2"]
    result = described["results"][0]
    data, start = (tmp_path / "page" / result["file"]).read_bytes(), 0
    for name, kind, width in result["columns"]:
        column = np.frombuffer(data, kind, result["count"] * width, start)
        start += column.nbytes
        if name == "boxes":
            np.testing.assert_array_equal(column.reshape(-1, 4), Found(shown.files[0].found.detections).boxes)
    assert start == len(data)
    levels = Levels(*SIZE)
    assert len(list((tmp_path / "page" / "data" / "tiles").rglob("*.jpg"))) == levels.count(levels.max_level)
    assert all((tmp_path / "page" / path).is_file() for path in result["downloads"].values())
    assert 'data-source="static"' in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    export_view(shown, tmp_path / "page")  # replaces an earlier one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "page"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.png", "a.json"], "missing.png: no such file"),
        (["{scene}"], "name a file of detections, or make one"),
        (["{scene}", "missing.json"], "missing.json: no such file"),
        (["{scene}", "{scene}"], "detections are read from .json"),
        (["{scene}", "{file}", "--export", "{folder}"], "has other files; name a new or empty folder"),
        (["{scene}", "{file}", "--overlap", "9"], "--overlap needs --tile"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    words: list[str], said: str, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", "coco", found(3))
    assert view([word.format(scene=scene, file=file, folder=tmp_path) for word in words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


# ------------------------------------------------------------------------------------------------------------- routes


@pytest.fixture(scope="session")
def client(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
    pytest.importorskip("httpx2")
    from tinydet.serve.scenes_api import SceneStore
    from tinydet.serve.view import view_application

    file = write(tmp_path_factory.mktemp("results") / "mine.csv", "csv", found())
    store = SceneStore()
    yield testclient.TestClient(view_application(open_view(scene, [file]), store, ["testserver"]))
    store.close()


def test_pages_of_detections_follow_each_other(client: Any) -> None:
    of = Found(found())
    query = {"score": 0.3, "class": SPEC.classes[0], "limit": 50}
    ids = of.select(score=0.3, labels=[0]).tolist()
    pages = [client.get("/scenes/scene/detections", params={**query, "offset": k}).json() for k in range(0, 400, 50)]
    assert [id for page in pages for id in page["ids"]] == ids
    assert {page["total"] for page in pages} == {len(ids)}
    here = client.get("/scenes/scene/detections", params={**query, "from_id": ids[17]}).json()
    assert (here["offset"], here["ids"][0]) == (17, ids[17])
    np.testing.assert_allclose(here["boxes"], of.boxes[here["ids"]], atol=1e-3)


def test_a_crop_has_the_pixels_of_the_scene(client: Any) -> None:
    crop = decode(client.get("/scenes/scene/crop?bbox=10.5,20,40,50.2").content)
    np.testing.assert_array_equal(crop, pixels()[20:51, 10:40])
    assert decode(client.get("/scenes/scene/crop?bbox=0,0,10,5&size=100").content).shape == (50, 100, 3)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/scenes/other", 404),
        ("/scenes/scene/tiles/10/9/0.jpg", 404),
        ("/scenes/scene/tiles/-1/0/0.jpg", 404),
        ("/scenes/scene/detections?bbox=1,2,3", 422),
        ("/scenes/scene/detections?bbox=nan,0,1,1", 422),
        ("/scenes/scene/detections?limit=5001", 422),
        ("/scenes/scene/detections?job=other", 404),
        ("/scenes/scene/crop?bbox=900,0,901,1", 422),
        ("/viewer/../view.py", 404),
        ("/viewer/%2e%2e/view.py", 404),
        ("/jobs/mine/results?format=exe", 422),
    ],
)
def test_a_request_for_what_is_not_there_is_refused(client: Any, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_the_page_comes_with_its_policy_and_only_for_its_own_name(client: Any) -> None:
    assert client.get("/").headers["content-security-policy"] == POLICY
    assert client.get("/viewer/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_result_is_downloaded_as_infer_writes_it(client: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(client.get("/jobs/mine/results?format=coco").content)
    read = read_detections(tmp_path / "a.json", SceneName("scene.png", *SIZE))
    np.testing.assert_array_equal(read.detections.by_score().scores, found().scores)
