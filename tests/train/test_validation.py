"""Validation while training: what its curves and its image show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.evaluate.model_data import open_for_scoring
from tinydet.evaluate.score_model import DatasetDetections, detect_dataset
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.models.distributed import Processes
from tinydet.train.sampling import with_images
from tinydet.train.validation import Validation


@pytest.fixture
def validation(squares: Path, tmp_path: Path) -> Validation:
    document = json.loads((squares / "annotations.json").read_text())
    for annotation in document["annotations"]:
        annotation["id"] += 1  # the id 0 counts as unmatched in pycocotools, and so in the protocol
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    dataset = load_dataset(tmp_path / "annotations.json", squares / "images")
    return Validation(dataset, device=torch.device("cpu"))


def perfect(validation: Validation, which: list[int], only: int | None = None) -> DatasetDetections:
    """What a detector without fault finds on some images, or its first `only` boxes of each."""
    dataset = validation.dataset
    found = [
        {"image_id": dataset.images[i].id, "category_id": 3, "score": 0.9, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i in which
        for x0, y0, x1, y1 in dataset.of_image(i).boxes[:only].tolist()  # the protocol counts `ignore` as objects
    ]
    return DatasetDetections(found, tuple(dataset.images[i].id for i in which), len(which), 0, 1.0, ())


def test_the_parts_of_all_processes_are_scored_as_one(validation: Validation) -> None:
    whole = range(len(validation.dataset.images))
    parts = [perfect(validation, Processes(rank, 3).shard(whole)) for rank in range(3)]
    assert validation._score(parts)["AP50"] == validation._score([perfect(validation, list(whole))])["AP50"] == 1.0
    assert validation._score(parts[:2])["AP50"] == 1.0  # of the images that were looked at


def test_a_detector_that_finds_half_has_precision_one_up_to_recall_one_half(validation: Validation) -> None:
    assert validation.curves() == {}
    validation._score([perfect(validation, list(range(7)), only=2)])
    curve = validation.curves()["precision-recall/all"]
    assert len(curve) == 101 and (curve[:51] == 1).all() and (curve[51:] == 0).all()


def test_the_image_shows_objects_in_green_and_detections_in_red(validation: Validation) -> None:
    validation._score([perfect(validation, list(range(7)), only=0)])
    missed = validation.image()
    assert missed.dtype == torch.uint8 and missed.shape[0] == 3
    lime, red = (torch.tensor(color).view(3, 1, 1) for color in ((0, 255, 0), (255, 0, 0)))
    assert (missed == lime).all(0).any() and not (missed == red).all(0).any()
    validation._score([perfect(validation, list(range(7)))])
    assert (validation.image() == red).all(0).any()


def test_tensorboard_can_read_what_is_shown(validation: Validation, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util
    from torch.utils.tensorboard import SummaryWriter

    validation._score([perfect(validation, list(range(7)))])
    with SummaryWriter(str(tmp_path / "runs")) as writer:
        validation.show(writer, 5)
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    (image,) = events.Images("predictions (red) and objects (green)")
    assert image.step == 5 and image.width >= 2 * 96
    (curve,) = (event for event in events.Tensors("precision-recall/all"))
    *_, precision, recall = tensor_util.make_ndarray(curve.tensor_proto)
    assert (precision == 1).all() and recall[0] == 1 and recall[-1] == 0  # from the lowest threshold up


def test_validation_finds_what_evaluate_and_infer_find_by_default(squares: Path, tmp_path: Path) -> None:
    """The score at the end of a training is that of `tinydet evaluate model.pth`, which has no option of training."""
    config = DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=1, options={"head_convs": 1})
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    torch.nn.init.zeros_(detector.get_parameter("head.classification_head.cls_logits.bias"))  # young: finds a lot
    checkpoint = Checkpoint(config, detector.state_dict(), ("square",), (3,), tile=96)
    save_checkpoint(checkpoint, tmp_path / "model.pth")
    dataset = load_dataset(*find_dataset(squares))
    dataset = with_images(dataset, np.arange(len(dataset.images)) < 2)
    ours = Validation(dataset, device=torch.device("cpu"))
    ours(detector, checkpoint.spec())
    theirs = detect_dataset(open_for_scoring(tmp_path / "model.pth", None), dataset).detections
    assert len(theirs) > 10 and ours.predictions == theirs
