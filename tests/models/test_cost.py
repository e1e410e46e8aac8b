"""The estimated cost of a detector, against counts by hand and against the tensors that autograd saves."""

from __future__ import annotations

import pytest
import torch

from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.cost import multiply_adds, training_bytes


def test_multiply_adds_of_head_and_pyramid_agree_with_counts_by_hand() -> None:
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=16, classes=3, options={"head_convs": 2}))
    counts = multiply_adds(detector, (128, 192))
    tower, outputs = 2 * 2 * 16 * 16 * 9, 16 * 9 * (9 * 3 + 9 * 4)
    for level, stride in (("P2", 4), ("P3", 8), ("P4", 16), ("P5", 32)):
        assert counts[f"head {level}"] == (128 // stride) * (192 // stride) * (tower + outputs)
    assert counts["head P6"] == 2 * 3 * (tower + outputs)
    inner = sum(c * 16 * (128 >> i) * (192 >> i) for c, i in zip(detector.backbone.channels, (2, 3, 4, 5), strict=True))
    layer = sum(16 * 16 * 9 * (128 >> i) * (192 >> i) for i in (2, 3, 4, 5))
    assert counts["pyramid"] == inner + layer


def test_the_box_head_of_faster_rcnn_runs_on_every_proposal() -> None:
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=8, classes=1, detector="faster_rcnn"))
    counts = multiply_adds(detector, (64, 64))
    assert counts["box head"] == 1000 * (8 * 49 * 32 + 32 * 32 + 32 * 2 + 32 * 8)
    assert counts["head P2"] == 16 * 16 * (8 * 8 * 9 + 8 * 3 + 8 * 12)


def test_the_balanced_pyramid_of_libra_is_part_of_the_pyramid() -> None:
    configs = (DetectorConfig("mobilenet_v2", channels=8, detector=name) for name in ("libra_rcnn", "faster_rcnn"))
    libra, faster = (multiply_adds(build_detector(each), (64, 64)) for each in configs)
    assert libra.pop("pyramid") - faster.pop("pyramid") == 4 * 8 * 8 * 4 * 4  # four 1x1 convolutions on the grid of P4
    assert libra == faster


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_memory_estimate_agrees_with_the_tensors_saved_for_backward(norm: str) -> None:
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=16, norm=norm, options={"head_convs": 1})).train()
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    state = [*detector.parameters(), *detector.buffers()]
    owned = {p.untyped_storage().data_ptr() for p in state}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        detector(torch.randn(2, 3, 64, 96))
    activations = sum(count for storage, count in sizes.items() if storage not in owned)
    weights = sum(p.numel() * p.element_size() for p in state)
    trained = sum(p.numel() * 4 for p in detector.parameters() if p.requires_grad)
    estimate = training_bytes(detector, 2, (64, 96))
    assert estimate == pytest.approx(activations + weights + 2 * trained, rel=0.05)
    assert all(p.device.type == "cpu" for p in detector.parameters())  # the detector itself is not moved
