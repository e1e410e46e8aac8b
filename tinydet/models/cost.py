"""The cost of a detector before it is trained: multiply-adds by part, memory of a training step.

Nothing is computed: `Detector.run_layers` runs on torch's meta device, which knows shapes only.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tinydet.models.detector import Detector


def multiply_adds(detector: Detector, size: tuple[int, int]) -> dict[str, int]:
    """Count the multiply-adds of one image of `size` (height, width) in convolutions and linear layers.

    Transposed convolutions count as well.

    Returns:
        Counts of "backbone", "pyramid", "head LEVEL" for layers that run once per level, and "box head" for layers that
        run on proposals.
    """
    model = copy.deepcopy(detector).to("meta").eval()
    parts = {"backbone": "backbone", **dict.fromkeys(model.pyramid_modules, "pyramid")}
    costs: dict[str, list[int]] = {}

    def record(name: str, weight: Tensor, values: Tensor) -> None:
        costs.setdefault(name, []).append(values.numel() * weight[0].numel())

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, _, output, name=name: record(name, module.weight, output))
        elif isinstance(module, nn.ConvTranspose2d):  # its weights begin with the input channels
            module.register_forward_hook(lambda module, inputs, _, name=name: record(name, module.weight, inputs[0]))
    with torch.no_grad():
        model.run_layers(torch.empty(1, 3, *size, device="meta"))
    levels = model.design.levels
    counts: Counter[str] = Counter()
    for name, calls in costs.items():
        part = parts.get(name.partition(".")[0], "box head")
        if part == "box head" and len(calls) == len(levels):  # a head that all levels share, finest first
            counts.update({f"head {level}": cost for level, cost in zip(levels, calls, strict=True)})
        else:
            counts[part] += sum(calls)
    order = ["backbone", "pyramid", *(f"head {level}" for level in levels), "box head"]
    return {part: counts[part] for part in order if part in counts}


def training_bytes(detector: Detector, batch: int, size: tuple[int, int]) -> int:
    """Estimate the memory of a training step in float32: weights, gradients, momentum, and saved activations.

    The tensors of the loss and the allocator's overhead come on top; bfloat16 needs less.
    """
    model = copy.deepcopy(detector).to("meta").train()
    sizes: dict[int, int] = {}
    saved: list[Tensor] = []  # kept alive, so that no storage address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        saved.append(tensor)
        return tensor

    state: list[Any] = [*model.parameters(), *model.buffers()]
    owned = {tensor.untyped_storage()._cdata for tensor in state}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.run_layers(torch.empty(batch, 3, *size, device="meta"))
    activations = sum(count for storage, count in sizes.items() if storage not in owned)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(activations + weights + 2 * trained)
