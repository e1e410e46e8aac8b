"""The engine builder: real TensorRT-RTX engines, and the calls to TensorRT recorded by a stand-in."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tinydet.export.engine import parse_only, write_engine
from tinydet.export.onnx_model import graph_precision, read_onnx
from tinydet.spec import ModelSpec


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")


def description(path: Path) -> ModelSpec:
    return ModelSpec.from_json(path.read_text(encoding="utf-8"), source=path)


# --------------------------------------------------------------------------------------------------- TensorRT-RTX


def test_an_engine_is_a_plain_plan_with_its_description_next_to_it(
    rtx: Any, brightness_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.engine"
    spec = write_engine(brightness_onnx, output, target="rtx", batch=(1, 2, 4))
    plan = output.read_bytes()
    assert plan.startswith(b"vtrt")
    assert description(tmp_path / "model.json") == spec
    assert spec.max_batch == 4
    assert spec.onnx_sha256 == hashlib.sha256(brightness_onnx.read_bytes()).hexdigest()
    assert spec.engine["sha256"] == hashlib.sha256(plan).hexdigest()
    assert (spec.engine["flavour"], spec.engine["version"]) == ("rtx", rtx.__version__)
    assert spec.engine["batch"] == [1, 2, 4]
    assert "8.6" in spec.engine["gpu"]
    assert spec.engine["tensors"] == {
        "images": "UINT8 (-1, 64, 64, 3)",
        "boxes": "FLOAT (-1, 10, 4)",
        "scores": "FLOAT (-1, 10)",
        "labels": "INT32 (-1, 10)",
        "candidates": "INT32 (-1,)",
    }


def test_building_again_gives_a_plan_of_the_same_size(rtx: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    """Its bytes may differ, because TensorRT-RTX numbers internal tensors in varying order."""
    first = write_engine(brightness_onnx, tmp_path / "model.engine", target="rtx")
    again = write_engine(brightness_onnx, tmp_path / "model.engine", target="rtx")
    assert again.engine["bytes"] == first.engine["bytes"] == (tmp_path / "model.engine").stat().st_size
    assert description(tmp_path / "model.json") == again


def test_compute_capability_changes_the_engine(rtx: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    spec = write_engine(brightness_onnx, tmp_path / "model.engine", target="rtx", compute_capabilities=["7.5"])
    assert spec.engine["gpu"] == "compute capability 7.5"
    assert spec.engine["sha256"] != write_engine(brightness_onnx, tmp_path / "b.engine", target="rtx").engine["sha256"]


def test_a_build_logs_its_phases_and_the_lines_of_tensorrt(
    rtx: Any, brightness_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "tinydet")
    write_engine(brightness_onnx, tmp_path / "model.engine", target="rtx")
    messages = {name: {m for n, _, m in caplog.record_tuples if n == name} for name, _, _ in caplog.record_tuples}
    assert len(messages["tinydet.export.steps"]) > 3
    assert any("images" in line for line in messages["tinydet.tensorrt"])


def test_parsing_alone_writes_nothing(rtx: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    parsed = parse_only(brightness_onnx, target="rtx")
    assert parsed.flavour == "rtx" and parsed.layers > 10
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_message_names_the_node_that_the_parser_refuses(rtx: Any, brightness_model: Any, tmp_path: Path) -> None:
    del brightness_model.graph.node[0]  # the cast from uint8
    brightness_model.graph.node[0].input[0] = "images"
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_model.SerializeToString())
    with pytest.raises(ValueError, match=r"model\.onnx: node 'transpose' \(Transpose\).*UInt8.*Export"):
        write_engine(path, tmp_path / "model.engine", target="rtx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_existing_engine_is_kept_when_the_build_fails(rtx: Any, brightness_model: Any, tmp_path: Path) -> None:
    slots = next(c for c in brightness_model.graph.initializer if c.name == "slots")
    slots.raw_data = (4000).to_bytes(8, "little")  # TopK supports 3840
    path, output = tmp_path / "model.onnx", tmp_path / "model.engine"
    path.write_bytes(brightness_model.SerializeToString())
    output.write_bytes(b"older")
    with pytest.raises(ValueError, match=r"TensorRT-RTX 1.*best.*3840"):
        write_engine(path, output, target="rtx")
    assert output.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


def test_an_existing_engine_is_kept_when_the_new_one_fails_verification(
    rtx: Any, brightness_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.engine"
    older = write_engine(brightness_onnx, output, target="rtx", batch=(1, 2, 4))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    verified: list[tuple[bytes, ModelSpec]] = []

    def refuse(plan: Path, spec: ModelSpec) -> None:
        verified.append((plan.read_bytes(), spec))
        raise ValueError("it finds nothing")

    with pytest.raises(ValueError, match="it finds nothing"):
        write_engine(brightness_onnx, output, target="rtx", batch=(1, 1, 1), verify=refuse)
    ((plan, spec),) = verified
    assert spec.engine["sha256"] == hashlib.sha256(plan).hexdigest()
    assert (spec.max_batch, older.max_batch) == (1, 4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_engine_is_kept_when_the_disk_is_full(
    rtx: Any, brightness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.engine"
    output.write_bytes(b"older")

    def full(self: Path, data: Any) -> int:
        with self.open("wb") as file:
            file.write(bytes(data)[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"model\.engine was not written \(No space left on device\)"):
        write_engine(brightness_onnx, output, target="rtx")
    assert output.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version_compatible": True}, "one for each version"),
        ({"hardware_compatible": True}, "already runs on every GPU from Ampere on"),
        ({"timing_cache": Path("timings")}, "no timing cache"),
        ({"compute_capabilities": ["9.0"]}, r"capability 9\.0; choose from: 7\.5, 8\.0"),
        ({"batch": (1, 8, 4)}, "ascending order"),
        ({"batch": (0, 1, 4)}, "ascending order"),
    ],
)
def test_options_without_effect_and_invalid_batches_are_refused(
    rtx: Any, brightness_onnx: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_engine(brightness_onnx, tmp_path / "model.engine", target="rtx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# ------------------------------------------------------------------------------------------------------- TensorRT


def test_the_flag_for_strong_typing_is_set_by_name(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    """Its number differs between TensorRT 10 and 11."""
    write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt")
    flags = dict(tensorrt.calls)["Builder.create_network"]
    assert flags == (1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,)


def test_options_are_set_before_the_build(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    write_engine(
        brightness_onnx,
        tmp_path / "model.engine",
        target="tensorrt",
        batch=(1, 2, 4),
        workspace=1 << 30,
        version_compatible=True,
        hardware_compatible=True,
        timing_cache=cache,
    )
    names = [name for name, _ in tensorrt.calls]
    built = names.index("Builder.build_serialized_network")
    values = dict(tensorrt.calls[:built])
    assert values["IOptimizationProfile.set_shape"] == ("images", (1, 64, 64, 3), (2, 64, 64, 3), (4, 64, 64, 3))
    assert values["IBuilderConfig.set_memory_pool_limit"] == (tensorrt.MemoryPoolType.WORKSPACE, 1 << 30)
    assert values["IBuilderConfig.set_flag"] == (tensorrt.BuilderFlag.VERSION_COMPATIBLE,)
    assert values["IBuilderConfig.hardware_compatibility_level"] == tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert values["IBuilderConfig.create_timing_cache"] == (b"",)
    assert names.index("IBuilderConfig.add_optimization_profile") < built
    assert cache.read_bytes() == b"timings"
    spec = description(tmp_path / "model.json")
    assert spec.engine["version_compatible"] is spec.engine["hardware_compatible"] is True
    assert (tmp_path / "model.engine").read_bytes() == tensorrt.RETURNS["Builder.build_serialized_network"]


def test_tf32_is_disabled(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt")
    assert dict(tensorrt.calls)["IBuilderConfig.clear_flag"] == (tensorrt.BuilderFlag.TF32,)


def test_the_folder_of_a_timing_cache_is_created(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt", timing_cache=cache)
    assert cache.read_bytes() == b"timings"


def test_a_timing_cache_below_a_file_is_refused_before_the_build(
    tensorrt: Any, brightness_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is a file, not a folder"):
        write_engine(
            brightness_onnx, tmp_path / "model.engine", target="tensorrt", timing_cache=brightness_onnx / "cache"
        )
    assert "Builder.build_serialized_network" not in dict(tensorrt.calls)
    assert not (tmp_path / "model.engine").exists()


def test_options_that_are_not_given_are_not_set(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt")
    names = {name for name, _ in tensorrt.calls}
    assert not {name for name in names if "cache" in name or name.endswith(("set_flag", "pool_limit", "_level"))}


def test_a_timing_cache_is_read_and_extended(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    cache.write_bytes(b"older timings")
    write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt", timing_cache=cache)
    assert dict(tensorrt.calls)["IBuilderConfig.create_timing_cache"] == (b"older timings",)
    assert cache.read_bytes() == b"timings"


def test_without_a_gpu_the_message_recommends_tensorrt_rtx(
    tensorrt: Any, brightness_onnx: Path, tmp_path: Path
) -> None:
    tensorrt.gpu = False
    with pytest.raises(
        OSError, match=r"TensorRT 10\.3\.0 is installed, but it needs an NVIDIA GPU to build .*; TensorRT-RTX builds"
    ):
        write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_auto_is_tensorrt_rtx_without_a_gpu(rtx: Any, tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    tensorrt.gpu = False
    assert write_engine(brightness_onnx, tmp_path / "model.engine").engine["flavour"] == "rtx"


def test_auto_is_tensorrt_with_a_gpu(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    assert write_engine(brightness_onnx, tmp_path / "model.engine").engine["flavour"] == "tensorrt"


def test_without_tensorrt_the_message_names_the_extras(
    brightness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"'tinydet\[tensorrt\]'.*'tinydet\[rtx\]'"):
        write_engine(brightness_onnx, tmp_path / "model.engine")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_tensorrt_refuses_a_compute_capability(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="builds for the GPU that it finds"):
        write_engine(brightness_onnx, tmp_path / "model.engine", target="tensorrt", compute_capabilities=["8.6"])


# ---------------------------------------------------------------------------------------------------- ONNX and names


@pytest.mark.parametrize(
    ("kind", "quantized", "precision"), [("FLOAT", False, "fp32"), ("FLOAT16", False, "fp16"), ("FLOAT", True, "int8")]
)
def test_precision_is_determined_from_the_layers(
    brightness_model: Any, kind: str, quantized: bool, precision: str
) -> None:
    import onnx

    graph = brightness_model.graph
    kernel = next(c for c in graph.initializer if c.name == "kernel")
    kernel.data_type = onnx.TensorProto.DataType.Value(kind)
    if quantized:
        graph.node.append(onnx.helper.make_node("QuantizeLinear", ["planes", "scale"], ["q"]))
    weights, found = graph_precision(graph)
    assert found == precision
    assert weights[kind] >= 48


def test_a_file_with_the_wrong_precision_in_its_description_is_refused(brightness_model: Any, tmp_path: Path) -> None:
    entry = brightness_model.metadata_props[0]
    entry.value = entry.value.replace('"fp32"', '"fp16"')
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_model.SerializeToString())
    with pytest.raises(ValueError, match="is described as fp16, but its weights are"):
        write_engine(path, tmp_path / "model.engine")


def test_truncated_and_foreign_onnx_files_are_refused(brightness_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(brightness_model.SerializeToString()[:500])
    with pytest.raises(ValueError, match=r"model\.onnx: not a valid ONNX file"):
        read_onnx(path)
    del brightness_model.metadata_props[:]
    path.write_bytes(brightness_model.SerializeToString())
    with pytest.raises(ValueError, match="does not describe its classes"):
        read_onnx(path)
    with pytest.raises(FileNotFoundError):
        read_onnx(tmp_path / "missing.onnx")


def test_a_json_file_that_is_not_a_description_is_not_overwritten(brightness_onnx: Path, tmp_path: Path) -> None:
    annotations = tmp_path / "model.json"
    annotations.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"model\.json would be overwritten"):
        write_engine(brightness_onnx, tmp_path / "model.engine")
    assert json.loads(annotations.read_text()) == {"images": []}


def test_the_name_of_an_engine_ends_in_engine(brightness_onnx: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.engine"):
        write_engine(brightness_onnx, brightness_onnx)
