"""Run a script with packages that the tests' own environment must not have, such as those under the AGPL."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make_environment(folder: Path, packages: Sequence[str]) -> Path:
    """Create a virtual environment that has the packages of this one and others; return its interpreter.

    The test is skipped if they cannot be installed, for example without a network.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(site) / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
    return python


def run_script(python: Path, script: str, folder: Path) -> str:
    """Run a script in a folder, with tinydet and the modules in tests/support; return what it printed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": paths, "YOLO_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
