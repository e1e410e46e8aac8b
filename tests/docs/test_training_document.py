"""docs/training.md: its Python runs, its tables of options are those of the code, its tags are TensorBoard's.

Run this file to rewrite the tables of options.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tinydet.models.checkpoint import load_checkpoint
from tinydet.train import config

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
OPTIONS = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- end of options -->)", re.S)
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.parametrize(
    "blocks", [BLOCKS[:2], pytest.param(BLOCKS, marks=pytest.mark.slow)], ids=["without the export", "all"]
)
def test_every_block_runs_in_turn(
    blocks: list[str],
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("train", "val"):
        shutil.copytree(squares, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    printed = capsys.readouterr().out
    assert len(BLOCKS) == 3 and "S-alpha" in printed
    checkpoint = load_checkpoint(tmp_path / "model.pth")
    assert checkpoint.classes == ("square",)
    assert checkpoint.domain is not None and checkpoint.spec().domain == checkpoint.domain
    if blocks == BLOCKS:
        assert "operators added by it: 0" in printed
        assert (tmp_path / "model.onnx").is_file() and (tmp_path / "model.json").is_file()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "runs" / "model").iterdir())))
    events.Reload()
    tags = events.Tags()
    scalars = {*tags["scalars"]}
    assert {"loss", "lr", "images per second", "alpha/P3->P2", "validation/AP50", "validation/AP50-tiny"} <= scalars
    assert {f"{kind}/P{n}" for kind in ("classification", "regression") for n in range(2, 7)} <= scalars
    assert tags["images"] and {"precision-recall/all", "precision-recall/tiny"} <= {*tags["tensors"]}
    assert len(events.Scalars("alpha/P3->P2")) == 1  # fixed: once an epoch


OTHERS = {"--logdir", "--folds", "--scale", "--skip"}  # of tensorboard, crossval and infer


def test_every_flag_that_the_page_names_is_one() -> None:
    flags = {flag for action in config.parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - OTHERS <= flags


def test_the_tables_of_options_are_those_of_the_code() -> None:
    (found,) = OPTIONS.findall(TEXT)
    assert found == tables(), "outdated options in docs/training.md; run: python tests/docs/test_training_document.py"


def tables() -> str:
    return f"\n{config.options_table()}\n"


if __name__ == "__main__":
    DOCUMENT.write_text(OPTIONS.sub(lambda _: tables(), TEXT), encoding="utf-8")
