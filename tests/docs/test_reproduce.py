"""docs/reproduce.md: its commands are understood, and its rows are those of the paper."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tinydet.__main__ import COMMANDS as TINYDET
from tinydet.__main__ import Group, _load
from tinydet.evaluate import __main__ as evaluate
from tinydet.study import sweep
from tinydet.train.__main__ import main
from tinydet.train.config import TrainConfig, config_of
from tinydet.train.defaults import choose_network

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("tinydet ")]
TRAININGS = [command[1:] for command in COMMANDS if command[0] == "train"]
THIN = [
    "--backbone",
    "mobilenet_v2",
    "--channels",
    "8",
    "--weights-backbone",
    "none",
    "--tile",
    "96",
    "--overlap",
    "32",
]


def understood(command: list[str]) -> argparse.Namespace | TrainConfig:
    """The arguments as the command itself would read them."""
    match command:
        case ["train", *flags]:
            return config_of(flags)
        case ["sweep", *flags]:
            own, others = sweep._parser().parse_known_args(flags)
            config_of(others)
            return own
        case ["evaluate", *flags]:
            return evaluate._parser().parse_args(flags)
        case ["data", name, *flags]:
            inner, group = argparse.ArgumentParser(), TINYDET["data"]
            assert isinstance(group, Group)
            _load(group.commands[name]).add_arguments(inner)
            return inner.parse_args(flags)
    raise AssertionError(command)


def test_every_command_is_understood_and_writes_a_file_of_its_own() -> None:
    outputs = [str(understood(command).output) for command in COMMANDS if command[0] != "evaluate"]
    assert len(COMMANDS) >= 40 and len(set(outputs)) == len(outputs)
    assert all(understood(command) for command in COMMANDS if command[0] == "evaluate")


def test_every_run_of_the_tables_has_its_command_and_starts_from_one() -> None:
    made = {str(understood(command).output).removesuffix(".pth") for command in COMMANDS if command[0] != "evaluate"}
    named = set(re.findall(r"^\| [^|]+ \| ([A-Z]\d+)(?: \*)? \|", PAGE, re.M))
    assert {name.lower() for name in named} <= made and len(named) == 31
    needed = {Path(config.init).stem for config in map(config_of, TRAININGS) if config.init}
    assert needed <= made


def test_the_recipe_of_each_detector_is_the_released_one(squares: Path) -> None:
    rates = {"retinanet": 0.005, "retinanet-p3p7": 0.005, "fcos-p3p7": 0.0025, "free_anchor": 0.0025}
    for flags in TRAININGS:
        if "--recipe" in flags and "--init" not in flags:
            given = [str(squares) if n and flags[n - 1] == "--data" else flag for n, flag in enumerate(flags)]
            config, _ = choose_network(config_of(given).resolve(), device="cuda")
            assert (config.lr, config.batch, config.clip_norm) == (rates.get(config.network, 0.01), 2, 0)


def distinct() -> list[Any]:
    """One training of each kind: what it learns, not from which data; those that start from another are left out. The
    first by the recipe with S-alpha and those of the first other detectors are run by default."""
    kinds = {}
    for flags in TRAININGS:
        data = ("--data", "--output", "--init", "--backbone", "--scale-match")
        kind = [flag for n, flag in enumerate(flags) if flag not in data and (n == 0 or flags[n - 1] not in data)]
        if "--init" not in flags:
            kinds.setdefault(tuple(kind), flags)
    quick = ("r6.pth", "r9.pth", "f1.pth")
    return [flags if flags[-1] in quick else pytest.param(flags, marks=pytest.mark.slow) for flags in kinds.values()]


@pytest.mark.parametrize("flags", distinct(), ids=lambda flags: flags[-1])
def test_the_plan_of_each_kind_of_training_is_made(
    flags: list[str], squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [str(squares) if n and flags[n - 1] in ("--data", "--scale-match") else flag for n, flag in enumerate(flags)]
    thin = THIN if "--recipe" not in flags else [*THIN[:-4]]
    assert main([*args, *thin, "--dry-run"]) == 0
    assert "multiply-adds" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_every_row_of_the_paper_is_there_with_its_figures(shared: Path) -> None:
    tables = json.loads((shared / "paper" / "tables.json").read_text())["tables"]
    for number, table in tables.items():
        part = PAGE.split(f"### Table {number}:")[1].split("\n### ")[0]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line][2:]
        assert len(table["rows"]) <= len(rows)
        for row, cells in zip(table["rows"], rows, strict=False):
            assert cells[0].split(", ResNet")[0] == row["method"].replace("alpha", "α")
            assert [float(cell) for cell in cells[2:]] == [row[metric] for metric in table["metrics"]]
            unreleased = any(name in cells[0] for name in ("Libra", "Grid"))
            assert unreleased == cells[1].endswith("*")
