"""`auto` runs the verified INT8 file next to a model, and says so or why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tinydet.runtime.backends import choose_model, int8_file, open_model

pytest.importorskip("openvino", reason="needs tinydet[openvino]")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pair(make_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model and the file that was verified against it, on a processor with VNNI."""
    monkeypatch.setattr(int8_file, "int8_instructions", lambda: "VNNI")
    model = make_onnx(tmp_path / "model.onnx")
    int8 = tmp_path / "model.int8.onnx"
    int8.write_bytes(model.read_bytes())
    report(model, int8)
    return model, int8


def report(model: Path, int8: Path, **changes: object) -> None:
    values = {"passed": True, "reference_sha256": sha256(model), "sha256": sha256(int8), **changes}
    int8.with_suffix(".verify.json").write_text(json.dumps(values))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_verified_int8_file_runs_instead_of_the_model_and_it_says_so(pair: tuple[Path, Path]) -> None:
    model, int8 = pair
    named, found = choose_model(path=model, threads=1), choose_model(folder=model.parent, threads=1)
    assert named.runs == found.runs == int8 and named.path == found.path == model
    assert named.note == found.note
    assert named.note.startswith(f"{int8} runs instead of {model}: INT8") and "VNNI" in named.note
    assert open_model(model, threads=1).spec == named.backend.spec  # what is evaluated is what is named


@pytest.mark.parametrize("backend", ["openvino", "openvino-latency", "onnx-cpu"])
def test_a_backend_that_is_named_runs_the_model_that_is_named(pair: tuple[Path, Path], backend: str) -> None:
    choice = choose_model(backend, path=pair[0], threads=1)
    assert choice.runs == pair[0] and choice.note == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"passed": False}, "does not say that it passed"),
        ({"reference_sha256": "0"}, "was not verified against this model.onnx"),
        ({"sha256": "0"}, "not the file that was verified"),
    ],
)
def test_an_int8_file_that_was_not_verified_as_it_is_does_not_run(
    pair: tuple[Path, Path], changes: dict[str, object], reason: str
) -> None:
    report(*pair, **changes)
    found, note = int8_file.int8_file(pair[0])
    assert found is None and reason in note and "export onnx" in note


def test_without_report_int8_file_or_instructions_the_model_runs(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, int8 = pair
    assert int8_file.int8_file(int8) == (None, "")
    monkeypatch.setattr(int8_file, "int8_instructions", lambda: "")
    assert "neither VNNI nor AMX" in int8_file.int8_file(model)[1]
    monkeypatch.setattr(int8_file, "int8_instructions", lambda: "AMX")
    int8.with_suffix(".verify.json").unlink()
    assert "there is no model.int8.verify.json" in int8_file.int8_file(model)[1]
    int8.unlink()
    assert int8_file.int8_file(model) == (None, "")


@pytest.mark.parametrize(
    ("flags", "name"),
    [("avx2", ""), ("sse avx512_vnni", "VNNI"), ("avx_vnni", "VNNI"), ("avx512_vnni amx_int8", "AMX")],
)
def test_the_instructions_are_read_from_the_flags_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse2\n")
    monkeypatch.setattr(int8_file, "CPU_INFO", tmp_path / "cpuinfo")
    int8_file.int8_instructions.cache_clear()
    try:
        assert int8_file.int8_instructions() == name
    finally:
        int8_file.int8_instructions.cache_clear()
