"""`tinydet crossval`: every fold is held out once, and the scores are those of models that never saw it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tinydet.models.checkpoint import load_checkpoint
from tinydet.study.crossval import _parser, main, plan, summarize, summary_table
from tinydet.study.trials import append_record

QUICK = ["--preset", "small", "--weights-backbone", "none", "--channels", "16", "--head-convs", "1", "--epochs", "1",
         "--tile", "96", "--overlap", "32", "--precision", "fp32"]  # fmt: skip


def record(*scores: float, diverged: str | None = None) -> dict[str, Any]:
    return {"history": [{"epoch": 2 * n + 2, "AP50": ap} for n, ap in enumerate(scores)], "diverged": diverged}


def test_scores_are_those_of_the_last_epoch() -> None:
    summary = summarize({"1/3": record(0.9, 0.2), "2/3": record(0.9, 0.4), "3/3": record(diverged="not finite")})
    assert summary["metrics"]["AP50"] == pytest.approx({"mean": 0.3, "sd": 0.02**0.5, "lowest": 0.2, "folds": 2})
    assert summary["AP50_by_epoch"] == pytest.approx({2: 0.9, 4: 0.3}) and summary["diverged"] == ["3/3"]
    table = summary_table(summary, {"1/3": "monday", "2/3": "tuesday", "3/3": "friday"})
    assert "| 1/3 | monday | 20.0 |" in table and "| mean ± sd | | 30.0 ± 14.1 |" in table


@pytest.fixture
def flights(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A dataset of three flights, as the arguments of a cross-validation with two folds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(squares, "data")
    document = json.loads(Path("data/annotations.json").read_text())
    for n, image in enumerate(document["images"]):
        image["flight"] = f"flight {n % 3}"
    Path("data/annotations.json").write_text(json.dumps(document))
    return ["data", "--folds", "2", "--group-by", "flight", *QUICK]


def test_a_dry_run_names_what_each_fold_holds_out(flights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flights, "--dry-run"]) == 0 and [path.name for path in Path().iterdir()] == ["data"]
    shown = capsys.readouterr().out.splitlines()
    assert sorted(name for line in shown for name in line.partition(": ")[2].split(", ")) == [
        "flight 0",
        "flight 1",
        "flight 2",
    ]


@pytest.mark.slow
def test_recorded_folds_are_not_trained_again(flights: list[str]) -> None:
    """One fold of two is recorded, so only the other one is trained."""
    trials = plan(*_parser().parse_known_args(["--data", *flights]))
    Path("crossval").mkdir()
    first = {"key": dict(trials[0].key), "flags": list(trials[0].flags), **record(0.5), "seconds": 1.0}
    append_record(Path("crossval/runs.jsonl"), first)
    assert main(flights) == 0
    summary = json.loads(Path("crossval/crossval.json").read_text())
    assert summary["folds"]["1/2"]["AP50"] == 0.5 and summary["folds"].keys() == {"1/2", "2/2"}
    (model,) = Path("crossval/runs").glob("*.pth")
    part = load_checkpoint(model).config["val_data"]["part"]
    assert part["fold"] == (2, 2) and part["group_by"] == "flight"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--val", "0.2"], "--val is not an option of crossval"),
        (["--patience", "2"], "--patience is not an option of crossval"),
        (["--folds", "900"], "cannot be divided into 900 folds"),
        (["--group-by", "flight"], "--group-by 'flight' is no field of the images"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], message: str, squares: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(squares), *flags]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
