"""OpenVINO gives the outputs of ONNX Runtime for every batch, mode and thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from signal_stack import signal_stack

from tinydet.runtime.backends import TileOutputs, choose_model, open_model
from tinydet.runtime.backends.openvino import OpenVINOBackend

ROOT = Path(__file__).resolve().parents[2]
openvino = pytest.importorskip("openvino", reason="needs tinydet[openvino]")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinydet" / "openvino"


@pytest.fixture
def model(make_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    return make_onnx(tmp_path / "model.onnx")


def tiles(count: int, seed: int = 0) -> np.ndarray:
    """Tiles of 64 cells in different grays, so that no two scores are equal."""
    rng = np.random.default_rng(seed)
    gray = np.stack([rng.permutation(np.arange(100, 228, 2)) for _ in range(count)]).reshape(count, 8, 8)
    return np.ascontiguousarray(np.kron(gray, np.ones((8, 8)))[..., None].repeat(3, axis=-1).astype(np.uint8))


def assert_same(ours: TileOutputs, theirs: TileOutputs) -> None:
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.candidates, theirs.candidates)


@pytest.mark.parametrize("backend", ["openvino", "openvino-latency"])
def test_outputs_equal_those_of_onnx_runtime_in_every_batch(model: Path, backend: str) -> None:
    ours, theirs = open_model(model, backend, threads=1), open_model(model, "onnx-cpu", threads=1)
    assert ours.spec == theirs.spec
    for count in (1, 3, 4):
        outputs = ours.run(tiles(count))
        assert_same(outputs, theirs.run(tiles(count)))
        assert [array.dtype for array in outputs[:4]] == [np.float32, np.float32, np.int32, np.int32]
        assert len(set(outputs.candidates.tolist())) == 1 and outputs.candidates[0] > 40


def test_an_empty_batch_has_no_boxes(model: Path) -> None:
    assert open_model(model, "openvino", threads=1).run(tiles(1)[:0]).boxes.shape == (0, 50, 4)


def test_threads_that_share_a_model_get_their_own_outputs(model: Path) -> None:
    ours, theirs = open_model(model, "openvino", threads=2), open_model(model, "onnx-cpu", threads=1)
    batches = [tiles(1 + seed % 4, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for batch, outputs in zip(batches, pool.map(ours.run, batches), strict=True):
            assert_same(outputs, theirs.run(batch))


def test_tiles_may_be_a_view_that_is_not_contiguous(model: Path) -> None:
    flipped = tiles(2)[:, ::-1]
    assert not flipped.flags.c_contiguous
    ours, theirs = open_model(model, "openvino", threads=1), open_model(model, "onnx-cpu", threads=1)
    assert_same(ours.run(flipped), theirs.run(np.ascontiguousarray(flipped)))


def test_the_name_shows_version_precision_and_streams(model: Path) -> None:
    name = open_model(model, "openvino-latency", threads=1).name
    assert name.startswith(f"OpenVINO {openvino.__version__.partition('-')[0]}, ")
    assert name.endswith(", f32, 1 stream")


def test_a_compiled_model_is_loaded_from_the_cache(model: Path, cache: Path) -> None:
    first = OpenVINOBackend(model, threads=1)
    assert not first.from_cache and list(cache.iterdir())
    again = OpenVINOBackend(model, threads=1)
    assert again.from_cache
    assert_same(again.run(tiles(2)), first.run(tiles(2)))


CTRL_C = """
import gc, os, pathlib, signal, sys
from tinydet.runtime.backends.openvino import OpenVINOBackend
signal.signal(signal.SIGINT, lambda number, frame: print("interrupted"))
for _ in range(3):  # each is created before the one that it replaces is freed
    model = OpenVINOBackend(pathlib.Path(sys.argv[1]), threads=1)
del model
gc.collect()
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_after_models_were_freed_does_not_crash(model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CTRL_C, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_an_unwritable_cache_is_ignored(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    backend = OpenVINOBackend(model, threads=1, cache=tmp_path / "file" / "cache")
    assert not backend.from_cache
    assert backend.run(tiles(1)).candidates[0] > 40


def test_bfloat16_is_used_only_on_request(model: Path) -> None:
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        before = signal_stack()
        assert ", bf16, " in open_model(model, "openvino-bf16", threads=1).name
        assert signal_stack() == before  # or Ctrl-C crashes when the model is gone
    else:
        with pytest.raises(OSError, match="has no bfloat16; use --backend openvino"):
            open_model(model, "openvino-bf16", threads=1)


def test_auto_is_openvino_on_a_cpu_and_onnx_runtime_without_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinydet.runtime.backends import onnx_runtime

    monkeypatch.setattr(onnx_runtime, "_has_nvidia_gpu", lambda: False)
    assert open_model(model, threads=1).name.startswith("OpenVINO")
    assert choose_model(folder=tmp_path, threads=1).backend.name.startswith("OpenVINO")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_model(model, threads=1).name.startswith("ONNX Runtime")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tinydet\[openvino\]'"):
        open_model(model, "openvino")
