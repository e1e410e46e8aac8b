"""Fixtures: an ONNX model of eleven nodes, an exported checkpoint with detections, and a stand-in for TensorRT."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tinydet.spec import ModelSpec

TILE, SLOTS = 64, 10
SPEC = ModelSpec(
    classes=("light",),
    category_ids=(4,),
    detector="brightness",
    backbone="none",
    tile=TILE,
    max_detections=SLOTS,
    score_floor=0.5,
)


@pytest.fixture
def brightness_model() -> Any:
    """An ONNX model with the inputs and outputs of an exported one, which detects the ten brightest 4 x 4 cells."""
    onnx = pytest.importorskip("onnx")
    make, kinds = onnx.helper, onnx.TensorProto
    cells = TILE // 4
    y, x = np.mgrid[:cells, :cells].astype(np.float32) * 4
    constants = {
        "kernel": np.full((1, 3, 4, 4), 1 / 48 / 255, np.float32),
        "flat": np.array([0, -1]),
        "slots": np.array([SLOTS]),
        "table": np.stack([x, y, x + 4, y + 4], -1).reshape(-1, 4),
        "floor": np.float32(SPEC.score_floor),
        "zero": np.int32(0),
        "minus": np.int32(-1),
        "axis": np.array([1]),
    }
    nodes = [
        make.make_node("Cast", ["images"], ["pixels"], name="cast", to=kinds.FLOAT),
        make.make_node("Transpose", ["pixels"], ["planes"], name="transpose", perm=[0, 3, 1, 2]),
        make.make_node("Conv", ["planes", "kernel"], ["means"], name="mean", kernel_shape=[4, 4], strides=[4, 4]),
        make.make_node("Reshape", ["means", "flat"], ["all"], name="flatten"),
        make.make_node("TopK", ["all", "slots"], ["scores", "index"], name="best", axis=1),
        make.make_node("Gather", ["table", "index"], ["boxes"], name="boxes", axis=0),
        make.make_node("Greater", ["scores", "floor"], ["filled"], name="filled"),
        make.make_node("Where", ["filled", "zero", "minus"], ["labels"], name="labels"),
        make.make_node("Greater", ["all", "floor"], ["over"], name="over"),
        make.make_node("Cast", ["over"], ["ones"], name="ones", to=kinds.INT32),
        make.make_node("ReduceSum", ["ones", "axis"], ["candidates"], name="count", keepdims=0),
    ]
    value = make.make_tensor_value_info
    graph = make.make_graph(
        nodes,
        "brightness",
        [value("images", kinds.UINT8, ["batch", TILE, TILE, 3])],
        [
            value("boxes", kinds.FLOAT, ["batch", SLOTS, 4]),
            value("scores", kinds.FLOAT, ["batch", SLOTS]),
            value("labels", kinds.INT32, ["batch", SLOTS]),
            value("candidates", kinds.INT32, ["batch"]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key="tinydet", value=SPEC.to_json())
    return model


@pytest.fixture
def brightness_spec() -> ModelSpec:
    return SPEC


@pytest.fixture
def brightness_onnx(brightness_model: Any, tmp_path: Path) -> Path:
    """The path of the brightness model, written to a file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_model.SerializeToString())
    return path


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    """The backbone of the exported detector."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import toy_detector

    with toy_detector.tiny_backbone():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained detector that gives as many detections as a trained one."""
    torch = pytest.importorskip("torch")
    import toy_detector

    from tinydet.models.build import DetectorConfig, build_detector
    from tinydet.models.checkpoint import Checkpoint, save_checkpoint

    torch.manual_seed(3)
    config = DetectorConfig("tiny", channels=32, norm="batch", classes=2, options={"head_convs": 1})
    with toy_detector.tiny_backbone():
        detector = build_detector(config, (0.368, 0.387, 0.367))
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        detector.train()(torch.randn(2, 3, 128, 128))  # sets the batch norm statistics
    torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.3)
    torch.nn.init.constant_(detector.head.classification_head.cls_logits.bias, -2.5)
    torch.nn.init.normal_(detector.head.regression_head.bbox_reg.weight, std=0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    save_checkpoint(Checkpoint(config, detector.state_dict(), ("person", "car"), (1, 3), tile=128), path)
    return path


@dataclass(frozen=True)
class Exported:
    """Files and output of `tinydet export engine model.pth`; without TensorRT-RTX there is no engine."""

    code: int
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image to verify on."""
    import cv2

    from tinydet.data.synthetic import render_scene

    path = tmp_path_factory.mktemp("scene") / "scene.png"
    cv2.imwrite(str(path), render_scene(200, 100, seed=1)[0][..., ::-1])
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Path, scene: Path, run_folder: Path) -> Exported:
    """The export of a copy of the checkpoint, made by the first worker that needs it."""
    folder, record = run_folder / "exported", run_folder / "exported.json"
    with FileLock(run_folder / "exported.lock"):
        if not record.exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(checkpoint, folder)
            record.write_text(json.dumps(_export(folder / checkpoint.name, scene)))
    code, out, err = json.loads(record.read_text())
    return Exported(code, folder, out, err)


def _export(checkpoint: Path, scene: Path) -> tuple[int, str, str]:
    import toy_detector

    from tinydet.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    arguments = ["--target", "rtx", "--batch", "1,2,4", "--max-detections", "300", "--images", str(scene)]
    arguments += ["--precision", "fp32"]
    with toy_detector.tiny_backbone(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["export", "engine", str(checkpoint), *arguments])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    """`import tensorrt` imports the stand-in below."""
    module = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


class TensorRT(types.ModuleType):
    """A stand-in for TensorRT's builder with exactly the names recorded from the real API.

    Records all calls and assignments in `calls`. The engine that it builds is a few bytes with the magic of a plan.
    """

    MAKES = {  # noqa: RUF012
        "Builder.create_network": "INetworkDefinition",
        "Builder.create_builder_config": "IBuilderConfig",
        "Builder.create_optimization_profile": "IOptimizationProfile",
        "IBuilderConfig.create_timing_cache": "ITimingCache",
        "IBuilderConfig.get_timing_cache": "ITimingCache",
    }
    RETURNS = {  # noqa: RUF012
        "OnnxParser.parse_from_file": True,
        "INetworkDefinition.num_layers": 11,
        "INetworkDefinition.num_inputs": 0,
        "INetworkDefinition.num_outputs": 0,
        "IBuilderConfig.add_optimization_profile": 0,
        "IBuilderConfig.set_timing_cache": True,
        "ITimingCache.serialize": b"timings",
        "Builder.build_serialized_network": b"ftrt and the rest",
    }

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.3.0"
        self.gpu = True
        self.calls: list[tuple[str, Any]] = []
        recorded = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8"))["names"]
        self.members: dict[str, list[str]] = {}
        for name in recorded:
            owner, _, member = name.rpartition(".")
            self.members.setdefault(owner or member, []).extend([member] if owner else [])
        for name in self.members:
            setattr(self, name, self._class(name))

    def _class(self, name: str) -> type:
        module = self

        def __init__(this: Any, *arguments: Any) -> None:
            if name == "Builder" and not module.gpu:
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def __getattr__(this: Any, member: str) -> Any:
            if member not in module.members[name]:
                raise AttributeError(f"the real {name} has no {member}")
            full = f"{name}.{member}"
            if full.startswith("INetworkDefinition.num"):
                return module.RETURNS[full]
            return lambda *arguments: module._called(full, arguments)

        def __setattr__(this: Any, member: str, value: Any) -> None:
            if type(this).__name__ == name and member not in module.members[name]:
                raise AttributeError(f"the real {name} has no {member}")
            module.calls.append((f"{name}.{member}", value))
            object.__setattr__(this, member, value)

        constants = {member: i for i, member in enumerate(self.members[name]) if member.isupper()}
        return type(
            name, (), {"__init__": __init__, "__getattr__": __getattr__, "__setattr__": __setattr__, **constants}
        )

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append((name, arguments))
        return getattr(self, self.MAKES[name])() if name in self.MAKES else self.RETURNS.get(name)
