"""`tinydet salpha`: what is counted, on what the network sees, and what the command says about it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from designs import FASTER_RCNN, RETINANET, released_design, torchvision_design
from torchvision.ops import box_iou

from tinydet.data.coco import Dataset, load_dataset
from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.registry import anchors_of
from tinydet.models.retinanet import RetinaNet
from tinydet.runtime.scan import plan_tiles
from tinydet.salpha.__main__ import main
from tinydet.salpha.counting import best_anchors, count_levels, estimate_alpha
from tinydet.salpha.dataset import statistics_of

REAL = ["tinyperson_156_frames_approx1920x1080", "tiny_citypersons_val", "hituav_six_flight_dates", "coco_val2014_100"]
Box = tuple[float, float, float, float]


def write_coco(path: Path, sizes: Iterable[tuple[int, int]], boxes: Iterable[dict[str, Any]]) -> Path:
    """An annotation file; each of `boxes` holds its annotation, image_id and category_id being 1 unless given."""
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": width, "height": height}
            for n, (width, height) in enumerate(sizes, start=1)
        ],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **box} for n, box in enumerate(boxes, start=1)],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "car"}],
    }
    path.write_text(json.dumps(document))
    return path


def random_file(path: Path, sizes: list[tuple[int, int]], *, seed: int = 0, mirror: bool = False) -> Path:
    """200 boxes of quarter pixels on each image, 3 to 80 pixels large."""
    rng = np.random.default_rng(seed)
    boxes = []
    for n, size in enumerate(sizes, start=1):
        sides = np.minimum(np.exp(rng.uniform(np.log(3), np.log(80), (200, 2))), np.array(size) - 1)
        corners = rng.uniform(0, 1, (200, 2)) * (np.array(size) - sides)
        for x, y, w, h in (np.floor(np.concatenate([corners, sides], axis=1) * 4) / 4).tolist():
            boxes.append({"image_id": n, "bbox": [size[0] - x - w if mirror else x, y, w, h]})
    return write_coco(path, sizes, boxes)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(random_file(tmp_path / "random.json", [(640, 512), (300, 200), (640, 512), (1000, 700)]))


def test_objects_are_counted_and_ignore_regions_are_not(tmp_path: Path) -> None:
    file = write_coco(
        tmp_path / "a.json",
        [(640, 512), (640, 512)],
        [
            {"bbox": [100, 100, 8, 8]},
            {"bbox": [200, 100, 9, 8], "image_id": 2},
            {"bbox": [300, 100, 20, 20], "category_id": 7},
            {"bbox": [300, 200, 20, 20], "iscrowd": 1},
            {"bbox": [300, 300, 100, 100], "ignore": 1},
        ],
    )
    assert statistics_of(load_dataset(file), RETINANET).counts == (2, 1, 0, 0, 0)
    assert statistics_of(load_dataset(file, categories=["person"]), RETINANET).counts == (2, 0, 0, 0, 0)


def test_statistics_are_the_counts_of_the_images(dataset: Dataset) -> None:
    sizes = [(image.width, image.height) for image in dataset.images]
    for design in (RETINANET, FASTER_RCNN, torchvision_design("retinanet")):
        for count in ("gt", "anchor"):
            found = statistics_of(dataset, design, count=count)
            expected = count_levels(dataset.boxes, sizes, design, image_index=dataset.image_index, count=count)
            assert found.counts == expected
            assert found.alpha == estimate_alpha(expected)
            assert (found.boxes, found.images) == (800, 4)


@pytest.mark.parametrize(
    ("tile", "overlap", "scale"), [(256, 64, 1.0), (128, 0, 0.5), (200, 60, 0.7), (1024, 128, 1.0)]
)
def test_tiles_are_counted_one_by_one(dataset: Dataset, tile: int, overlap: int, scale: float) -> None:
    expected, shown, tiles = np.zeros(5, int), 0, 0
    for n, image in enumerate(dataset.images):
        plan = plan_tiles(image.width, image.height, tile=tile, overlap=overlap, scale=scale)
        for window in plan.grid.tiles:
            tiles += 1
            boxes = []
            for x1, y1, x2, y2 in dataset.of_image(n).boxes:
                left, right = max(x1 - window.x, 0), min(x2 - window.x, window.width)
                top, bottom = max(y1 - window.y, 0), min(y2 - window.y, window.height)
                visible = max(right - left, 0) * max(bottom - top, 0)
                if (visible / ((x2 - x1) * (y2 - y1))) ** 0.5 >= 0.7:
                    boxes.append([side * plan.scale for side in (left, top, right, bottom)])
            expected += count_levels(boxes, (tile, tile), RETINANET)
            shown += len(boxes)
    found = statistics_of(dataset, RETINANET, tile=tile, overlap=overlap, scale=scale)
    assert found.counts == tuple(expected)
    assert (found.boxes, found.images) == (shown, tiles)


def test_one_tile_of_the_images_size_changes_nothing(tmp_path: Path) -> None:
    square = load_dataset(random_file(tmp_path / "square.json", [(512, 512)] * 3))
    whole, tiled = statistics_of(square, RETINANET), statistics_of(square, RETINANET, tile=512, overlap=128)
    assert (whole.counts, whole.boxes, whole.images) == (tiled.counts, tiled.boxes, tiled.images)


def test_every_object_no_larger_than_the_overlap_is_seen(dataset: Dataset) -> None:
    for n in range(len(dataset.boxes)):
        alone = dataclasses.replace(
            dataset,
            **{name: getattr(dataset, name)[n : n + 1] for name in ("boxes", "labels", "image_index", "ignore")},
        )
        found = statistics_of(alone, RETINANET, tile=200, overlap=80)
        assert sum(found.counts) == found.boxes >= 1


def test_half_the_scale_is_a_data_set_of_half_the_size(dataset: Dataset, tmp_path: Path) -> None:
    half = write_coco(
        tmp_path / "half.json",
        [(image.width // 2, image.height // 2) for image in dataset.images],
        [
            {"image_id": int(n) + 1, "bbox": [x1 / 2, y1 / 2, (x2 - x1) / 2, (y2 - y1) / 2]}
            for n, (x1, y1, x2, y2) in zip(dataset.image_index, dataset.boxes.tolist(), strict=True)
        ],
    )
    rescaled, written = statistics_of(dataset, RETINANET, scale=0.5), statistics_of(load_dataset(half), RETINANET)
    assert rescaled.counts == written.counts != statistics_of(dataset, RETINANET).counts


def test_flip_counts_the_mirror_images_too(tmp_path: Path) -> None:
    sizes = [(637, 512), (301, 200)]  # of no whole number of cells, so that the mirror image differs
    plain = load_dataset(random_file(tmp_path / "plain.json", sizes))
    mirror = load_dataset(random_file(tmp_path / "mirror.json", sizes, mirror=True))
    for design in (RETINANET, torchvision_design("retinanet"), released_design("retinanet")):
        once, other = (statistics_of(d, design, count="anchor") for d in (plain, mirror))
        assert once.counts != other.counts
        for flipped in (statistics_of(d, design, count="anchor", flip=True) for d in (plain, mirror)):
            assert flipped.counts == tuple(np.add(once.counts, other.counts))
            assert (flipped.boxes, flipped.images) == (once.boxes + other.boxes, 4)


def test_anchors_are_found_by_the_name_of_the_detector_and_of_the_layout() -> None:
    assert RetinaNet.design == RETINANET and FasterRCNN("mobilenet_v2", 1, channels=8).design == FASTER_RCNN
    assert anchors_of("retinanet").design() == RETINANET and anchors_of("faster_rcnn").design() == FASTER_RCNN
    for detector in ("retinanet", "faster_rcnn"):
        designs = [anchors_of(detector).design(layout) for layout in ("tinydet", "torchvision", "released")]
        assert len({repr(design) for design in designs}) == 3
    with pytest.raises(ValueError, match="retinanet, retinanet-p3p7, faster_rcnn"):
        anchors_of("yolo")
    with pytest.raises(ValueError, match="unknown anchor layout 'mine'; choose one of: tinydet, torchvision, released"):
        anchors_of("retinanet").design("mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_the_command_repeats_the_authors_counts(detector: str, shared: Path, tmp_path: Path) -> None:
    case = json.loads((shared / "cases" / "salpha" / "A_lognormal.json").read_text())
    expected = case["expected"][{"retinanet": "retina_S_alpha", "faster_rcnn": "fpn_S_alpha"}[detector]]
    sizes = [(image["width"], image["height"]) for image in case["images"]]
    boxes = [{"image_id": n, "bbox": box} for n, image in enumerate(case["images"], 1) for box in image["boxes"]]
    file = write_coco(tmp_path / "case.json", sizes, boxes)
    released = ["--detector", detector, "--anchors", "released", "--count", "anchor"]
    assert main([str(file), *released, "--json", str(tmp_path / "salpha.json")]) == 0
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert list(found["counts"].values()) == expected["NP_first"]
    assert found["boxes"] == expected["n_gt_after_clip"]
    assert [round(alpha, 3) for alpha in found["alpha"].values()] == expected["alpha45_34_23"][::-1]


def test_the_table_says_what_the_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = random_file(tmp_path / "a.json", [(640, 512)] * 10)
    assert main([str(file), "--json", str(tmp_path / "salpha.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert set(found) >= {"counts", "alpha_raw", "alpha", "boxes", "images", "seconds"}
    assert sum(found["counts"].values()) == found["boxes"] == 2000 and found["images"] == 10
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    for (level, count), stride in zip(found["counts"].items(), (4, 8, 16, 32, 64), strict=True):
        assert rows[level][1:3] == [str(stride), f"{count:,}"]
    for edge, raw in found["alpha_raw"].items():
        assert rows[edge][1:3] == [f"{raw:.3f}", f"{found['alpha'][edge]:.3f}"]
    assert [row for row in rows if row in found["counts"]] == ["P2", "P3", "P4", "P5", "P6"]
    assert "2,000 objects (person, car) in 10 images" in printed


def test_flags_reach_the_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = random_file(tmp_path / "a.json", [(640, 512)] * 2), tmp_path / "salpha.json"
    flags = "--detector faster_rcnn --categories person --count anchor --alpha-range 0.5,0.6 --tile 256 --overlap 32"
    assert main([str(file), *flags.split(), "--scale", "0.5", "--flip", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    how = {"tile": 256, "overlap": 32, "scale": 0.5, "flip": True, "count": "anchor"}
    expected = statistics_of(
        load_dataset(file, categories=["person"]), FASTER_RCNN, **how, alpha_range=(0.5, 0.6)
    ).to_json()
    for key in ("counts", "alpha_raw", "alpha", "boxes", "images", "warnings"):
        assert found[key] == expected[key]
    rule = {"detector": "faster_rcnn", "anchors": "tinydet", "alpha_range": [0.5, 0.6], **how}
    assert found["rule"] == rule and found["source"] == "a.json"
    assert f"in {found['images']} tiles" in capsys.readouterr().out


def test_a_coco_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_file(tmp_path / "annotations.json", [(640, 512)])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()  # pixels are not looked at
    assert main([str(tmp_path)]) == 0
    assert "200 objects" in capsys.readouterr().out


def test_values_that_do_not_exist_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_coco(tmp_path / "a.json", [(640, 512)], [{"bbox": [9, 9, 8, 8]}] * 30)
    assert main([str(file), "--json", str(tmp_path / "salpha.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["P4->P3", "-", "1.000"] for line in printed)
    assert "note: no object has its best anchor on P3, P4, P5, P6" in printed
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert found["alpha_raw"] == {"P3->P2": 0.0, "P4->P3": None, "P5->P4": None}
    assert found["alpha"] == {"P3->P2": 0.2, "P4->P3": 1.0, "P5->P4": 1.0}


def test_a_data_set_of_large_objects_is_called_not_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [{"bbox": [9, 9, side, side]} for side in (20, 60, 60, 120, 250) for _ in range(20)]
    assert main([str(write_coco(tmp_path / "a.json", [(640, 512)], boxes))]) == 0
    assert "not a tiny data set for these anchors, alpha = 1 advised" in capsys.readouterr().out


def test_a_file_without_boxes_has_alpha_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--tile", "256"]):
        assert main([str(write_coco(tmp_path / "a.json", [(640, 512)], [])), *flags]) == 0
        assert "alpha, finest first: 1,1,1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overlap", "64"], "name their size with --tile"),
        (["--tile", "64"], "overlap must be at least 0 and smaller than the tile of 64, got 128"),
        (["--scale", "0"], "the scale is an image resize factor above 0"),
        (["--scale", "nan", "--tile", "256"], "the scale is an image resize factor above 0"),
        (["--alpha-range", "2,1"], "0 <= LOW <= HIGH"),
        (["--categories", "dog"], "person, car"),
        (["--json", "nowhere/salpha.json"], "nowhere"),
    ],
)
def test_a_users_fault_is_one_line_and_exit_code_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(random_file(tmp_path / "a.json", [(640, 512)])), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinydet salpha: error: ") and error.count("\n") == 1
    assert message in error


def test_an_alpha_range_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["a.json", "--alpha-range", "wide"])
    assert "expected LOW,HIGH as in 0.2,2.0, got 'wide'" in capsys.readouterr().err


def test_counting_needs_no_torch(tmp_path: Path) -> None:
    file = random_file(tmp_path / "a.json", [(640, 512)])
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tinydet.salpha.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "200 objects" in done.stdout


@pytest.mark.parametrize("name", REAL)
def test_real_annotations_are_counted_like_the_dense_computation(name: str, shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "annotations" / f"{name}.json")
    statistics = statistics_of(dataset, RETINANET)
    assert sum(statistics.counts) == statistics.boxes == dataset.objects.sum()
    tried = 0
    for n, image in enumerate(dataset.images):
        boxes = dataset.of_image(n).boxes[~dataset.of_image(n).ignore][:10].astype(np.float32)
        anchors = np.concatenate(RETINANET.grid_anchors(image.height, image.width))
        dense = box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
        found = best_anchors(boxes, (image.width, image.height), RETINANET)
        np.testing.assert_array_equal(found.anchor, dense.argmax(axis=1))
        np.testing.assert_array_equal(found.iou, dense.max(axis=1, initial=0))
        tried += len(found.iou)
        if tried >= 40:
            break


def test_tiny_data_sets_have_small_factors_and_coco_has_not(shared: Path) -> None:
    def raw(name: str) -> tuple[float | None, ...]:
        return statistics_of(load_dataset(shared / "data" / "annotations" / f"{name}.json"), RETINANET).alpha_raw

    for tiny in REAL[:2]:
        assert all(factor is not None and factor < 0.6 for factor in raw(tiny))
    assert any(factor is not None and factor > 1 for factor in raw("coco_val2014_100"))


@pytest.mark.slow
def test_every_real_annotation_file_is_counted_whole(shared: Path) -> None:
    files = sorted((shared / "data" / "annotations").iterdir())
    assert len(files) > 10
    for file in files:
        dataset = load_dataset(file)
        for design in (RETINANET, FASTER_RCNN):
            assert sum(statistics_of(dataset, design).counts) == dataset.objects.sum()
            tiled = statistics_of(dataset, design, tile=640, overlap=320)
            assert sum(tiled.counts) == tiled.boxes


@pytest.mark.slow
def test_without_an_argument_the_embedded_scenes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "objects (person) in 240 images" in printed
    assert "not a tiny data set" not in printed
