"""Waiting threads sleep, unless the user wants them to spin."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinydet._internal.threads import OPENMP, OPENMP_VARIABLES, set_openmp_wait_policy
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPENMP_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_openmp_threads_sleep_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    set_openmp_wait_policy()
    assert os.environ == OPENMP


@pytest.mark.parametrize("name", OPENMP_VARIABLES)
def test_a_wait_policy_of_the_user_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "7"})
    set_openmp_wait_policy()
    assert os.environ == {name: "7"}


@pytest.mark.parametrize(("policy", "spins"), [(None, "0"), ("passive", "0"), ("active", "1"), ("ACTIVE", "1")])
def test_onnx_runtime_spins_only_where_the_user_asks_for_it(
    policy: str | None,
    spins: str,
    make_onnx: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    backend = OnnxRuntimeBackend(make_onnx(tmp_path / "model.onnx"), provider="cpu", threads=1)
    options = backend._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


LOADS = """
import ctypes, importlib.util, pathlib, sys

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":  # the first import of torch loads its OpenMP, and this child ends
            sys.meta_path.remove(self)
            (spec,) = importlib.util.find_spec("torch").submodule_search_locations
            for library in pathlib.Path(spec, "lib").glob("libgomp*"):
                ctypes.CDLL(str(library))
            sys.exit(0)

sys.meta_path.insert(0, AtTorch())
import tinydet.train.schedule
sys.exit("torch was not imported")
"""


def test_the_openmp_that_torch_loads_has_the_wait_policy() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch does not use libgomp here")
    assert f"GOMP_SPINCOUNT = '{OPENMP['GOMP_SPINCOUNT']}'" in done.stderr
