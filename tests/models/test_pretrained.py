"""Starting from other weights: outputs are kept where the weights fit, and the other layers are listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet18
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tinydet.models.box_coder import CODER_WEIGHTS
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.pretrained import Source, initialize, read_source
from tinydet.train.__main__ import main
from tinydet.train.config import config_of
from tinydet.train.run import choose_alpha

PERSON, CAR, COCO = 1, 3, 91  # rows of torchvision's COCO weights


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names in the files that torchvision publishes, which are older than its code."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"(inner|layer)_blocks\.(\d+)\.0\.", r"\1_blocks.\2.", key)
        key = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", key)
        renamed[re.sub(r"^(head\..*)conv\.(\d)\.0\.", lambda m: f"{m[1]}conv.{2 * int(m[2])}.", key)] = value
    return renamed


def saved(state: dict[str, torch.Tensor], path: Path, names: str) -> str:
    torch.save(old_names(state) if names == "old" else state, path)
    return str(path)


def source_of(state: dict[str, torch.Tensor], folder: Path, detector: str) -> Source:
    """Read weights under torchvision's names of today and of its files; both give the same."""
    new, old = (read_source(saved(state, folder / f"{names}.pth", names), detector) for names in ("new", "old"))
    assert new.weights.keys() == old.weights.keys()
    assert all(torch.equal(value, old.weights[key]) for key, value in new.weights.items())
    return old


@torch.no_grad()
def test_torchvisions_faster_rcnn_keeps_its_outputs_for_shared_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = TorchvisionFasterRCNN(_resnet_fpn_extractor(resnet18(weights=None), 5), COCO).eval()
    source = source_of(theirs.state_dict(), tmp_path, "faster_rcnn")
    ours = build_detector(DetectorConfig("resnet18", classes=2, detector="faster_rcnn")).eval()
    report = initialize(ours, source, ("car", "unicorn"))
    assert "classes it does not know, randomly initialized: unicorn" in report
    assert any("anchors are not used" in line and "5.88, 8.84" in line for line in report)
    assert not any(line.startswith("randomly initialized") for line in report)
    images = torch.randn(1, 3, 64, 64)
    features, wanted = ours.pyramid(images), theirs.backbone(images)
    for mine, other in zip(features.values(), wanted.values(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(ours.rpn.head(list(features.values())), theirs.rpn.head(list(wanted.values())), strict=True):
        torch.testing.assert_close(mine, other)
    pooled = torch.randn(3, 256, 7, 7)
    logits, boxes = ours.roi_heads.box_predictor(ours.roi_heads.box_head(pooled))
    their_logits, their_boxes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
    torch.testing.assert_close(logits[:, :2], their_logits[:, [0, CAR]])
    torch.testing.assert_close(boxes[:, 4:8], their_boxes[:, 4 * CAR : 4 * CAR + 4])


@torch.no_grad()
def test_torchvisions_retinanet_means_the_same_boxes_in_our_order_and_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    extractor = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    theirs = TorchvisionRetinaNet(extractor, COCO).eval()
    torch.nn.init.normal_(theirs.head.regression_head.bbox_reg.bias)
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.bias)
    source = source_of(theirs.state_dict(), tmp_path, "retinanet-p3p7")
    ours = build_detector(DetectorConfig("resnet18", classes=1, detector="retinanet-p3p7")).eval()
    report = initialize(ours, source, ("person",))
    assert not any("randomly" in line for line in report)
    images = torch.randn(1, 3, 64, 64)
    outputs = ours(images)
    wanted = theirs.head(list(theirs.backbone(images).values()))
    order = [3 * ratio + octave for octave in range(3) for ratio in range(3)]  # of theirs, in our order
    logits = wanted["cls_logits"][0, :, PERSON].view(-1, 9)[:, order].flatten()
    deltas = wanted["bbox_regression"][0].view(-1, 9, 4)[:, order].reshape(-1, 4) * torch.tensor(CODER_WEIGHTS)
    torch.testing.assert_close(torch.cat(outputs.logits, 1)[0, :, 0], logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(outputs.deltas, 1)[0], deltas, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_levels_are_taken_by_their_name_and_p2_starts_from_random_weights(tmp_path: Path) -> None:
    extractor = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    state = TorchvisionRetinaNet(extractor, COCO).state_dict()
    ours = build_detector(DetectorConfig("resnet18", classes=1))
    report = initialize(ours, read_source(saved(state, tmp_path / "coco.pth", "new"), "retinanet"), ("unicorn",))
    assert "randomly initialized: fpn.inner.0, fpn.layer.0, head.classification_head.cls_logits" in report
    for level in range(3):
        torch.testing.assert_close(
            ours.fpn.layer[level + 1].weight, state[f"backbone.fpn.layer_blocks.{level}.0.weight"], rtol=0, atol=0
        )


def thin_head(detector: str) -> dict[str, Any]:
    return {} if detector == "faster_rcnn" else {"head_convs": 1}


def checkpoint(path: Path, classes: tuple[str, ...], detector: str = "retinanet") -> str:
    torch.manual_seed(1)
    config = DetectorConfig("mobilenet_v2", 16, "batch", len(classes), detector, options=thin_head(detector))
    edges = (0.5, 0.4, 0.3)[: 2 if detector == "retinanet-p3p7" else 3]
    weights = build_detector(config, edges).state_dict()
    weights = {k: torch.randn_like(v) if v.is_floating_point() and k != "fpn.alpha" else v for k, v in weights.items()}
    save_checkpoint(Checkpoint(config, weights, classes, tuple(range(len(classes))), tile=96), path)
    return str(path)


@pytest.mark.parametrize("detector", ["retinanet", "retinanet-p3p7", "faster_rcnn"])
def test_our_own_checkpoint_comes_back_whole_and_by_the_names_of_its_classes(detector: str, tmp_path: Path) -> None:
    source = read_source(checkpoint(tmp_path / "model.pth", ("person", "car"), detector), detector)
    config = DetectorConfig("mobilenet_v2", 16, "batch", 2, detector, options=thin_head(detector))
    same = build_detector(config)
    assert len(initialize(same, source, ("person", "car"))) == 1  # nothing is missing
    state = same.state_dict()
    assert all(torch.equal(state[k], v) for k, v in source.weights.items() if k != "fpn.alpha")
    assert set(state["fpn.alpha"].tolist()) == {1.0}  # alpha is the run's own
    swapped = build_detector(config)
    initialize(swapped, source, ("car", "person"))
    layer = "roi_heads.box_predictor.cls_score.bias" if detector == "faster_rcnn" else (
        "head.classification_head.cls_logits.bias")  # fmt: skip
    rows, before = swapped.state_dict()[layer], source.weights[layer]
    if detector == "faster_rcnn":
        assert torch.equal(rows, before[[0, 2, 1]])
    else:
        assert torch.equal(rows.view(9, 2), before.view(9, 2).flip(1))


def test_another_backbone_or_a_foreign_file_is_refused_and_named(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.pth", ("person",))
    other = build_detector(DetectorConfig("resnet18", 16))
    with pytest.raises(ValueError, match=r"model.pth: does not fit the backbone.*--backbone"):
        initialize(other, read_source(model, "retinanet"), ("person",))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "classifier.pth")
    with pytest.raises(
        ValueError, match=r"classifier.pth: not the weights of a torchvision detector.*--weights-backbone"
    ):
        read_source(str(tmp_path / "classifier.pth"), "retinanet")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth: not a file of tensors"):
        read_source(str(tmp_path / "text.pth"), "retinanet")
    with pytest.raises(ValueError, match=r"absent.pth: no such file; --init takes coco"):
        read_source("absent.pth", "retinanet")


@pytest.mark.parametrize(("flags", "alpha"), [([], (0.5, 0.4, 0.3)), (["--alpha", "0.7"], (0.7, 0.7, 0.7))])
def test_fine_tuning_keeps_alpha_unless_an_option_sets_it_and_reports_what_is_random(
    flags: list[str],
    alpha: tuple[float, ...],
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "old.pth", ("person",))
    quick = ["--preset", "small", "--channels", "16", "--head-convs", "1", "--epochs", "1", "--lr", "1e-9",
             "--tile", "96", "--overlap", "32", "--precision", "fp32", "--no-tensorboard"]  # fmt: skip
    assert main(["--init", "old.pth", "--data", str(squares), *quick, *flags]) == 0
    printed = capsys.readouterr().out
    assert "randomly initialized: head.classification_head.cls_logits\n" in printed
    model, old = load_checkpoint(tmp_path / "model.pth"), load_checkpoint(tmp_path / "old.pth")
    assert model.alpha == alpha and model.detector.norm == "batch"
    assert ("kept from old.pth" in model.alpha_source) == (not flags)
    assert ("the weights of old.pth were trained with 0.5, 0.4, 0.3" in printed) == bool(flags)
    key = "head.regression_head.bbox_reg.weight"
    torch.testing.assert_close(model.weights[key], old.weights[key])


@pytest.mark.parametrize(
    ("old", "flags", "alpha", "described"),
    [
        ("channel", [], (0.5, 0.4, 0.3), "the mean over the channels of kept from old.pth"),
        ("attention", [], None, "1 everywhere (a conventional FPN); the attention of old.pth is dropped"),
        (
            "three",
            ["--alpha", "one"],
            (0.5, 0.4, 0.3),
            "one-alpha, learned; started at the mean of kept from old.pth",
        ),
        ("fixed", ["--alpha", "one"], (0.5, 0.4, 0.3), "one-alpha, learned; started at the mean of kept from"),
    ],
)
def test_the_source_of_alpha_says_what_became_of_learned_factors(
    old: str,
    flags: list[str],
    alpha: tuple[float, ...] | None,
    described: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = DetectorConfig("mobilenet_v2", 16, "batch", 1, fusion=old, options={"head_convs": 1, "head_init": "he"})
    start = None if old == "attention" else (0.5, 0.4, 0.3)
    weights = build_detector(config, start).state_dict()
    save_checkpoint(Checkpoint(config, weights, ("square",), (3,), tile=96, alpha_source="older"), tmp_path / "old.pth")
    new = config_of(["--init", "old.pth", "--preset", "small", *flags]).resolve()
    found, source = choose_alpha(new, None, read_source("old.pth", "retinanet"))
    assert (None if found is None else pytest.approx(found)) == alpha
    assert source.startswith(described)


def test_sigma_power_is_refused_for_a_trained_pyramid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--sigma-power initializes the pyramid"):
        config_of(["--init", "old.pth", "--sigma-power", "0.5"]).resolve()
