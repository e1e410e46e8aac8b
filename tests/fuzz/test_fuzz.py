"""Run a sample of the fuzzer, and check that it detects what it looks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import runner
from tests.fuzz.__main__ import main as fuzz
from tests.fuzz.corpus import Corpus
from tests.fuzz.kinds import KINDS, make, names
from tests.fuzz.runner import Case, Worker

pytest.importorskip("onnx")  # the corpus needs a model


def test_a_sample_of_damaged_input_is_read_or_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [word for kind in ("results", "texts", "models", "journals", "sidecars") for word in ("--kind", kind)]
    code = fuzz(["--failures", str(tmp_path), "--cases", "10", *quick])  # the other kinds import torch
    printed = capsys.readouterr().out
    assert code == 0 and "10 cases, 0 failed" in printed, printed


@pytest.mark.slow
def test_damaged_input_of_every_kind_is_read_or_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = fuzz(["--failures", str(tmp_path), "--cases", "4000", "--seed", "1"])
    printed = capsys.readouterr().out
    assert code == 0 and "4000 cases, 0 failed" in printed, printed


def test_the_same_name_gives_the_same_case(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    corpus = Corpus(tmp_path / "corpus", torch=False)
    for name in names(0, 30, [kind for kind in KINDS if kind != "checkpoints"]):
        assert make(name, corpus) == make(name, corpus)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose commands are those of `faulty`."""
    each = Worker(tmp_path_factory.mktemp("cases"), main="tests.fuzz.faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "CPU_SECONDS", 0.4)
        yield each
    each.close()


@pytest.mark.parametrize(
    ("does", "fault"),
    {
        "traceback": "traceback",
        "hang": "no end after",
        "crash": f"ended with {-6}",
        "silent": "0 lines say why",
        "talkative": "2 lines say why",
        "library": "a library's own line: libx",
        "code": "exit code 7",
        "input": "the input work/in/a.json was changed",
        "outside": "outside the folder: escaped",
        "far outside": "outside: open /tmp/tinydet-escaped",
        "left behind": "left behind: work/out/.a.0123abcd.json",
        "half refused": "written though refused: work/out/a.csv",
        "not JSON": "a.json is not valid JSON",
        "program": "program: subprocess.Popen",
        "network": "network: socket.connect 192.0.2.1",
        "memory": "traceback",
        "nothing": "",
    }.items(),
)
def test_the_fuzzer_notices(worker: Worker, does: str, fault: str) -> None:
    result = worker.run(Case("faulty", f"0-faulty-{does}", [does], {"a.json": b"[]"}))
    assert any(fault in each for each in result.faults) if fault else not result.faults, result
    assert os.path.isdir(worker.folder / "work" / "in")
