"""`tinydet sweep`: each training of a grid runs once, and its scores are tabulated and plotted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinydet.study.sweep import main
from tinydet.study.sweep_plots import summarize, table, write_report
from tinydet.study.trials import read_records

QUICK = ["--preset", "small", "--weights-backbone", "none", "--channels", "16", "--head-convs", "1", "--epochs", "1",
         "--tile", "96", "--overlap", "32", "--precision", "fp32"]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(alpha: float | str, seed: int, ap: float | None, scale: float = 1.0, **classes: float) -> dict[str, Any]:
    scores = {"AP50": ap, "AP50-tiny": -1.0, **{f"AP50/{name}": value for name, value in classes.items()}}
    return {
        "key": {"scale": scale, "alpha": alpha, "seed": seed},
        "flags": [],
        "alpha": [0.2, 0.4, 0.6] if alpha == "S" else [alpha] * 3,
        "history": [] if ap is None else [{"epoch": 1, **scores, "AP50": 0.9}, {"epoch": 2, **scores}],
        "diverged": "not finite" if ap is None else None,
    }


def write_records(folder: Path, arguments: str) -> int:
    """Write a record of every planned training except those with alpha 0.5; return how many there are."""
    from tinydet.study.sweep import _parser, plan  # a record is recognized by its key and flags

    args, flags = _parser().parse_known_args(arguments.split())
    trials = [trial for trial in plan(args, flags) if trial.key["alpha"] != 0.5]
    lines = [
        {**record(t.key["alpha"], int(t.key["seed"]), 0.5), "key": dict(t.key), "flags": list(t.flags)} for t in trials
    ]
    folder.mkdir()
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def test_a_sweep_runs_the_missing_trainings_and_plots_all(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--alpha 0:1:0.5 --seeds 1 --jobs 2 --data {squares} --val {squares} {' '.join(QUICK)}"
    before = write_records(here / "sweep", arguments)
    assert before == 3  # alpha 0, 1 and S
    assert main(arguments.split()) == 0
    records = read_records(here / "sweep" / "runs.jsonl")
    assert [r["key"]["alpha"] for r in records[before:]] == [0.5] and records[-1]["alpha"] == [0.5] * 3
    assert len(list((here / "sweep" / "runs").glob("*.pth"))) == 1
    (curve,) = json.loads((here / "sweep" / "sweep.json").read_text())["scales"].values()
    assert [point["alpha"] for point in curve["points"]] == [0, 0.5, 1, "S"]
    assert (here / "sweep" / "sweep.png").stat().st_size > 5000
    assert "best fixed alpha" in capsys.readouterr().out
    written = (here / "sweep" / "runs.jsonl").read_text()
    assert main(arguments.split()) == 0
    assert (here / "sweep" / "runs.jsonl").read_text() == written


def test_a_dry_run_lists_the_trainings_seed_by_seed_and_writes_nothing(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(squares), "--val", str(squares)]
    assert main(["--alpha", "0,1", "--seeds", "2", "--scale", "1,0.5", *data, *QUICK, "--dry-run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:4] == [f"scale 1.0, alpha {a}, seed 1" for a in ("0.0", "1.0", "S")] + [
        "scale 1.0, alpha 0.0, seed 2"
    ]
    assert len(listed) == 2 * 2 * 3 and list(here.iterdir()) == []


def test_a_scale_is_trained_on_a_resized_copy(here: Path, squares: Path) -> None:
    data = ["--data", str(squares), "--val", str(squares)]
    assert main(["--alpha", "1", "--scale", "0.5", *data, *QUICK, "--budget", "0"]) == 0
    copies = sorted((here / "sweep" / "data").iterdir())
    assert [copy.name.rpartition("-")[0] for copy in copies] == ["train-0.5", "val-0.5"]
    sizes = {(i["width"], i["height"]) for i in json.loads((copies[0] / "annotations.json").read_text())["images"]}
    assert sizes == {(48, 48), (80, 48)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "SQUARES"], "add --val"),
        (["--salpha"], "--salpha is not an option of sweep"),
        (["--seed", "3"], "--seed is not an option of sweep"),
        (["--resume"], "--resume is not an option of sweep"),
        (["--tile", "100"], "multiple of 32"),
    ],
)
def test_invalid_options_are_reported_before_any_training(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(squares) if flag == "SQUARES" else flag for flag in flags]) == 2
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_the_summary_averages_the_last_epoch_over_the_seeds_that_did_not_diverge() -> None:
    summary = summarize([record(0.5, 1, 0.3), record(0.5, 2, 0.5), record(0.5, 3, None), record("S", 1, 0.6)])
    half, salpha = summary["scales"]["1"]["points"]
    assert (half["runs"], half["diverged"]) == (3, 1)
    assert half["AP50"]["mean"] == pytest.approx(0.4) and half["AP50"]["deviation"] == pytest.approx(0.02**0.5)
    assert half["AP50"]["values"] == [0.3, 0.5, None] and half["best AP50"]["mean"] == pytest.approx(0.9)
    assert half["AP50-tiny"]["mean"] is None  # no object has that size
    assert salpha["alpha"] == "S" and salpha["factors"] == [0.2, 0.4, 0.6] and salpha["AP50"]["deviation"] is None
    assert "| 0.5 | 3, 1 diverged | – | 40.0 ± 14.1 | 90.0 ± 0.0 |" in table(summary)
    assert "| S-alpha: 0.2, 0.4, 0.6 | 1 | – | 60.0 | 90.0 |" in table(summary)


def test_scales_and_classes_have_separate_curves(tmp_path: Path) -> None:
    runs = [record(a, s, 0.4, scale, cat=0.3, dog=0.5) for a in (0.0, 1.0, "S") for s in (1, 2) for scale in (1.0, 0.5)]
    summary = summarize(runs)
    assert list(summary["scales"]) == ["1", "0.5"]
    assert summary["scales"]["0.5"]["points"][0]["classes"]["dog"]["mean"] == 0.5
    names = [path.name for path in write_report(summary, tmp_path)]
    assert names == ["sweep.json", "sweep.md", "sweep.png", "sweep-classes.png"]
    assert "| AP50 cat | AP50 dog |" in (tmp_path / "sweep.md").read_text()


def test_a_sweep_in_which_all_trainings_diverged_still_writes_its_report(tmp_path: Path) -> None:
    write_report(summarize([record(1.0, 1, None)]), tmp_path)
    assert "| 1 | 1, 1 diverged | – | – | – |" in (tmp_path / "sweep.md").read_text()


@pytest.mark.slow
def test_an_interrupted_sweep_ends_with_the_scores_of_an_uninterrupted_one(here: Path, squares: Path) -> None:
    command = [sys.executable, "-m", "tinydet.study.sweep", "--alpha", "0,1", "--seeds", "1", "--no-salpha", "--data",
               str(squares), "--val", str(squares), *QUICK, "--epochs", "3"]  # fmt: skip
    subprocess.run([*command, "--output", "at-once", "--jobs", "2"], check=True)
    process = subprocess.Popen([*command, "--output", "resumed", "--jobs", "2"])
    while not list(here.glob("resumed/runs/*.log")):
        time.sleep(0.05)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130)
    subprocess.run([*command, "--output", "resumed", "--jobs", "2"], check=True)
    at_once, resumed = (json.loads((here / name / "sweep.json").read_text()) for name in ("at-once", "resumed"))
    assert at_once == resumed
