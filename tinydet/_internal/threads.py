"""How CPU threads wait for each other.

By default a waiting thread of OpenMP (which torch uses) or ONNX Runtime spins: it notices the end of the wait some
microseconds earlier than a sleeping one. On a machine with other work this is ruinous, because the spinning thread
uses up the time slice that the thread it waits for needs. libgomp spins for up to 20 ms at the end of an operator, and
training slowed down far more than its share of the CPU did. Here waiting threads soon sleep, and speed follows that
share (`benchmarks/busy_machine.py`). OpenVINO's threads do so without a setting.

`OMP_WAIT_POLICY=active` in the environment makes the threads of both spin.
"""

from __future__ import annotations

import os

# GOMP_SPINCOUNT prevails in libgomp, torch's OpenMP on Linux. 5000 pauses last 0.1–0.3 ms: most waits inside a
# training step are shorter, and a time slice of the scheduler is ten times as long. Measured on two cores of a Xeon:
# with 0, a training step on an idle machine took a fifth longer; with 30 000, training beside other work was half as
# fast.
OPENMP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5000"}
OPENMP_VARIABLES = (*OPENMP, "KMP_BLOCKTIME")


def set_openmp_wait_policy() -> None:
    """Set the environment so that OpenMP threads sleep while they wait, unless the user has chosen otherwise.

    OpenMP reads it once, when it is loaded. A program that imports torch before tinydet keeps torch's default.
    """
    if not any(name in os.environ for name in OPENMP_VARIABLES):
        os.environ.update(OPENMP)


def allow_spinning() -> bool:
    """Whether the user asks for threads that spin; read by backends that do not use OpenMP."""
    return os.environ.get("OMP_WAIT_POLICY", "").lower() == "active"
