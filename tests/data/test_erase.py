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
from tinydet.data.erase import add_arguments, erase_document, erase_regions, is_dense, run


def erase(*argv: str | Path) -> str:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in argv]))


def tiny_set(folder: Path) -> Path:
    """A small TinyPerson with all flags. Image 0 has a region over an object, 1 is background, 2 is dense."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for n in range(4):
        cv2.imwrite(str(folder / "images" / f"{n}.png"), rng.integers(0, 256, (80, 100, 3), np.uint8))
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(4)]
    boxes: list[tuple[int, list[float], str]] = [
        (0, [10.5, 10.25, 30, 20], "ignore"),
        (0, [60, 40, 10, 10], "uncertain"),
        (0, [80, 5, 9.5, 9.5], "logo"),
        (0, [20, 15, 6, 6], ""),
        (0, [2, 70, 5, 8], ""),
        *((2, [3.0 + n % 30 * 3, 3.0 + n // 30 * 9, 2, 6], "uncertain" if n < 20 else "") for n in range(201)),
        (3, [5, 5, 4, 4], "in_dense_image"),
    ]
    names = ("ignore", "uncertain", "logo", "in_dense_image")
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        | {name: name == flag for name in names}
        for n, (image, box, flag) in enumerate(boxes)
    ]
    document = {"type": "instance", "annotations": annotations, "images": images,
                "categories": [{"id": 1, "name": "person"}]}  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def read(path: Path) -> Any:
    return cv2.imread(str(path))[..., ::-1]


def test_a_region_is_filled_with_its_mean_color_and_nothing_else_changes() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    erased = erase_regions(pixels, np.array([[10.5, 8.2, 20.0, 12.9]]))
    window = np.s_[8:13, 10:20]  # every pixel that the region touches
    assert np.array_equal(erased[window], np.broadcast_to(np.rint(pixels[window].mean(axis=(0, 1))), (5, 10, 3)))
    erased[window] = pixels[window]
    assert np.array_equal(erased, pixels)


def test_overlapping_regions_take_their_colors_from_the_original_image() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    regions = np.array([[0, 0, 20, 20], [10, 10, 30, 30.0]])
    erased = erase_regions(pixels, regions)
    assert np.array_equal(erased[5, 5], np.rint(pixels[:20, :20].mean(axis=(0, 1))))
    assert np.array_equal(erased[15, 15], np.rint(pixels[10:30, 10:30].mean(axis=(0, 1))))


@pytest.mark.parametrize("region", [[-9, -9, 0, 30], [50, 5, 60, 9], [5, 5, 5, 9], [7, 9, 5, 4]])
def test_a_region_without_an_area_in_the_image_changes_nothing(region: list[float]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(erase_regions(pixels, np.array([region], np.float64)), pixels)


def test_spared_objects_keep_their_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    erased = erase_regions(pixels, np.array([[0, 0, 50, 40.0]]), np.array([[10, 10, 15, 15.0]]))
    assert np.array_equal(erased[10:15, 10:15], pixels[10:15, 10:15])
    assert len(np.unique(erased.reshape(-1, 3), axis=0)) <= 26


def test_the_training_set_of_the_benchmark_is_reproduced(tmp_path: Path) -> None:
    source = tiny_set(tmp_path / "set")
    report = erase(source, "--dense", 200, "--output", tmp_path / "new")
    made = load_document(tmp_path / "new")
    assert [image["id"] for image in made.images] == [0, 1]  # the background is kept
    assert [entry["bbox"] for entry in made.content["annotations"]] == [[20, 15, 6, 6], [2, 70, 5, 8]]
    assert not any(entry[flag] for entry in made.content["annotations"] for flag in ("ignore", "uncertain", "logo"))
    assert made.content["type"] == "instance"
    before, after = read(source / "images" / "0.png"), read(tmp_path / "new" / "images" / "0.png")
    assert np.array_equal(after[10:31, 10:41], np.broadcast_to(np.rint(before[10:31, 10:41].mean((0, 1))), (21, 31, 3)))
    assert (after[40:50, 60:70] == after[40, 60]).all() and (after[5:15, 80:90] == after[5, 80]).all()
    assert np.array_equal(after[50:], before[50:])
    same = [path / "images" / "1.png" for path in (source, tmp_path / "new")]
    assert same[0].read_bytes() == same[1].read_bytes()
    assert not (tmp_path / "new" / "images" / "2.png").exists()
    assert "2 images, 2 boxes; 3 regions erased, 2 dense images dropped" in report
    assert "1 object lost at least half of the pixels" in report


def test_options_spare_objects_choose_flags_and_keep_dense_images(tmp_path: Path) -> None:
    source = tiny_set(tmp_path / "set")
    report = erase(source, "--flags", "ignore", "--spare-objects", "--output", tmp_path / "new")
    before, after = read(source / "images" / "0.png"), read(tmp_path / "new" / "images" / "0.png")
    assert np.array_equal(after[15:21, 20:26], before[15:21, 20:26])
    assert np.array_equal(after[40:50, 60:70], before[40:50, 60:70])
    assert len(load_document(tmp_path / "new").images) == 4
    assert "note" not in report


def test_without_flags_only_dense_images_are_dropped(tmp_path: Path) -> None:
    source = tiny_set(tmp_path / "set")
    erase(source / "annotations.json", "--flags", "none", "--dense", 200, "--output", tmp_path / "new.json")
    kept = json.loads((tmp_path / "new.json").read_text())
    whole = json.loads((source / "annotations.json").read_text())
    assert kept["images"] == whole["images"][:2]
    assert kept["annotations"] == whole["annotations"][:5]


@pytest.mark.parametrize(("count", "dense"), [(200, False), (201, True)])
def test_an_image_is_dense_above_the_limit(count: int, dense: bool) -> None:
    assert is_dense([{"bbox": [0, 0, 1, 1]}] * count) is dense


def test_a_category_whose_annotations_are_all_erased_is_removed(shared: Path) -> None:
    document = load_document(shared / "data" / "hituav-val" / "annotations.json")
    erased = erase_document(document)
    names = [category["name"] for category in erased.content["categories"]]
    assert names == list(document.dataset.classes) and "dont_care" not in names
    assert len(document.content["annotations"]) - len(erased.content["annotations"]) == erased.removed_annotations == 1


def test_erased_real_images_have_no_regions(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "hituav-train"
    document = json.loads((source / "annotations.json").read_text())
    ids = sorted({entry["image_id"] for entry in document["annotations"] if entry["ignore"]})[:4]
    document["images"] = [image for image in document["images"] if image["id"] in ids]
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in ids]
    (tmp_path / "four.json").write_text(json.dumps(document))
    images = source / "images"
    erase(tmp_path / "four.json", "--images", images, "--format", "png", "--output", tmp_path / "new")
    before, after = load_dataset(tmp_path / "four.json", images), load_dataset(tmp_path / "new")
    assert len(after.images) == len(before.images)
    assert not after.ignore.any() and after.objects.sum() == before.objects.sum()
    for image in np.unique(before.image_index[before.ignore]).tolist():
        region = before.of_image(image).boxes[before.of_image(image).ignore][-1]  # on top of the other regions
        (x1, y1), (x2, y2) = np.floor(region[:2]).astype(int), np.ceil(region[2:]).astype(int)
        assert len(np.unique(read(after.image_path(image))[y1:y2, x1:x2].reshape(-1, 3), axis=0)) == 1
        assert len(np.unique(read(before.image_path(image))[y1:y2, x1:x2].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dense", "0", "--output", "new"], "every image has more than 0 annotations"),
        (["--output", "images"], "images is not empty"),
    ],
)
def test_invalid_options_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tiny_set(tmp_path))
    document = json.loads(Path("annotations.json").read_text())
    document["images"].pop(1)
    Path("annotations.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        erase(".", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images"]


def test_an_unknown_flag_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        erase(tmp_path, "--flags", "crowd")
    assert "unknown flag 'crowd'; choose from ignore, iscrowd, uncertain, logo, or none" in capsys.readouterr().err
