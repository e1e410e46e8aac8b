"""What is counted for each detector: its rules, its options, and the statistics of users' detectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import write_coco

from tinydet.__main__ import main as tinydet
from tinydet.geometry.anchors import Pyramid
from tinydet.models.level_statistics import LevelStatistic
from tinydet.models.options import option
from tinydet.models.registry import DETECTORS, DetectorInfo, register_detector
from tinydet.salpha.__main__ import main as salpha
from tinydet.salpha.detectors import anchor_counting, counting_of
from tinydet.salpha.inputs import Inputs

BOXES = np.array([[0.0, 0, 8, 8], [10, 0, 40, 9], [50, 50, 60, 60]])
INPUTS = Inputs(BOXES, np.array([[640, 480], [100, 80]]), np.array([0, 0, 1]))


@dataclass(frozen=True)
class WidthOptions:
    width: int = option(16, "objects wider than this are learned by P3")
    prior: float = option(0.1, "score before training")


def by_width(boxes: np.ndarray, sizes: np.ndarray, index: np.ndarray, options: Mapping[str, Any]) -> list[int]:
    wide = int((boxes[:, 2] - boxes[:, 0] > options["width"]).sum())
    return [len(boxes) - wide, wide, 0, 0, 0]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DETECTORS, "mine", None)  # type: ignore[arg-type] # so that it is removed afterwards
    monkeypatch.delitem(DETECTORS, "mine")
    statistic = LevelStatistic(by_width, "objects by their width", "wide ones are learned by P3", options=("width",))
    register_detector("mine", DetectorInfo("Mine", lambda: None, Pyramid(), WidthOptions, statistics={"gt": statistic}))  # type: ignore[arg-type,return-value]
    return "mine"


def test_a_detector_without_anchors_counts_by_its_own_rule_and_options(plugin: str) -> None:
    assert counting_of(plugin).count(INPUTS) == (2, 1, 0, 0, 0)
    assert counting_of(plugin, {"width": 9}).count(INPUTS) == (1, 2, 0, 0, 0)
    assert counting_of(plugin).rule == "gt"


def test_what_a_detector_cannot_count_is_refused(plugin: str) -> None:
    with pytest.raises(ValueError, match="mine cannot count by the rule 'anchor'; choose gt"):
        counting_of(plugin, rule="anchor")
    with pytest.raises(ValueError, match="mine does not count anchors; leave --anchors out"):
        counting_of(plugin, layout="released")
    with pytest.raises(ValueError, match="mine has no option 'height'"):
        counting_of(plugin, {"height": 3})
    with pytest.raises(ValueError, match="choose gt or anchor"):
        counting_of("retinanet", rule="both")  # type: ignore[arg-type]
    register_detector("mine", DetectorInfo("Mine", DETECTORS["mine"].load, Pyramid()))
    with pytest.raises(ValueError, match="mine has neither anchors nor `statistics`"):
        counting_of(plugin)


def test_the_options_that_matter_are_flags_of_the_commands(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [{"bbox": [9, 9, width, 8]} for width in (6, 12, 12, 30)]
    file, out = str(write_coco(tmp_path / "a.json", [(640, 512)], boxes)), tmp_path / "salpha.json"
    assert salpha([file, "--detector", "mine", "--width", "9", "--json", str(out)]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert list(found["counts"].values()) == [1, 3, 0, 0, 0]
    assert (found["rule"]["options"], found["rule"]["anchors"]) == ({"width": 9}, None)
    assert "Objects by their width (mine, width 9):" in printed and "Wide ones are learned by P3." in printed
    stats = ["data", "stats", file, "--detector", "mine"]
    assert tinydet([*stats, "--width", "9", "--json", str(out)]) == 0
    assert "--detector mine --width 9 --tile" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["salpha_on_tiles"]["counts"].values()) == [1, 3, 0, 0, 0]
    for command in (["salpha", file], ["data", "stats", file]):
        assert tinydet([*command, "--width", "9"]) == 2
        assert "--width is not an option of retinanet, but of mine; leave it out" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):  # it does not change what is counted
            tinydet([*command, "--detector", "mine", "--prior", "0.2"])


@pytest.mark.parametrize("found", [[1, 2], [1, 2, 3, 4, -5], [1.0, 0, 0, 0, 0]])
def test_a_statistic_that_is_not_one_number_per_level_is_named(found: list[Any]) -> None:
    statistic = LevelStatistic(lambda *_: found, "objects by magic")
    with pytest.raises(ValueError, match="'objects by magic' must return one whole number .* for each of P2"):
        statistic.checked(found, Pyramid().levels)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_has_a_statistic_that_says_what_it_counts(name: str) -> None:
    counting = counting_of(name)
    counts = counting.count(INPUTS)
    assert len(counts) == len(DETECTORS[name].pyramid.levels) and sum(counts) >= 1
    assert counting.statistic.text and counting.statistic.reason and counting.statistic.unit
    assert set(counting.statistic.options) <= set(counting.options)


def test_detectors_with_anchors_count_objects_by_default() -> None:
    for name, info in DETECTORS.items():
        if info.anchors is not None:
            assert counting_of(name).count(INPUTS) == anchor_counting(info.anchors.design()).count(INPUTS)
