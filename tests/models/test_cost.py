"""What a detector costs, against counts by hand and against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch

from tinydet.models.cost import multiply_adds, training_bytes
from tinydet.models.detector import DetectorConfig, build_detector


def test_the_head_costs_what_its_convolutions_say_on_each_level() -> None:
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=16, classes=3, options={"head_convs": 2}))
    counts = multiply_adds(detector, (128, 192))
    tower, outputs = 2 * 2 * 16 * 16 * 9, 16 * 9 * (9 * 3 + 9 * 4)
    for level, stride in (("P2", 4), ("P3", 8), ("P4", 16), ("P5", 32)):
        assert counts[f"head {level}"] == (128 // stride) * (192 // stride) * (tower + outputs)
    assert counts["head P6"] == 2 * 3 * (tower + outputs)
    inner = sum(c * 16 * (128 >> i) * (192 >> i) for c, i in zip(detector.backbone.channels, (2, 3, 4, 5), strict=True))
    layer = sum(16 * 16 * 9 * (128 >> i) * (192 >> i) for i in (2, 3, 4, 5))
    assert counts["pyramid"] == inner + layer


def test_faster_rcnn_pays_for_its_proposals() -> None:
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=8, classes=1, detector="faster_rcnn"))
    counts = multiply_adds(detector, (64, 64))
    assert counts["box head"] == 1000 * (8 * 49 * 32 + 32 * 32 + 32 * 2 + 32 * 8)
    assert counts["head P2"] == 16 * 16 * (8 * 8 * 9 + 8 * 3 + 8 * 12)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_memory_is_what_the_backward_pass_really_keeps(norm: str) -> None:
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
    assert all(p.device.type == "cpu" for p in detector.parameters())  # the detector itself was not touched
