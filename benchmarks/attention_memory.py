"""Measure the memory and the time of Libra R-CNN's balanced pyramid for one image, by tile size.

    python benchmarks/attention_memory.py

One thread. A training step is a forward and backward pass in torch, whose attention does not store the matrix of
logits; the exported pyramid in ONNX Runtime does. Memory is the peak above that before the pass (Linux only). Time is
CPU time, the smaller of two passes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from tinydet._internal.command import command
from tinydet.export.onnx_file import trace
from tinydet.models.libra_rcnn import BalancedFeaturePyramid

STRIDES = (4, 8, 16, 32, 64)
NAMES = tuple(f"P{i}" for i in range(2, 7))


@command("benchmarks/attention_memory.py")
def main(argv: Sequence[str] | None = None) -> int:
    torch.set_num_threads(1)
    print("| tile | channels | training step | ONNX Runtime |\n| --- | --- | --- | --- |")
    for tile, channels in ((640, 64), (640, 256), (1280, 64), (1280, 256)):
        pyramid = BalancedFeaturePyramid(channels)
        costs = (cost(training_step(pyramid, tile, channels)), cost(onnx_pass(pyramid, tile, channels)))
        print(f"| {tile} | {channels} |", *(f"{mb:.0f} MB, {seconds:.2f} s |" for mb, seconds in costs), flush=True)
    return 0


class Levels(nn.Module):
    """A pyramid that takes its levels as separate arguments, as `torch.onnx.export` requires."""

    def __init__(self, pyramid: BalancedFeaturePyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, *levels: Tensor) -> list[Tensor]:
        return self.pyramid(levels)


def levels_of(tile: int, channels: int, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, channels, tile // stride, tile // stride) for stride in STRIDES]


def training_step(pyramid: BalancedFeaturePyramid, tile: int, channels: int) -> Callable[[], object]:
    levels = [level.requires_grad_() for level in levels_of(tile, channels)]
    return lambda: torch.stack([level.sum() for level in pyramid(levels)]).sum().backward()


def onnx_pass(pyramid: BalancedFeaturePyramid, tile: int, channels: int) -> Callable[[], object]:
    outputs = [f"balanced {name}" for name in NAMES]
    model = trace(Levels(pyramid).eval(), tuple(levels_of(tile, channels, batch=2)), NAMES, outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {name: level.numpy() for name, level in zip(NAMES, levels_of(tile, channels), strict=True)}
    return lambda: session.run(None, inputs)


def cost(run: Callable[[], object]) -> tuple[float, float]:
    """Return the additional peak memory in MB and the CPU time in seconds."""
    peaks, seconds = [], []
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, begun = memory("VmRSS"), time.process_time()
        run()
        seconds.append(time.process_time() - begun)
        peaks.append(memory("VmHWM") - before)
    return max(peaks), min(seconds)


def memory(field: str) -> float:
    """Return a field of /proc/self/status in MB."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
