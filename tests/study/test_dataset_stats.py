"""`tinydet data stats`: measures that can be counted by hand, and recommendations that hold."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from designs import DESIGNS

from tinydet.__main__ import main as tinydet
from tinydet.data.coco import load_dataset
from tinydet.geometry.tiles import TileGrid
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import anchor_counting
from tinydet.study.dataset_advice import POSITIVE_IOU, advise, advise_overlap, advise_tile, matched_share, scaled_design
from tinydet.study.dataset_measures import crowding, measure_dataset
from tinydet.train.config import config_of

DESIGN = DESIGNS["retinanet"]
COUNTING = anchor_counting(DESIGN)


def write_annotations(path: Path, boxes: list[list[float]], size: tuple[int, int] = (200, 100), **flags: Any) -> Path:
    """Write annotations of one image with `boxes` (x, y, width, height) and one without."""
    images = [{"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]} for n in (1, 2)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **flags}
        for n, box in enumerate(boxes, 1)
    ]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]})
    )
    return path


def test_measures_equal_those_counted_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_annotations(tmp_path / "a.json", [[0, 0, 4, 4], [20, 0, 4, 16], [50, 0, 16, 16], [100, 0, 40, 10]])
    assert tinydet(["data", "stats", str(source), "--json", str(tmp_path / "s.json")]) == 0
    stats = json.loads((tmp_path / "s.json").read_text())
    assert (stats["images"], stats["images_without_objects"], stats["objects"]) == (2, 1, 4)
    assert stats["size"]["p0"] == 4 and stats["size"]["p100"] == 20 and stats["size"]["mean"] == 12  # 4, 8, 16, 20
    assert stats["size_ranges"] == {"under 2": 0, "tiny1": 1, "tiny2": 1, "tiny3": 1, "small": 1, "larger": 0}
    assert sum(stats["size_histogram"]["counts"]) == 4
    assert stats["aspect_ratio"]["p0"] == 0.25 and stats["aspect_ratio"]["p100"] == 4
    assert stats["objects_per_image"]["p100"] == 4 and stats["objects_per_megapixel"]["p100"] == 200
    assert stats["densest_image"] == {"file_name": "1.png", "objects": 4}
    assert stats["share_with_iou_above_half"] == 0
    assert set(stats["advice"]) == {"tile", "overlap", "scale", "anchors", "alpha", "init", "epochs"}
    printed = capsys.readouterr().out
    assert "4 objects and 0 ignore regions in 2 images" in printed
    assert "most objects: 4 in 1.png; 1 image without objects" in printed and "100.0 objects per megapixel" in printed


def test_ignore_regions_are_not_counted_as_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_annotations(tmp_path / "a.json", [[0, 0, 4, 4]])
    document = json.loads(source.read_text())
    document["annotations"].append({**document["annotations"][0], "id": 9, "bbox": [0, 0, 90, 90], "ignore": 1})
    source.write_text(json.dumps(document))
    found = measure_dataset(load_dataset(source), COUNTING)
    assert found.sizes.tolist() == [4.0]
    assert found.to_json()["ignore_regions"] == 1


def test_a_dataset_without_objects_is_reported_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_annotations(tmp_path / "a.json", [])
    flags = ["--json", str(tmp_path / "s.json"), "--plots", str(tmp_path / "plots")]
    assert tinydet(["data", "stats", str(source), *flags]) == 0
    assert "There are no objects to measure." in capsys.readouterr().out
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["objects"] == 0 and stats["size"] is None and stats["advice"] == {}


@pytest.mark.parametrize("seed", range(6))
def test_crowding_equals_that_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (70, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (70, 2))], axis=1)
    group = rng.integers(0, 3, 70)
    hidden = np.zeros((2, 70), bool)
    for i in range(70):
        for j in range(70):
            if i != j and group[i] == group[j]:
                w, h = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                a, b = (np.prod(box[2:] - box[:2]) for box in (boxes[i], boxes[j]))
                shared = max(w, 0) * max(h, 0)
                hidden[:, i] |= [shared > 0.5 * min(a, b), shared > 0.5 * (a + b - shared)]
    assert crowding(boxes, group) == tuple(hidden.mean(axis=1).tolist())


def test_with_the_advised_overlap_nearly_every_object_is_complete_in_a_tile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = [[float(x), float(y), float(s), float(s)] for x, y, s in rng.uniform(1, (900, 700, 90), (400, 3))]
    found = measure_dataset(load_dataset(write_annotations(tmp_path / "a.json", boxes, (1000, 800))), COUNTING)
    overlap = advise_overlap(found).value
    tile = advise_tile(found, overlap).value
    assert overlap % 32 == 0 and overlap <= tile / 2
    grid = TileGrid(1000, 800, tile, overlap).tiles
    edges = np.array([[t.x, t.y, t.x + t.width, t.y + t.height] for t in grid])
    inside = (found.boxes[:, None, :2] >= edges[:, :2]) & (found.boxes[:, None, 2:] <= edges[:, 2:])
    assert inside.all(axis=2).any(axis=1).mean() >= 0.995


def test_images_that_fit_into_one_tile_get_one(tmp_path: Path) -> None:
    found = measure_dataset(load_dataset(write_annotations(tmp_path / "a.json", [[0, 0, 9, 9]], (500, 300))), COUNTING)
    advice = advise_tile(found, 32)
    assert advice.value == 512 and "every image fits into one tile" in advice.reason


def test_advised_anchors_match_more_objects_than_the_default(tmp_path: Path) -> None:
    """The objects have 4 pixels; the smallest default anchor has four times their area."""
    rng = np.random.default_rng(0)
    boxes = [[float(x), float(y), 4.0, 4.0] for x, y in rng.uniform(0, (180, 90), (60, 2))]
    found = measure_dataset(load_dataset(write_annotations(tmp_path / "a.json", boxes)), COUNTING)
    advice = {setting.setting: setting for setting in advise(found, DESIGN)}
    arguments = found.boxes, found.image_sizes, found.image_index
    default = matched_share(*arguments, DESIGN)
    smallest = min(min(sizes) for sizes in advice["anchors"].value["sizes"])
    better = scaled_design(DESIGN, smallest / 8, advice["anchors"].value["ratios"])
    assert smallest < 8 and matched_share(*arguments, better) > default + 0.3
    scale = advice["scale"].value
    assert scale > 1 and matched_share(*arguments, DESIGN, scale) > default + 0.3
    assert f"IoU {POSITIVE_IOU}" in advice["anchors"].reason


def test_plots_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (tinydet[plots])")
    source = write_annotations(tmp_path / "a.json", [[0, 0, 4, 4], [20, 0, 4, 16], [50, 0, 16, 16]])
    assert tinydet(["data", "stats", str(source), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    for name in ("sizes", "shapes", "density", "levels"):
        assert cv2.imread(str(tmp_path / "plots" / f"{name}.png")).std() > 10
        assert f"wrote {tmp_path / 'plots' / name}.png" in printed


def test_one_category_can_be_selected(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared / "data" / "hituav-val" / "annotations.json"
    assert tinydet(["data", "stats", str(source), "--categories", "person", "--detector", "faster_rcnn"]) == 0
    assert "607 objects" in capsys.readouterr().out
    assert tinydet(["data", "stats", str(source), "--categories", "whale"]) == 2
    assert "has no category 'whale'; choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side", "count", "advised"),
    [(8, 60, "S-alpha"), (40, 60, "1"), (8, 1, "1")],  # tiny; fitting the anchors of P4; too few to count
)
def test_stats_and_train_give_the_same_advice_on_alpha_and_the_command_follows_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    side: int,
    count: int,
    advised: str,
) -> None:
    names = [f"{n}.png" for n in range(10)]
    boxes = [[50.0 * (n % 10), 60.0 * (n // 10), float(side), float(side)] for n in range(count)]
    folder = tmp_path / "my data"
    (folder / "images").mkdir(parents=True)
    write_images(folder, names, boxes)
    assert tinydet(["data", "stats", str(folder), "--json", str(tmp_path / "s.json")]) == 0
    stats, printed = json.loads((tmp_path / "s.json").read_text()), capsys.readouterr().out
    advice = stats["advice"]
    assert advice["alpha"]["value"] == advised and printed.rstrip().endswith(stats["train_command"])
    words = shlex.split(stats["train_command"])
    config = config_of(words[words.index("train") + 1 :])
    assert config.data == folder and config.salpha == (advised == "S-alpha")
    chosen = (config.tile, config.overlap, config.epochs)
    assert chosen == tuple(advice[name]["value"] for name in ("tile", "overlap", "epochs"))
    training = config.sources()[0].load()
    assert len(training.images) == 8
    counted = statistics_of(training, COUNTING, tile=config.tile, overlap=config.overlap)
    assert counted.notes[-1] == advice["alpha"]["reason"]  # what train --salpha prints
    assert stats["salpha_on_tiles"]["alpha"] == dict(zip(counted.edges, counted.alpha, strict=True))


def test_advice_is_for_the_images_that_the_command_trains_on(tmp_path: Path) -> None:
    # The small group is held out; the tiny objects in it do not decide about the training.
    names = [f"near_{n}.png" for n in range(8)] + [f"far_{n}.png" for n in range(2)]
    write_images(tmp_path, names, [[60.0 * n, 0.0, 40.0, 40.0] for n in range(8)])
    document = json.loads((tmp_path / "annotations.json").read_text())
    tiny = [
        {"id": 1000 + n, "image_id": 9, "category_id": 1, "bbox": [9 * (n % 50), 9 * (n // 50), 8, 8], "iscrowd": 0}
        for n in range(2000)
    ]
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] < 9] + tiny
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert tinydet(["data", "stats", str(tmp_path), "--json", str(tmp_path / "s.json")]) == 0
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["advice"]["alpha"]["value"] == "1" and "--salpha" not in stats["train_command"]
    assert "8 images to train on, 2 are held out" in stats["advice"]["epochs"]["reason"]


def write_images(folder: Path, names: list[str], boxes: list[list[float]]) -> None:
    """Write colored images of 512 x 512 pixels, each with `boxes` (x, y, width, height)."""
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for n, name in enumerate(names, 1):
        images.append({"id": n, "file_name": name, "width": 512, "height": 512})
        annotations += [
            {"id": len(annotations) + k, "image_id": n, "category_id": 1, "bbox": box, "iscrowd": 0}
            for k, box in enumerate(boxes, 1)
        ]
        cv2.imwrite(str(folder / "images" / name), np.full((512, 512, 3), (10, 60, 200), np.uint8))
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "annotations.json").write_text(json.dumps(document))


@pytest.mark.parametrize(("color", "init"), [((90, 90, 90), "thermal"), ((90, 90, 120), "none")])
def test_gray_images_are_advised_to_start_from_the_thermal_model(
    tmp_path: Path, color: tuple[int, int, int], init: str
) -> None:
    (tmp_path / "images").mkdir()
    write_annotations(tmp_path / "annotations.json", [[0, 0, 8, 8]])
    for n in (1, 2):
        cv2.imwrite(str(tmp_path / "images" / f"{n}.png"), np.full((100, 200, 3), color, np.uint8))
    assert tinydet(["data", "stats", str(tmp_path), "--json", str(tmp_path / "s.json")]) == 0
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["advice"]["init"]["value"] == init and ("--init thermal" in stats["train_command"]) == (init != "none")
    if init == "thermal":  # its weights were trained with its own factors
        assert stats["advice"]["alpha"]["value"] == "kept" and "alpha" not in stats["train_command"]
