"""The program that trains the bundled model, as far as it can be tested without training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("record", "finished"), [(None, False), ({"diverged": "the loss is not finite"}, False), ({"diverged": None}, True)]
)
def test_a_training_that_diverged_is_not_finished(
    tmp_path: Path, record: dict[str, str | None] | None, finished: bool
) -> None:
    history = tmp_path / "thermal.json"
    if record is not None:
        history.write_text(json.dumps(record))
    assert importlib.import_module("bundle").finished(history) is finished
