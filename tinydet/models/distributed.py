"""Data-parallel training with torchrun: each process takes a part of every batch, and gradients are summed.

The number of processes does not change the result of a run: a batch is divided among the processes, and losses are
normalized by counts over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)  # longer than the work of any process between two collective operations
Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the number of processes. The default is a single process without torchrun."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of `items`. The parts differ in length by at most one."""
        return list(items[self.rank :: self.count])

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank in the first process, and an empty list in the others."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.first else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Overwrite the buffers of a module, such as running statistics, by those of the first process."""
        for buffer in module.buffers() if self.count > 1 else ():
            dist.broadcast(buffer, 0)


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join the process group if torchrun started this process.

    Returns:
        The processes, and the device of this one: on GPUs, each process gets its own.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return Processes(), device
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"this machine has {torch.cuda.device_count()} GPUs, fewer than processes; "
                "start torchrun with --nproc-per-node of at most this number, or train with --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Processes(dist.get_rank(), dist.get_world_size()), device


def leave_processes() -> None:
    """Leave the process group, so that the others do not wait."""
    if dist.is_initialized():
        dist.destroy_process_group()


def process_count() -> int:
    """Return the number of processes that share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Return `values` summed over all processes, without gradient. A single process gets `values` itself."""
    if process_count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total
