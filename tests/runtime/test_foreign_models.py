"""Model files that are foreign or were altered are refused in one line that names the file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.runtime.backends import check_outputs, open_model
from tinydet.spec import ModelSpec

onnx = pytest.importorskip("onnx")

BACKENDS = ["onnx-cpu", "openvino"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(request.param)


def refusal(path: Path, backend: str) -> str:
    with pytest.raises((ValueError, OSError)) as refused:
        open_model(path, backend)
    text = str(refused.value)
    assert str(path) in text and len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x00" * 100, b"\x08\x0a\x12", "half", "no metadata", "folder", "pipe"]
)
def test_a_file_that_is_not_an_exported_model_is_refused(
    content: bytes | str, backend: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    match content:
        case bytes():
            path.write_bytes(content)
        case "half":
            whole = make_onnx(tmp_path / "whole.onnx").read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "no metadata":
            make_onnx(path, metadata=None)
            assert "was not exported by tinydet" in refusal(path, backend)
        case "folder":
            path.mkdir()
            assert "a folder, not a file" in refusal(path, backend)
        case "pipe":
            os.mkfifo(path)
            assert "a pipe or device" in refusal(path, backend)
    refusal(path, backend)


ALTERED: dict[str, dict[str, Any]] = {
    "tile": {"tile": 32},
    "a text as tile": {"tile": "64"},
    "a huge tile": {"tile": 10**400},
    "more ids than classes": {"category_ids": [1]},
    "no classes": {"classes": []},
    "unpaired surrogate": {"classes": ["\ud800", "b"]},
    "nested": {"engine": {"a": {"b": []}}, "pad": [[0], 0, 0]},
    "rounds without their output": {"nms_rounds": 3},
}


@pytest.mark.parametrize("fault", ALTERED)
def test_an_altered_description_is_refused(
    fault: str, backend: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    spec = json.loads(open_model(make_onnx(tmp_path / "model.onnx"), "onnx-cpu").spec.to_json())
    path = make_onnx(tmp_path / "altered.onnx", metadata=json.dumps({**spec, **ALTERED[fault]}))
    refusal(path, backend)


@pytest.mark.parametrize("metadata", ["", "null", "[" * 5000, "{}", '{"format": 2}'])
def test_a_malformed_description_is_refused(
    metadata: str, backend: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    refusal(make_onnx(tmp_path / "model.onnx", metadata=metadata), backend)


def test_fewer_classes_than_the_graph_finds_are_noticed_with_the_first_tile(
    backend: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    """No runtime states the number of classes of a graph."""
    made = make_onnx(tmp_path / "model.onnx")
    spec = open_model(made, backend).spec
    outputs = open_model(made, backend).run(np.full((1, 64, 64, 3), 255, np.uint8))
    outputs.labels[0, 0] = 2
    with pytest.raises(ValueError, match="labels above 1, its last class"):
        check_outputs(outputs, spec, 1, name="x")


def with_weights_at(source: Path, path: Path, location: str) -> Path:
    """Write a copy whose constant `table` is stored in another file."""
    model = onnx.load(source)
    (table,) = (each for each in model.graph.initializer if each.name == "table")
    content = table.raw_data
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        entry = table.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    for file in (path.parent / "beside.bin", path.parent.parent / "outside.bin"):
        file.write_bytes(content)
    return path


@pytest.mark.parametrize("location", ["beside.bin", "../outside.bin", "absolute", "link.bin", "gone.bin"])
def test_weights_are_read_only_from_files_in_the_folder_of_the_model(
    location: str, backend: str, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to("../outside.bin")
    source = make_onnx(tmp_path / "whole.onnx")
    named = str(tmp_path / "outside.bin") if location == "absolute" else location
    path = with_weights_at(source, folder / "model.onnx", named)
    images = np.full((1, 64, 64, 3), 255, np.uint8)
    if location == "beside.bin":
        assert np.array_equal(
            open_model(path, backend).run(images).boxes, open_model(source, backend).run(images).boxes
        )
    else:
        refusal(path, backend)


def test_the_exporter_reads_a_description_as_strictly(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    from tinydet.export.onnx_model import read_onnx

    for content in (b"", b"text"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.onnx"):
            read_onnx(tmp_path / "model.onnx")
    made = make_onnx(tmp_path / "model.onnx", metadata='{"format": 1, "tile": "64"}')
    with pytest.raises(ValueError, match=r"model\.onnx: not a usable model description"):
        read_onnx(made)
    spec = dataclasses.replace(read_onnx(make_onnx(made)).spec, detector="other")
    assert isinstance(spec, ModelSpec)
