"""How CPU threads wait for each other.

OpenMP, which torch computes with, and ONNX Runtime let a waiting thread spin, because it notices the end of the wait
some microseconds earlier. On a machine with other work this is ruinous: the spinning thread uses up the time slice
that the thread it waits for needs. libgomp spins for up to 20 ms at the end of every operator, and training beside two
busy processes ran at a twentieth of its speed with half of the CPU (`benchmarks/busy_machine.py`). Here waiting
threads sleep almost at once, so speed follows the share of the CPU that a process gets. OpenVINO needs no setting.

`OMP_WAIT_POLICY=active` in the environment brings spinning back for both.
"""

from __future__ import annotations

import os

# 10 000 pauses are 0.2–0.6 ms: longer than most waits of a step on an idle machine, a fraction of a time slice.
OPENMP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}  # the second is libgomp's own, and prevails there
CHOSEN_BY_USER = (*OPENMP, "KMP_BLOCKTIME")


def set_openmp_wait_policy() -> None:
    """Set the environment so that OpenMP threads sleep while they wait, unless the user has chosen otherwise.

    OpenMP reads it once, when it is loaded. A program that imports torch before tinydet keeps torch's default.
    """
    if not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ.update(OPENMP)


def allow_spinning() -> bool:
    """Whether the user asks for threads that spin; read by backends that do not use OpenMP."""
    return os.environ.get("OMP_WAIT_POLICY", "").lower() == "active"
