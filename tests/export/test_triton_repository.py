"""Model repositories, read by Triton's own protobuf. What that does not see is checked here as the server does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from runtime_fixtures import SPEC

from tinydet.__main__ import main
from tinydet.runtime.backends.contract import OUTPUT_TYPES, output_shapes
from tinydet.runtime.bundled import model_path
from tinydet.spec import ModelSpec

CELLS = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)


def export(model: Path, repository: Path, *options: str) -> Path:
    """Run the command; return the folder of the model."""
    assert main(["export", "triton", str(model), "--repository", str(repository), *options]) == 0
    name = options[options.index("--name") + 1] if "--name" in options else "tinydet"
    return repository / name


def read(folder: Path) -> Any:
    """Parse a configuration as the server does, and check what the server checks beyond its grammar."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tritonclient.grpc import model_config_pb2 as triton

    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    assert config.name == folder.name
    assert (folder / "1" / config.default_model_filename).is_file()
    axes = 1 if config.max_batch_size else 0
    for tensor in (*config.input, *config.output):
        assert len(tensor.dims) > 0  # "must specify 'dims'"
    (images,) = config.input
    assert config.model_warmup
    for warmup in config.model_warmup:
        assert 1 <= warmup.batch_size <= max(config.max_batch_size, 1)
        (sample,) = warmup.inputs.values()
        assert list(warmup.inputs) == ["images"]
        assert sample.data_type == images.data_type
        assert len(sample.dims) == len(images.dims) == 4 - axes
        assert all(a == b or b == -1 for a, b in zip(sample.dims, images.dims, strict=True))
        assert min(sample.dims) > 0
    (group,) = config.instance_group
    assert group.count >= 1
    assert not config.dynamic_batching.preferred_batch_size
    return config


def check_tensors(config: Any, spec: ModelSpec, *, free: bool = False) -> None:
    """Compare the tensors of a configuration with the contract of an exported model."""
    from tritonclient.grpc import model_config_pb2 as triton

    batch = [] if config.max_batch_size else [-1]
    side = -1 if free or len(spec.tiles) > 1 else spec.tile
    assert [(each.name, list(each.dims)) for each in config.input] == [("images", [*batch, side, side, 3])]
    assert config.input[0].data_type == triton.TYPE_UINT8
    kinds = {np.float32: triton.TYPE_FP32, np.int32: triton.TYPE_INT32}
    found = {each.name: each for each in config.output}
    assert list(found) == list(output_shapes(spec))
    for name, shape in output_shapes(spec).items():
        output = found[name]
        assert output.data_type == kinds[OUTPUT_TYPES[name]]
        if batch or shape:
            assert [*batch, *shape] == list(output.dims)
        else:  # one number a tile: one axis for clients, none in the model
            assert (list(output.dims), list(output.reshape.shape), output.HasField("reshape")) == ([1], [], True)
    assert ModelSpec.from_json(config.parameters["tinydet"].string_value, source="config.pbtxt") == spec


@pytest.mark.parametrize("platform", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tile_multiple": 32, "max_batch": 3},
        {"nms_rounds": 8, "nms_in_graph": False},
        {"classes": ('a "quoted" \\ name', "Straße\n船"), "max_detections": 7, "max_batch": 1},
    ],
    ids=["one-stage", "free tiles", "two-stage", "strange names"],
)
def test_a_configuration_has_the_tensors_and_the_description_of_the_model(
    changes: dict[str, Any], platform: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    spec = dataclasses.replace(CELLS, **changes)
    model = make_onnx(tmp_path / "model.onnx", spec=spec)
    free = ("--tile", "free") if spec.tile_multiple else ()
    folder = export(model, tmp_path / "models", "--platform", platform, "--threads", "3", *free)
    config = read(folder)
    check_tensors(config, spec, free=bool(free))
    assert config.backend == platform
    assert config.max_batch_size == (spec.max_batch if platform == "onnxruntime" else 0)
    assert config.HasField("dynamic_batching") == (platform == "onnxruntime")
    threads = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}[platform]
    assert config.parameters[threads].string_value == "3"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert config.parameters["tinydet_sha256"].string_value == hashlib.sha256(model.read_bytes()).hexdigest()


def test_the_tile_is_fixed_in_the_graph_and_the_file_is_known_by_its_hash(
    make_onnx: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(CELLS, tile_multiple=32)
    model = make_onnx(tmp_path / "model.onnx", spec=spec)
    folder = export(model, tmp_path / "models", "--tile", "96")
    config = read(folder)
    check_tensors(config, dataclasses.replace(spec, tile=96))
    assert config.parameters["tinydet_sha256"].string_value == hashlib.sha256(model.read_bytes()).hexdigest()
    (images,) = onnx.load(folder / "1" / "model.onnx").graph.input
    assert [axis.dim_value for axis in images.type.tensor_type.shape.dim] == [0, 96, 96, 3]
    assert main(["export", "triton", str(model), "--repository", str(tmp_path / "models"), "--tile", "100"]) == 2
    assert "takes tiles of any multiple of 32 pixels, not 100; the nearest: 96 and 128" in capsys.readouterr().err


def test_the_bundled_model_is_exported_by_its_name_with_the_outputs_of_its_graph(tmp_path: Path) -> None:
    config = read(export(Path("thermal"), tmp_path / "models", "--name", "night", "--queue-delay", "500"))
    graph = onnx.load(model_path("thermal")).graph
    for declared, output in zip(config.output, graph.output, strict=True):
        sizes = [axis.dim_value or -1 for axis in output.type.tensor_type.shape.dim]
        reshaped = list(declared.reshape.shape) if declared.HasField("reshape") else list(declared.dims)
        assert (declared.name, reshaped) == (output.name, sizes[1:])
    assert config.dynamic_batching.max_queue_delay_microseconds == 500


def test_an_adopted_model_with_one_tile_a_run_is_served_without_batches(
    make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    spec = dataclasses.replace(CELLS, max_batch=1, versions={"original": "YOLO"})
    path = make_onnx(tmp_path / "model.onnx", spec=spec)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    config = read(export(path, tmp_path / "models"))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 64, 64, 3]
    assert not config.HasField("dynamic_batching")


def test_an_openvino_ir_is_served_with_its_weights(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(make_onnx(tmp_path / "model.onnx", spec=CELLS))
    openvino.serialize(model, tmp_path / "ships.xml", tmp_path / "ships.bin")
    folder = export(tmp_path / "ships.xml", tmp_path / "models")
    config = read(folder)
    check_tensors(config, CELLS)
    assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
    assert (folder / "1" / "model.bin").read_bytes() == (tmp_path / "ships.bin").read_bytes()


def engine(path: Path, *, flavour: str = "tensorrt", **changes: Any) -> ModelSpec:
    """Write a file with the header of an engine, and its description."""
    plan = {"tensorrt": b"ftrt", "rtx": b"vtrt"}[flavour] + bytes(100)
    built = {"flavour": flavour, "version": "10.13", "gpu": "a GPU", "batch": [1, 8, 16], "tiles": [64]}
    built |= {"sha256": hashlib.sha256(plan).hexdigest(), **changes}
    spec = dataclasses.replace(CELLS, max_batch=16, tile=built["tiles"][0], engine=built, onnx_sha256="0" * 64)
    path.write_bytes(plan)
    path.with_suffix(".json").write_text(spec.to_json())
    return spec


@pytest.mark.parametrize("tiles", [[64], [64, 128]])
def test_an_engine_has_a_profile_for_each_tile_and_graphs_for_its_batches(tiles: list[int], tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as triton

    spec = engine(tmp_path / "model.engine", tiles=tiles)
    folder = export(tmp_path / "model.engine", tmp_path / "models", "--batch", "8")
    config = read(folder)
    check_tensors(config, spec)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    assert config.default_model_filename == "model.plan"
    (group,) = config.instance_group
    assert group.kind == triton.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ([] if len(tiles) == 1 else ["0", "1"])
    sizes = [each.batch_size for each in config.optimization.cuda.graph_spec]
    assert sizes == ([1, 8] if len(tiles) == 1 else [])
    assert {warmup.batch_size for warmup in config.model_warmup} == {1, 8}


def test_weights_in_other_files_are_copied_too(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    folder = export(path, tmp_path / "models")
    assert (folder / "1" / "weights.bin").read_bytes() == (tmp_path / "weights.bin").read_bytes()


def test_a_model_that_was_written_before_is_replaced_and_nothing_else(
    make_onnx: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_onnx(tmp_path / "model.onnx")
    folder = export(model, tmp_path / "models")
    (folder / "1" / "old.txt").write_text("of the older one")
    export(model, tmp_path / "models", "--device", "gpu")
    assert "KIND_GPU" in (folder / "config.pbtxt").read_text()
    assert sorted(path.name for path in folder.rglob("*")) == ["1", "config.pbtxt", "model.onnx"]
    (folder / "config.pbtxt").write_text('name: "tinydet"')
    assert main(["export", "triton", str(model), "--repository", str(tmp_path / "models")]) == 2
    assert "was not written by this command; choose another --name" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "models"]


def test_a_repository_that_cannot_be_written_is_left_as_it_was(
    make_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_onnx(tmp_path / "model.onnx")
    folder = export(model, tmp_path / "models")
    before = (folder / "config.pbtxt").read_text()
    original = Path.rename

    def fail_at_the_end(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_end)
    command = ["export", "triton", str(model), "--repository", str(tmp_path / "models"), "--device", "gpu"]
    assert main(command) == 2
    error = f"{folder} was not written (No space left on device); the older folder is unchanged"
    assert capsys.readouterr().err == f"tinydet export triton: error: {error}\n"
    assert (folder / "config.pbtxt").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "models"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--name", "../up"], "--name '../up': expected letters"),
        (["--platform", "tensorrt"], "Triton's tensorrt backend runs .engine or .plan files"),
        (["--instances", "2"], "--instances 2 needs --threads"),
        (["--batch", "5"], "takes at most 4 tiles"),
        (["--platform", "openvino", "--device", "gpu"], "--device gpu"),
        (["--platform", "openvino", "--batch", "2"], "does not join batches"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_written(
    options: list[str], why: str, make_onnx: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_onnx(tmp_path / "model.onnx")
    assert main(["export", "triton", str(model), "--repository", str(tmp_path / "models"), *options]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flavour": "rtx"}, "an engine of TensorRT-RTX, which Triton does not run"),
        ({"batch": [4, 8, 16]}, "takes batches of at least 4 tiles"),
        ({"sha256": "0"}, "is not the engine that"),
    ],
)
def test_engines_that_triton_cannot_run_are_refused(
    changes: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(tmp_path / "model.engine", **changes)
    command = ["export", "triton", str(tmp_path / "model.engine"), "--repository", str(tmp_path / "models")]
    assert main(command) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_description_is_one_line_of_json(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    folder = export(make_onnx(tmp_path / "model.onnx"), tmp_path / "models")
    value = read(folder).parameters["tinydet"].string_value
    assert "\n" not in value
    assert json.loads(value)["classes"] == list(CELLS.classes)
