"""How much memory is free, and whether a tile fits into it."""

from __future__ import annotations

import logging
from pathlib import Path

from tinydet.spec import ModelSpec

# Per pixel of a tile, what a network holds at once. Measured with 64 channels: ResNet-18 takes 96 in ONNX Runtime and
# 87 in OpenVINO, MobileNetV2 325 and 130.
LEAST_BYTES_PER_PIXEL, USUAL_BYTES_PER_PIXEL = 80, 320
GIBIBYTE = 1 << 30

logger = logging.getLogger("tinydet.runtime")

# Of this process's control group, as containers have it: limit, use, and what is cached of files and can be freed.
CONTROL_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_memory(root: Path = Path("/")) -> int:
    """Return the free memory of this machine or container in bytes, as far as the system says; else 4 GiB."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        free = 4 * GIBIBYTE
    for limit, use, statistics, cached in CONTROL_GROUPS:
        try:
            most, used = int((root / limit).read_text()), int((root / use).read_text())
            numbers = dict(line.split() for line in (root / statistics).read_text().splitlines())
            free = min(free, max(0, most - used + int(numbers[cached])))
        except (OSError, KeyError, ValueError):  # ValueError: "max", which is no limit
            continue
    return free


def check_memory(spec: ModelSpec, path: Path, free: int | None = None) -> None:
    """Refuse a tile that needs more memory than is free, and warn of one that may need more.

    The system would end the process without a message.

    Args:
        spec: of a model on the CPU, for the tile that it is opened for.
        free: memory in bytes; None: that of this machine.

    Raises:
        ValueError: it does not fit.
    """
    free = free_memory() if free is None else free
    least, usual = (spec.tile**2 * each / GIBIBYTE for each in (LEAST_BYTES_PER_PIXEL, USUAL_BYTES_PER_PIXEL))
    remedy = f"{free / GIBIBYTE:.1f} GiB are free; take a smaller --tile, or let --tile auto choose it"
    if least * GIBIBYTE > free:
        raise ValueError(
            f"{path} needs at least {least:.1f} GiB of memory for a tile of {spec.tile} pixels, and {remedy}"
        )
    if usual * GIBIBYTE > free:
        logger.warning(f"a tile of {spec.tile} pixels may need {usual:.1f} GiB of memory or more, and {remedy}")
