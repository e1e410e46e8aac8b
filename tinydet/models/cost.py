"""What a detector costs before it is run: parameters, multiply-adds by part, memory of a training step.

Nothing is computed: the network runs on torch's meta device, which knows shapes only.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tinydet.models.detector import Detector
from tinydet.models.faster_rcnn import PROPOSALS, ROI_SAMPLES, ROI_SIZE, FasterRCNN
from tinydet.models.retinanet import RetinaNet


def multiply_adds(detector: Detector, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one image of `size` (height, width): of the backbone, of the pyramid, of the head by level, and
    of Faster R-CNN's head on all the proposals of inference."""
    model = _shapes_only(detector)
    counts: dict[str, int] = {}
    features = _counted(counts, "backbone", lambda: model.backbone(torch.empty(1, 3, *size, device="meta")))
    if isinstance(model, FasterRCNN):
        levels = _counted(counts, "pyramid", lambda: model.fpn(features))
        head: Callable[[Tensor], Any] = lambda level: model.rpn.head([level])  # noqa: E731
    else:
        levels = _counted(counts, "pyramid", lambda: model.pyramid(features))
        head = _one_stage_head(model)
    for name, level in zip(model.design.levels, levels, strict=True):
        _counted(counts, f"head {name}", functools.partial(head, level))
    if isinstance(model, FasterRCNN):
        pooled = torch.empty(PROPOSALS["testing"], levels[0].shape[1], ROI_SIZE, ROI_SIZE, device="meta")
        _counted(counts, "box head", lambda: model.roi_heads.box_predictor(model.roi_heads.box_head(pooled)))
    return counts


def training_bytes(detector: Detector, batch: int, size: tuple[int, int]) -> int:
    """Memory of a training step in float32: weights, gradients, momentum, and what the backward pass needs.

    The loss's own tensors and the allocator's slack come on top; under bfloat16 it is less.
    """
    model = _shapes_only(detector).train()
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no storage is counted under the address of another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    owned = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = torch.empty(batch, 3, *size, device="meta")
        if isinstance(model, FasterRCNN):
            levels = model.fpn(model.backbone(images))
            model.rpn.head(levels)
            pooled = torch.empty(batch * ROI_SAMPLES, levels[0].shape[1], ROI_SIZE, ROI_SIZE, device="meta")
            model.roi_heads.box_predictor(model.roi_heads.box_head(pooled.requires_grad_()))
        else:
            model(images)
    activations = sum(count for storage, count in sizes.items() if storage not in owned)
    weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return activations + weights + 2 * trained


def _one_stage_head(model: RetinaNet) -> Callable[[Tensor], Any]:
    return lambda level: (model.head.classification_head([level]), model.head.regression_head([level]))


def _shapes_only(detector: Detector) -> Detector:
    return copy.deepcopy(detector).to("meta").eval()


def _counted(counts: dict[str, int], name: str, compute: Callable[[], Any]) -> Any:
    """Run `compute` and keep what it costs; a multiply-add is two of the counter's operations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = compute()
    counts[name] = counter.get_total_flops() // 2
    return result
