"""Cutting: recorded results of the benchmark; cut files and tiles cut on the fly give the same samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.coco import load_dataset
from tinydet.data.coco_file import load_document
from tinydet.data.samples import Cut, TrainingTiles, Truncated
from tinydet.data.sub_images import add_arguments, benchmark_tiles, cut_document, run, write_tiles
from tinydet.evaluate.sub_images import merge_sub_images
from tinydet.geometry.tiles import TileGrid


def cut(*argv: str | Path) -> str:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in argv]))


def scenes(folder: Path, *, seed: int = 0, suffix: str = ".png") -> Path:
    """Four noise images with boxes of all kinds, many of them at borders; the last is smaller than a tile."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / "images" / "deep").mkdir(parents=True)
    for n, (width, height) in enumerate([(300, 170), (161, 129), (160, 128), (90, 60)]):
        name = f"deep/{n}{suffix}"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (height, width, 3), np.uint8))
        images.append({"id": 3 * n + 5, "file_name": name, "width": width, "height": height, "video": f"v{n}"})
        for _ in range(60):
            x, y = rng.uniform(-4, [width - 5, height - 5])
            w, h = rng.uniform(5, 40, 2)
            flags = {"iscrowd": 0, "ignore": bool(rng.random() < 0.2), "uncertain": bool(rng.random() < 0.2)}
            entry = {"id": len(annotations) + 7, "image_id": 3 * n + 5, "category_id": int(rng.choice([0, 4])), **flags,
                     "bbox": [x, y, w, h], "area": w * h, "vis_bbox": [x + 1, y + 1, w / 2, h / 2],
                     "segmentation": [[x, y, x, y + h, x + w, y + h, x + w, y]]}  # fmt: skip
            annotations.append(entry)
    categories = [{"id": 0, "name": "person"}, {"id": 4, "name": "boat"}]
    document = {"images": images, "annotations": annotations, "categories": categories, "info": {"year": 2020}}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def small_tiles(width: int, height: int) -> Any:
    return benchmark_tiles(width, height, (160, 128), (20, 20))


def small_grid(width: int, height: int) -> Any:
    return TileGrid(width, height, 128, 32).tiles


def test_cutting_the_recorded_file_gives_the_recorded_corner_file(shared: Path) -> None:
    folder = shared / "cases" / "evaluation" / "case11"
    recorded = json.loads((folder / "corner_gt.json").read_text())
    assert cut_document(load_document(folder / "gt.json")) == recorded  # every field, to the last bit


def test_a_720p_frame_is_cut_as_in_the_benchmark() -> None:
    tiles = benchmark_tiles(1280, 720)
    assert [(tile.x, tile.y) for tile in tiles] == [(0, 0), (590, 0), (640, 0), (0, 208), (590, 208), (640, 208)]
    assert [(tile.row, tile.column, tile.index) for tile in tiles[2:4]] == [(0, 2, 2), (1, 0, 3)]
    assert {(tile.width, tile.height) for tile in tiles} == {(640, 512)}


@pytest.mark.parametrize(
    ("cut_rule", "truncated"), [(small_tiles, "drop"), (small_grid, "ignore"), (small_tiles, "ignore")]
)
def test_tiles_cut_on_the_fly_equal_the_samples_of_the_cut_files(
    tmp_path: Path, cut_rule: Cut, truncated: Truncated
) -> None:
    whole = load_document(scenes(tmp_path / "whole"))
    write_tiles(whole, cut_document(whole, cut_rule, truncated=truncated), tmp_path / "cut")
    assert_same_samples(
        TrainingTiles(load_dataset(tmp_path / "whole"), 160, 20, flip=False, cut=cut_rule, truncated=truncated),
        TrainingTiles(load_dataset(tmp_path / "cut"), 160, 20, flip=False, truncated=truncated),
    )


@pytest.mark.parametrize("grid", ["benchmark", "tinydet"])
def test_a_real_dataset_gives_the_same_samples_cut_and_uncut(shared: Path, tmp_path: Path, grid: str) -> None:
    images = shared / "data" / "aerialcars-kitais" / "images"
    document = json.loads((images.parent / "annotations.json").read_text())
    document["images"] = document["images"][:6]
    ids = {image["id"] for image in document["images"]}
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in ids]
    (tmp_path / "six.json").write_text(json.dumps(document))
    cut(tmp_path / "six.json", "--images", images, "--grid", grid, "--format", "png", "--output", tmp_path / "cut")
    own: dict[str, Any] = {"cut": benchmark_tiles, "truncated": "drop"} if grid == "benchmark" else {}
    rule = {key: value for key, value in own.items() if key == "truncated"}
    assert_same_samples(
        TrainingTiles(load_dataset(tmp_path / "six.json", images), 640, 128, flip=False, **own),
        TrainingTiles(load_dataset(tmp_path / "cut"), 640, 128, flip=False, **rule),
    )


def assert_same_samples(fly: TrainingTiles, files: TrainingTiles) -> None:
    assert len(fly) == len(files)
    found = [0, 0]
    for index in range(len(fly)):
        a, b = (tiles.sample(index, seed=0, epoch=0) for tiles in (fly, files))
        assert np.array_equal(a.pixels, b.pixels)
        assert np.array_equal(a.labels, b.labels)
        assert np.allclose(a.boxes, b.boxes, rtol=0, atol=1e-4)
        assert np.allclose(a.regions, b.regions, rtol=0, atol=1e-4)
        found[0] += len(a.boxes)
        found[1] += len(a.regions)
    assert found[0] > 50
    assert found[1] > 0 or not fly.dataset.ignore.any()


def test_truncated_boxes_are_dropped_or_ignored_and_nothing_else_differs(tmp_path: Path) -> None:
    document = load_document(scenes(tmp_path))
    dropped, ignored = (cut_document(document, small_tiles, truncated=s) for s in ("drop", "ignore"))  # type: ignore[arg-type]
    assert dropped["images"] == ignored["images"]

    def rows(content: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(a["image_id"], *a["bbox"], bool(a["ignore"])) for a in content["annotations"]]

    def at_the_border(row: tuple[Any, ...]) -> bool:
        """Objects mostly outside their image are objects in training, but the benchmark drops them."""
        tile, x, y, w, h, _ = row
        width, height = (ignored["images"][tile][side] for side in ("width", "height"))
        return bool(min(x, y, width - x - w, height - y - h) < 1e-4)

    more = set(rows(ignored)) - set(rows(dropped))
    assert set(rows(dropped)) < set(rows(ignored))
    assert len(more) > 9 and all(row[-1] or at_the_border(row) for row in more)
    assert {type(a["uncertain"]) for a in ignored["annotations"]} == {bool}


def test_every_box_inside_a_tile_is_kept_with_all_of_its_fields(tmp_path: Path) -> None:
    document = load_document(scenes(tmp_path))
    content = cut_document(document, small_tiles)
    assert content["info"] == {"year": 2020}
    assert content["old_images"] == document.images
    assert [image["id"] for image in content["images"]] == list(range(len(content["images"])))
    assert [entry["id"] for entry in content["annotations"]] == list(range(len(content["annotations"])))
    checked = 0
    for tile in content["images"]:
        x1, y1, x2, y2 = tile["corner"]
        assert (tile["width"], tile["height"]) == (x2 - x1, y2 - y1)
        inside = [entry for entry in content["annotations"] if entry["image_id"] == tile["id"]]
        (whole,) = (image for image in document.images if image["file_name"] == tile["file_name"])
        assert tile["video"] == whole["video"]
        for entry in document.annotations(whole):
            x, y, w, h = entry["bbox"]
            if x >= x1 and y >= y1 and x + w <= x2 and y + h <= y2:
                (same,) = [e for e in inside if np.allclose(e["bbox"], [x - x1, y - y1, w, h], rtol=0, atol=1e-4)]
                assert np.allclose(same["vis_bbox"], [x - x1 + 1, y - y1 + 1, w / 2, h / 2], rtol=0, atol=1e-4)
                assert same["segmentation"][0][:2] == same["bbox"][:2]
                assert same["size"] ** 2 == pytest.approx(same["area"]) == pytest.approx(w * h, rel=1e-5)
                assert same["uncertain"] == entry["uncertain"]
                checked += 1
    assert checked > 100


def test_detections_on_the_tiles_can_be_merged_on_the_images(tmp_path: Path) -> None:
    whole = load_document(scenes(tmp_path / "whole"))
    write_tiles(whole, cut_document(whole, small_tiles), tmp_path / "cut")
    corners = json.loads((tmp_path / "cut" / "corners.json").read_text())
    tiles = load_document(tmp_path / "cut")
    assert [p["id"] for p in tiles.images] == [p["id"] for p in corners["images"]]
    results = [{**entry, "score": 0.5} for entry in tiles.content["annotations"]]
    moved = merge_sub_images(corners, results, suppress=False)
    originals = {image["id"]: np.array([a["bbox"] for a in whole.annotations(image)]) for image in whole.images}
    checked = 0
    for entry, result in zip(tiles.content["annotations"], moved, strict=True):
        (x, y, w, h), tile = entry["bbox"], tiles.images[entry["image_id"]]
        if x > 0 and y > 0 and x + w < tile["width"] - 0.01 and y + h < tile["height"] - 0.01:  # not clipped
            assert np.abs(originals[result["image_id"]] - result["bbox"]).max(axis=1).min() < 1e-3
            checked += 1
    assert checked > 100


def test_tiles_written_from_a_corner_file_equal_those_written_from_its_source(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "whole")
    size = ["--tile", "160x128", "--overlap", 20]
    cut(folder, *size, "--output", tmp_path / "direct")
    cut(folder / "annotations.json", *size, "--output", tmp_path / "corners.json")
    cut(tmp_path / "corners.json", "--images", folder / "images", "--output", tmp_path / "later")
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.*")) for n in ("direct", "later")]
    assert files[0] == files[1] and len(files[0]) > 10
    for name in files[0]:
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


def test_the_default_output_is_next_to_the_source(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "set")
    cut(folder)
    cut(folder / "annotations.json")
    assert (tmp_path / "set-cut" / "annotations.json").is_file()
    assert (folder / "annotations.cut.json").is_file()


def test_jpeg_tiles_nearly_equal_the_pixels_of_their_image(tmp_path: Path) -> None:
    cut(scenes(tmp_path / "set", suffix=".jpg"), "--tile", "160x128", "--output", tmp_path / "cut")
    tiles, wholes = load_document(tmp_path / "cut"), load_document(tmp_path / "set")
    tile = tiles.images[1]
    difference = np.abs(tiles.pixels(tile).astype(int) - wholes.pixels(wholes.images[0])[:128, 110:270])
    assert tile["file_name"] == "deep/0_110_0.jpg"
    assert difference.mean() < 2  # noise is the worst case


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["annotations.json", "--output", "new"], "was given without images; name their folder with --images DIR"),
        (["annotations.json", "--output", "annotations.json"], "is an input and would be overwritten"),
        ([".", "--output", "images"], "images is not empty"),
        ([".", "--tile", "600x400", "--grid", "tinydet", "--output", "new"], "are square"),
        ([".", "--overlap", "600", "--output", "new"], "cannot overlap"),
        (["corners.json", "--output", "new.json"], "already cut; to write its tiles name"),
        (["corners.json", "--grid", "benchmark"], "already cut; leave out --grid"),
    ],
)
def test_invalid_options_are_rejected_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(scenes(tmp_path))
    cut("annotations.json", "--output", "corners.json")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        cut(*arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_a_corner_outside_its_image_is_rejected_and_nothing_is_written(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "whole")
    cut(folder / "annotations.json", "--output", tmp_path / "corners.json")
    corners = json.loads((tmp_path / "corners.json").read_text())
    corners["images"][0]["corner"][2] += 1
    corners["images"][0]["width"] += 1
    (tmp_path / "corners.json").write_text(json.dumps(corners))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        ValueError, match=r"0.png is 300x170 pixels, but image 0 of .* has the corner \[0, 0, 301, 170\]"
    ):
        cut(tmp_path / "corners.json", "--images", folder / "images", "--output", tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_two_images_with_one_file_are_rejected(tmp_path: Path) -> None:
    folder = scenes(tmp_path)
    document = json.loads((folder / "annotations.json").read_text())
    document["images"].append({**document["images"][0], "id": 99})
    (folder / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="several images share the file deep/0.png"):
        cut_document(load_document(folder))


@pytest.mark.parametrize(
    "name",
    ["citypersons_val.json", "nwpu_vhr10.json", "pesmod_every10.json", "tinyperson_156_frames_approx1920x1080.json"],
)
def test_real_annotation_files_are_cut_as_by_a_plain_implementation(shared: Path, name: str) -> None:
    """Boxes of CityPersons reach outside the image; the part outside counts as hidden."""
    document = load_document(shared / "data" / "annotations" / name)
    content = cut_document(document)
    corners, boxes = cut_plainly(document.content)
    assert [tile["corner"] for tile in content["images"]] == corners
    assert [(entry["image_id"], entry["bbox"]) for entry in content["annotations"]] == boxes


def cut_plainly(content: dict[str, Any]) -> tuple[list[list[int]], list[tuple[int, list[float]]]]:
    """Return the corners, and (tile, [x, y, width, height]) of each box, computed one box at a time."""
    corners: list[list[int]] = []
    boxes = []
    of_image: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        of_image[entry["image_id"]].append(entry["bbox"])
    for image in content["images"]:
        ends = [range(side, whole + side - shared, side - shared) for whole, side, shared in
                ((image["width"], 640, 50), (image["height"], 512, 50))]  # fmt: skip
        for bottom in (min(end, image["height"]) for end in ends[1]):
            for right in (min(end, image["width"]) for end in ends[0]):
                left, top = max(right - 640, 0), max(bottom - 512, 0)
                for x, y, w, h in of_image[image["id"]]:
                    x1, x2 = (min(max(v, left), right) - left for v in (x, x + w))
                    y1, y2 = (min(max(v, top), bottom) - top for v in (y, y + h))
                    if np.sqrt((x2 - x1) * (y2 - y1)) >= 0.7 * np.sqrt(w * h) > 0:
                        boxes.append((len(corners), np.float32([x1, y1, x2 - x1, y2 - y1]).tolist()))
                corners.append([left, top, right, bottom])
    return corners, boxes
