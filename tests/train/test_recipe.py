"""The recipe of TinyPerson, on a file in the form of the official ones; which tiles it learns from; Scale Match."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from designs import DESIGNS

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.samples import TrainingTiles
from tinydet.data.sub_images import benchmark_tiles
from tinydet.models.checkpoint import load_checkpoint
from tinydet.salpha.counting import count_levels
from tinydet.salpha.dataset import statistics_of_tiles
from tinydet.salpha.detectors import anchor_counting
from tinydet.train.__main__ import main
from tinydet.train.config import TrainConfig, config_of
from tinydet.train.defaults import choose_network, choose_schedule
from tinydet.train.run import load_data, training_tiles, transform_of
from tinydet.train.sampling import without_empty

THIN = ["--backbone", "tiny", "--weights-backbone", "none", "--channels", "8", "--head-convs", "1"]

BY_IOU = {"assign": "iou", "assign_rank": 0, "assign_background": None}


def annotations(image: int, corners: list[tuple[float, float]], first: int, **marks: bool) -> Iterator[dict]:
    for number, (x, y) in enumerate(corners):
        flags = {"ignore": False, "uncertain": False, "logo": False, "in_dense_image": False, **marks}
        yield {"id": first + number, "image_id": image, "category_id": 1, "bbox": [x, y, 10.0, 14.0], "area": 140.0,
               "iscrowd": 0, "segmentation": [], **flags}  # fmt: skip


@pytest.fixture(scope="module")
def tinyperson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames of 1000x700, each four sub-images: five persons in the first sub-image of one and an ignored one in
    the last, and one that the border of the image cuts; the other is dense, with 201 annotations. Ids begin at 0."""
    root = tmp_path_factory.mktemp("tinyperson")
    (root / "images" / "labeled_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for i in range(2):
        name = f"labeled_images/{i}.jpg"
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 255, (700, 1000, 3), dtype=np.uint8))
        images.append({"id": i, "file_name": name, "width": 1000, "height": 700})
    boxes = [*annotations(0, [(20 + 30 * n, 40.5) for n in range(5)], 0)]
    boxes += annotations(0, [(900, 650)], 5, ignore=True)
    boxes += annotations(0, [(-8, 600)], 6)  # a fifth of it is in the image: in the benchmark's rule no object
    boxes += annotations(1, [(10 + 40 * (n % 20), 10 + 40 * (n // 20)) for n in range(201)], 7, in_dense_image=True)
    categories = [{"id": 1, "name": "person", "supercategory": "none"}]
    document = {"type": "instance", "images": images, "annotations": boxes, "categories": categories}
    (root / "tiny_set_train.json").write_text(json.dumps(document))
    return root


def flags_of(tinyperson: Path) -> list[str]:
    return ["--recipe", "tinyperson", "--annotations", str(tinyperson / "tiny_set_train.json"),
            "--images", str(tinyperson / "images")]  # fmt: skip


def complete(flags: list[str]) -> TrainConfig:
    """Return the configuration of a run on a CPU, on a dataset that is not small."""
    given = config_of(flags).resolve()
    return choose_schedule(choose_network(given, device="cpu")[0], given, 5000)[0]


def test_the_recipe_is_the_published_one(tinyperson: Path) -> None:
    config = complete(flags_of(tinyperson))
    assert (config.backbone, config.channels, config.options) == (
        "resnet50",
        256,
        {**BY_IOU, "head_convs": 4, "head_init": "paper"},
    )
    assert (config.epochs, config.batch, config.lr, config.clip_norm, config.freeze) == (12, 2, 0.005, 0.0, 2)
    assert (config.empty_tiles, config.dense, config.group_shapes) == (False, 200, True)
    tiles = training_tiles(config, load_data(config)[0])
    assert {(tile.width, tile.height) for tile in tiles.tiles} == {(640, 512)}  # the benchmark's sub-images
    assert config.flip and config.decay == "steps" and config.ema == 0
    two_stage = complete([*flags_of(tinyperson), "--detector", "faster_rcnn"])
    assert two_stage.lr == 0.01
    assert two_stage.options == {**BY_IOU, "straddling": False, "roi_rule": "torchvision", "canonical_scale": 224}


def test_a_run_by_the_recipe_learns_from_the_sub_images_with_persons_of_frames_that_are_not_dense(
    tinyperson: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.pth"
    flags = [*flags_of(tinyperson), *THIN, "--salpha", "--epochs", "1", "--precision", "fp32", "--no-tensorboard"]
    assert main([*flags, "--output", str(output)]) == 0
    checkpoint = load_checkpoint(output)
    assert checkpoint.progress["step"] == 1  # one tile is left of eight
    assert checkpoint.statistics is not None and sum(checkpoint.statistics["counts"].values()) == 5


@pytest.mark.slow
def test_the_recipe_trains_on_real_frames(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "tinyperson640-train"
    document = json.loads((folder / "annotations.json").read_text())
    document["images"] = document["images"][:3]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    (tmp_path / "train.json").write_text(json.dumps(document))
    flags = ["--recipe", "tinyperson", "--annotations", str(tmp_path / "train.json"), "--images"]
    flags += [str(folder / "images"), "--weights-backbone", "none", "--norm", "group", "--channels", "64"]
    assert main([*flags, "--salpha", "--epochs", "1", "--output", str(tmp_path / "model.pth")]) == 0
    assert load_checkpoint(tmp_path / "model.pth").detector.backbone == "resnet50"


@pytest.mark.parametrize("truncated", ["ignore", "drop"])
def test_tiles_without_an_object_are_those_whose_sample_has_none_and_the_others_are_counted(
    tinyperson: Path, truncated: str
) -> None:
    dataset = load_dataset(tinyperson / "tiny_set_train.json", tinyperson / "images")
    tiles = TrainingTiles(dataset, 640, 128, flip=False, cut=benchmark_tiles, truncated=truncated)  # type: ignore[arg-type]
    samples = [tiles.sample(i, seed=0, epoch=0) for i in range(len(tiles))]
    assert len(samples) == 8
    full = [tile for tile, sample in zip(tiles.tiles, samples, strict=True) if len(sample.boxes)]
    assert without_empty(tiles) == full and 0 < len(full) < 8
    design = DESIGNS["retinanet"]
    counted = statistics_of_tiles(tiles, anchor_counting(design))
    sizes = np.array([(tile.width, tile.height) for tile in tiles.tiles])
    owner = np.repeat(np.arange(len(samples)), [len(sample.boxes) for sample in samples])
    boxes = np.concatenate([sample.boxes for sample in samples]).astype(np.float64)
    assert counted.counts == tuple(count_levels(boxes, sizes, design, image_index=owner))
    tiles.tiles = full
    assert statistics_of_tiles(tiles, anchor_counting(design)).counts == counted.counts  # empty tiles add nothing


def test_no_empty_tiles_leaves_them_out_of_a_run(squares: Path) -> None:
    flags = ["--data", str(squares), "--tile", "96", "--overlap", "32", "--preset", "small"]
    lengths = []
    for extra in ([], ["--no-empty-tiles"]):
        config = complete([*flags, *extra])
        tiles = training_tiles(config, load_data(config)[0])
        lengths.append(len(tiles))
    shown = [len(tiles.sample(i, seed=0, epoch=0).boxes) for i in range(len(tiles))]
    assert lengths[1] < lengths[0] and all(shown)


def test_scale_match_gives_training_the_sizes_of_its_target(squares: Path, tmp_path: Path) -> None:
    source = load_dataset(*find_dataset(squares))  # squares of 12 pixels
    target = json.loads((squares / "annotations.json").read_text())
    for annotation in target["annotations"]:
        annotation["bbox"][2:], annotation["area"] = [6, 6], 36
    (tmp_path / "small.json").write_text(json.dumps(target))
    flags = ["--data", str(squares), "--tile", "96", "--overlap", "32", "--scale-match", str(tmp_path / "small.json")]
    config = complete(flags)
    tiles = training_tiles(config, source)
    tiles.transform = transform_of(config)
    sizes = []
    for index in range(len(tiles)):
        sample = tiles.sample(index, seed=0, epoch=0)
        whole = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1) ** 0.5
        sizes += whole.tolist()
        for x0, y0, x1, y1 in np.round(sample.boxes).astype(int):
            assert sample.pixels[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 200  # boxes lie on their squares
    assert np.median(sizes) == pytest.approx(6, abs=0.5) and len(sizes) >= 20


def test_scale_match_to_data_that_do_not_exist_is_refused_before_the_images_are_read(squares: Path) -> None:
    with pytest.raises(ValueError, match=r"^nothing\.json does not exist"):
        config_of(["--data", str(squares), "--scale-match", "nothing.json"]).resolve()
