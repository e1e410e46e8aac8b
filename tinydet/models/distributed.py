"""Training by many processes, as torchrun starts them: each takes its part of every batch, and gradients are summed.

The number of processes changes how long a run takes, not what it computes: a batch is the tiles of one step of all
processes together, and what a loss is divided by is counted over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # a validation of rank 0 alone would have to fit into it
Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many. One alone needs no torchrun."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part; the parts differ by at most one."""
        return list(items[self.rank :: self.count])

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in the first one; an empty list in the others."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.first else None
        dist.gather_object(value, values)
        return values or []

    def tell(self, value: Any) -> Any:
        """The first process's value, in every one."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told)
        return told[0]


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Meet the other processes of a torchrun; without one this process is alone. On GPUs each takes its own.

    Raises:
        ValueError: where there are fewer GPUs than processes on this machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return Processes(), device
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"this machine has {torch.cuda.device_count()} GPUs, fewer than processes; "
                "start torchrun with --nproc-per-node of at most that, or train with --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Processes(dist.get_rank(), dist.get_world_size()), device


def leave_processes() -> None:
    """Say goodbye, so that the others do not wait."""
    if dist.is_initialized():
        dist.destroy_process_group()


def process_count() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def over_all(values: Tensor) -> Tensor:
    """`values`, summed over the processes; no gradient passes."""
    if process_count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total
