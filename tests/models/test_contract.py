"""A detector or backbone that breaks its contract is refused in one line, before data are read."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from toy_detector import SOURCE

from tinydet.models.backbone_registry import BACKBONES, register_backbone
from tinydet.models.build import DetectorConfig
from tinydet.models.contract import ContractError, check_contract
from tinydet.models.registry import DETECTORS, DetectorInfo, register_detector
from tinydet.train import TrainConfig, train

CONFIG = {"backbone": "tiny", "channels": 16, "norm": "group", "classes": 2, "detector": "toy"}
LOSSES, OUTPUTS = "        return losses\n", "*self.best(boxes, scores, labels), "


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name in ((DETECTORS, "toy"), (BACKBONES, "tiny")):
        monkeypatch.setitem(registry, name, None)  # type: ignore[arg-type] # so that it is removed afterwards
        monkeypatch.delitem(registry, name)


def run(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page's file, changed, as a module."""
    module = types.ModuleType("my_detector")
    module.__file__ = "my_detector.py"
    monkeypatch.setitem(sys.modules, "my_detector", module)
    exec(compile(source, "my_detector.py", "exec"), module.__dict__)


def test_the_example_keeps_it_and_changes_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    run(SOURCE, monkeypatch)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    check_contract(DetectorConfig(**CONFIG), torch.device("cpu"))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    def loss(", "    def losses(", "loss.* is missing"),
        ("    def inference(", "    def infer(", r"inference\(spec\) is missing"),
        (LOSSES, "        return None\n", "must return a dict of named losses, not None"),
        (LOSSES, "        return {}\n", "must return a dict of named losses"),
        (LOSSES, "        return {'a': 1.0}\n", "'a' must be a scalar tensor, not 1.0"),
        (LOSSES, "        return {'a': self.head.bias}\n", r"'a' must be a scalar tensor, not .* shape \(6,\)"),
        (LOSSES, "        return {'a': self.head.bias.sum() * float('nan')}\n", "2 objects: 'a' is nan"),
        (LOSSES, "        return {'a': self.head.weight.mean() / len(batch.boxes)}\n", "no objects: 'a' is -?inf"),
        (LOSSES, "        return {'a': self.head.bias.sum().detach()}\n", "no loss has a gradient"),
        ("        losses = {}\n", "        losses = {}; [][1]\n", r"raised IndexError: .*my_detector.py, line \d\d"),
        ("norm=\"frozen\", prior=0.1)", "norm=\"frozen\")", "the constructor raised TypeError: .*'prior'"),
        ("self.fpn", "self.neck", "`fpn` must be a PlainFPN, not None"),
        ("features[1:]", "features[:4]", r"backbone tiny: .* must return C2..C5 with the shapes .*\(1, 16, 32, 48\)"),
        ("features[1:]", "features[2:]", "backbone tiny: .* must return C2..C5"),
        ("48, 64))", "48, 65))", r"backbone tiny: .*\(1, 65, 2, 3\)"),
        ("minlength=4)", "minlength=5)", "`counts` of 'objects by .*' must .* for each of P2, P3, P4, P5, not .*0]"),
        ("minlength=4)", "minlength=4) / 2", "must return one whole number .* not float64"),
        ("return np.bincount(", "return [][1], np.bincount(", "of a statistic raised IndexError"),
        (OUTPUTS, "*self.best(boxes, scores, labels)[:2], ", "the tensors boxes, .*, candidates, not 3 values"),
        (OUTPUTS, "torch.zeros(2, 3, 4), *self.best(boxes, scores, labels)[1:], ", r"got float32 \(2, 3, 4\)"),
        ("lambda: Toy, Toy.design", "lambda: Tiny, Toy.design", "`load` must return a subclass of Detector"),
        ("lambda: Toy, Toy.design", "Toy, Toy.design", "`load` raised TypeError"),
    ],
)  # fmt: skip
def test_a_breach_is_one_line_that_names_the_rule(
    old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in SOURCE
    run(SOURCE.replace(old, new), monkeypatch)
    with pytest.raises(ContractError, match=message) as caught:
        check_contract(DetectorConfig(**CONFIG), torch.device("cpu"))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and "docs/extending.md" in str(caught.value)


def test_training_refuses_it_before_it_reads_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, squares: Path
) -> None:
    run(SOURCE.replace("    def inference(", "    def infer("), monkeypatch)
    monkeypatch.setattr("tinydet.train.run.load_data", lambda *_: pytest.fail("data were read"))
    config = TrainConfig(
        detector="toy", backbone="tiny", data=squares, preset="small", weights_backbone="none", norm="group",
        channels=16, output=tmp_path / "model.pth",
    )  # fmt: skip
    with pytest.raises(ContractError, match="detector toy: inference"):
        train(config)


def test_a_name_belongs_to_one_file() -> None:
    def load(module: str) -> types.FunctionType:
        function = types.FunctionType((lambda: None).__code__, {})
        function.__module__ = module
        return function

    register_backbone("tiny", load("mine"))  # type: ignore[arg-type]
    register_backbone("tiny", load("tinydet_plugin_mine"))  # type: ignore[arg-type] # the same file as a --plugin
    with pytest.raises(ValueError, match=r"backbone 'tiny' is registered by both mine.py and other.py"):
        register_backbone("tiny", load("other"))  # type: ignore[arg-type]
    pyramid = DETECTORS["retinanet"].pyramid
    register_detector("toy", DetectorInfo("Toy", load("mine"), pyramid))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"detector 'toy' is registered by both mine.py and other.py"):
        register_detector("toy", DetectorInfo("Toy", load("other"), pyramid))  # type: ignore[arg-type]
