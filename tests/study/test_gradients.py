"""Eq. 3: alpha weights the gradients that pass a fused edge, and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_loss import dense_loss

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.samples import TrainingTiles
from tinydet.models.backbone import PixelNorm
from tinydet.models.batch import collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.study.gradient_norms import measure
from tinydet.study.gradients import main

CONFIG = DetectorConfig("mobilenet_v2", channels=16, norm="frozen", options={"head_convs": 1, "head_init": "he"})


@pytest.fixture
def batches(squares: Path):
    tiles = TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32, flip=False)
    return [collate([tiles.sample(i, seed=0, epoch=0)], torch.device("cpu"), PixelNorm()) for i in (0, 1)]


def test_with_alpha_zero_a_level_reaches_its_own_feature_and_those_it_is_computed_from(batches) -> None:
    torch.manual_seed(0)
    detector = build_detector(CONFIG)
    strengths = measure(detector, (0.0, 0.0, 0.0), batches)
    reaches = strengths > 0  # rows P2..P6, columns C3, C4, C5
    assert reaches.tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]


def test_a_gradient_is_the_total_derivative(batches) -> None:
    """Compare with finite differences of the loss of P5 along C3, which also reaches P5 through C4 and C5."""
    torch.manual_seed(0)
    detector = build_detector(CONFIG, (0.7, 0.7, 0.7)).double().eval()
    batch = replace(batches[0], images=batches[0].images.double())
    moved: list[torch.Tensor] = []

    def at_c3(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + moved[0] if moved else output

    def loss() -> float:
        with torch.no_grad():
            losses = dense_loss(detector, detector(batch.images), batch)
        return float(losses["classification/P5"] + losses["regression/P5"])

    strength = measure(detector, None, [batch])[3, 0]
    images = batch.images.detach().requires_grad_()
    features: list[torch.Tensor] = []
    keep = detector.backbone.register_forward_hook(lambda module, inputs, output: features.extend(output))
    losses = dense_loss(detector, detector(images), batch)
    keep.remove()
    (gradient,) = torch.autograd.grad(losses["classification/P5"] + losses["regression/P5"], features[1])
    assert strength == pytest.approx(float(gradient.norm()), rel=1e-6)
    body = detector.backbone.body
    last = next(key for key, name in body.return_layers.items() if name == "C3")
    hook = body[last].register_forward_hook(at_c3)
    step = 1e-4 * gradient / gradient.norm()
    moved.append(step)
    high = loss()
    moved[0] = -step
    low = loss()
    hook.remove()
    assert (high - low) / 2e-4 == pytest.approx(strength, rel=1e-3)


def test_without_given_factors_those_of_each_channel_are_used_and_kept(batches) -> None:
    torch.manual_seed(0)
    detector = build_detector(replace(CONFIG, fusion="channel"), (0.5, 0.5, 0.5))
    even = measure(detector, None, batches)
    detector.fpn.alpha.data[:, ::2] = 0.1
    detector.fpn.alpha.data[:, 1::2] = 0.9
    assert abs(measure(detector, None, batches)[0, 2] / even[0, 2] - 1) > 0.05
    assert detector.fpn.alpha[0, 0].item() == pytest.approx(0.1)


def test_gradients_through_an_edge_grow_with_alpha_and_others_do_not_change(batches) -> None:
    torch.manual_seed(0)
    detector = build_detector(CONFIG)
    for conv in (*detector.fpn.inner, *detector.fpn.layer):  # small weights, so that the logits hardly depend on alpha
        conv.weight.data *= 1e-6
    for branch in (detector.head.classification_head, detector.head.regression_head):
        branch.conv[0][0].bias.data.fill_(1.0)  # and no ReLU of the towers switches
    half, full = (measure(detector, (a, a, a), batches) for a in (0.5, 1.0))
    assert half[0, 2] / full[0, 2] == pytest.approx(0.125, rel=1e-2)  # P2 to C5 passes three edges
    assert half[1, 2] / full[1, 2] == pytest.approx(0.25, rel=1e-2)  # P3 to C5 passes two
    assert 0.25 <= half[1, 1] / full[1, 1] <= 0.5  # P3 to C4 passes one, or two by way of C5
    assert half[3] == pytest.approx(full[3], rel=1e-2)  # P5 passes none, only the backbone
    assert detector.fpn.alpha.tolist() == [1.0, 1.0, 1.0]  # restored


def test_the_command_writes_results_and_a_plot(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    weights = build_detector(CONFIG, (0.5, 0.5, 0.5)).state_dict()
    model = tmp_path / "model.pth"
    checkpoint = Checkpoint(CONFIG, weights, ("square",), (3,), tile=96)
    save_checkpoint(checkpoint, model)
    flags = ["--data", str(squares), "--alpha", "0,1", "--tiles", "2", "--overlap", "32"]
    assert main([str(model), *flags]) == 0
    result = json.loads((tmp_path / "model.gradients.json").read_text())
    assert result["alpha"] == [0.0, 1.0] and result["model"]["alpha"] == [0.5, 0.5, 0.5]
    assert result["gradient"]["C4"]["P2"][0] == 0.0 < result["gradient"]["C4"]["P2"][1]
    assert (tmp_path / "model.gradients.png").stat().st_size > 1000
    attention = replace(CONFIG, fusion="attention")
    save_checkpoint(replace(checkpoint, detector=attention, weights=build_detector(attention).state_dict()), model)
    assert main([str(model), *flags]) == 2
