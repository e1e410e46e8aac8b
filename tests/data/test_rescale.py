from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.data.coco import load_dataset, read_pixels
from tinydet.data.coco_file import load_document
from tinydet.data.resample import Filter, resample
from tinydet.data.rescale import add_arguments, by_factor, by_short_side, rescale_annotation, rescale_document, run


def rescale(*argv: str | Path) -> str:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in argv]))


@pytest.mark.parametrize("split", ["val"])
def test_citypersons_scaled_to_a_quarter_equals_tiny_citypersons_exactly(shared: Path, split: str) -> None:
    folder = shared / "data" / "annotations"
    tiny = json.loads((folder / f"tiny_citypersons_{split}.json").read_text())
    made = rescale_document(load_document(folder / f"citypersons_{split}.json"), by_factor(0.25))
    assert made["images"] == tiny["images"]
    assert made["annotations"] == tiny["annotations"]  # boxes outside the image are not clipped


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (640, 480, (133, 100)),
        (480, 640, (100, 133)),
        (640, 200, (167, 52)),
        (500, 500, (100, 100)),
        (50, 40, (125, 100)),
    ],
)
def test_coco100_has_a_short_side_of_100_or_a_long_side_of_167(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert by_short_side(100, 167)(width, height) == by_short_side(100)(width, height) == expected


def test_the_same_rule_gives_coco800() -> None:
    assert by_short_side(800)(640, 200) == by_short_side(800, 1333)(640, 200) == (1333, 417)


def test_a_side_is_at_least_one_pixel() -> None:
    assert by_factor(0.01)(1000, 10) == (10, 1)


def test_boxes_keep_their_relative_position(shared: Path) -> None:
    document = load_document(shared / "data" / "annotations" / "coco_val2014_100.json")
    made = rescale_document(document, by_short_side(100))
    sizes = {image["id"]: (image["width"], image["height"]) for image in document.images}
    small = {image["id"]: (image["width"], image["height"]) for image in made["images"]}
    assert all(min(size) == 100 or max(size) == 167 for size in small.values())
    for old, new in zip(document.content["annotations"], made["annotations"], strict=True):
        share, other = (
            np.array(entry["bbox"]) / np.tile(where[entry["image_id"]], 2)
            for entry, where in ((old, sizes), (new, small))
        )
        assert np.allclose(share, other, rtol=1e-12)
        assert new["area"] == new["bbox"][2] * new["bbox"][3]
        assert {**new, "bbox": 0, "area": 0} == {**old, "bbox": 0, "area": 0}


def test_every_kind_of_coordinate_is_scaled() -> None:
    entry: dict[str, Any] = {
        "bbox": [10, 20, 30, 40], "area": 7, "size": 3.0, "vis_bbox": [10, 20, 3, 4], "score": 0.5,
        "segmentation": [[10, 20, 40, 20, 40, 60]], "keypoints": [10, 20, 2, 0, 0, 0],
    }  # fmt: skip
    assert rescale_annotation(entry, 0.5, 0.25) == {
        "bbox": [5, 5, 15, 10], "area": 150, "size": 150**0.5, "vis_bbox": [5, 5, 1.5, 1], "score": 0.5,
        "segmentation": [[5, 5, 20, 5, 20, 15]], "keypoints": [5, 5, 2, 0, 0, 0],
    }  # fmt: skip
    mask = rescale_annotation({**entry, "segmentation": {"counts": "x", "size": [9, 9]}}, 0.5, 0.25)
    assert mask["segmentation"] == [[5, 5, 5, 15, 20, 15, 20, 5]]


def test_rounded_boxes_keep_an_area() -> None:
    entry = rescale_annotation({"bbox": [1.23456, 2.0, 0.0004, 1.00049]}, 1, 1, digits=3)
    assert entry["bbox"] == [1.235, 2.0, 0.001, 1.0]
    assert entry["area"] == 0.001


@pytest.mark.parametrize("filter", ["area", "bilinear", "lanczos"])
def test_a_rescaled_folder_contains_the_downsampled_images(shared: Path, tmp_path: Path, filter: Filter) -> None:
    source = shared / "data" / "tinyperson640-val"
    document = json.loads((source / "annotations.json").read_text())
    document["images"] = document["images"][:2]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] <= document["images"][1]["id"]]
    (tmp_path / "two.json").write_text(json.dumps(document))
    rescale(tmp_path / "two.json", "--images", source / "images", "--factor", "1/4", "--filter", filter,
            "--format", "png", "--output", tmp_path / "new")  # fmt: skip
    made, whole = load_dataset(tmp_path / "new"), load_dataset(tmp_path / "two.json", source / "images")
    for i in range(2):
        pixels = read_pixels(made, i)
        assert pixels.shape == (160, 160, 3)
        mean = read_pixels(whole, i).reshape(160, 4, 160, 4, 3).mean(axis=(1, 3))
        assert np.abs(pixels - mean).mean() < (1 if filter == "area" else 6)


@pytest.mark.parametrize(("width", "height"), [(64, 52), (7, 5), (1, 1), (333, 211), (129, 60), (50, 200)])
@pytest.mark.parametrize("filter", ["bilinear", "lanczos"])
def test_resampling_matches_pillow(filter: Filter, width: int, height: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="compares with Pillow, which comes with torchvision")
    pixels = np.random.default_rng(0).integers(0, 256, (103, 129, 3), np.uint8)
    theirs = image.fromarray(pixels).resize((width, height), getattr(image.Resampling, filter.upper()))
    difference = np.abs(resample(pixels, width, height, filter).astype(int) - np.asarray(theirs))
    assert difference.max() <= 1  # Pillow rounds between the two axes


@pytest.mark.parametrize("filter", ["area", "bilinear", "lanczos"])
def test_a_fine_checkerboard_becomes_gray(filter: Filter) -> None:
    board = (np.indices((120, 120)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    small = resample(board, 29, 31, filter)[2:-2, 2:-2].astype(int)
    assert np.abs(small - 127.5).max() < 12  # sampling without a filter gives 0 and 255


@pytest.mark.parametrize("filter", ["area", "bilinear", "lanczos"])
def test_resampling_to_the_same_size_changes_nothing(filter: Filter) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    assert np.array_equal(resample(pixels, 11, 9, filter), pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "1/4", "--long", "9"], "--long limits the long side"),
        (["--short", "100", "--long", "50"], "at most the long side, got 100 and 50"),
    ],
)
def test_an_invalid_size_is_rejected(shared: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rescale(shared / "data" / "annotations" / "coco_val2014_100.json", *arguments)


@pytest.mark.parametrize("arguments", [[], ["--factor", "1/0"], ["--factor", "nan"], ["--factor", "1", "--short", "5"]])
def test_exactly_one_numeric_size_is_required(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        rescale("a.json", *arguments)


@pytest.mark.parametrize(("width", "height", "filter"), [(0, 5, "area"), (5, 5, "cubic")])
def test_invalid_resampling_is_rejected(width: int, height: int, filter: Any) -> None:
    with pytest.raises(ValueError, match="expected at least 1x1|must be one of area, bilinear, lanczos"):
        resample(np.zeros((9, 9, 3), np.uint8), width, height, filter)
