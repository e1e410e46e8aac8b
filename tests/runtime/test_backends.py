from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runtime_fixtures import SPEC

from tinydet.runtime.backends import choose_model, onnx_runtime, open_model
from tinydet.runtime.backends.onnx_runtime import BoundTensors, has_gpu_provider
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import detect_scene
from tinydet.runtime.scenes import open_scene
from tinydet.spec import ModelSpec


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep compiled models in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def cells(count: int) -> tuple[np.ndarray, set[tuple[float, ...]]]:
    """A scene of 192x128 pixels with `count` white 8x8 cells on the grid of the model, and their boxes."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((128, 192, 3), np.uint8)
    boxes = set()
    for i in rng.choice(24 * 16, count, replace=False):
        y, x = divmod(int(i), 24)
        pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255
        boxes.add((8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8))
    return pixels, boxes


def test_an_onnx_file_carries_its_spec_and_finds_the_objects(make_onnx: Callable, tmp_path: Path) -> None:
    backend = open_model(make_onnx(tmp_path / "model.onnx"), "onnx")
    assert backend.spec.classes == ("square", "bar")
    assert backend.name.startswith("ONNX Runtime")
    pixels, boxes = cells(30)
    result = detect_scene(backend, open_scene(pixels), ScanOptions(overlap=8))
    assert set(map(tuple, result.detections.boxes.tolist())) == boxes
    assert len(result.detections) == len(boxes)
    assert result.saturated == 0


def test_outputs_have_the_shapes_and_types_of_the_contract(make_onnx: Callable, tmp_path: Path) -> None:
    backend = open_model(make_onnx(tmp_path / "model.onnx"), "onnx", threads=1)
    for count in (1, 3):
        outputs = backend.run(np.full((count, 64, 64, 3), 255, np.uint8))
        assert outputs.boxes.shape == (count, 50, 4)
        assert [array.dtype for array in outputs[:4]] == [np.float32, np.float32, np.int32, np.int32]
        assert outputs.unconverged.shape == (0,)  # this model has no NMS in its graph
        assert outputs.candidates.tolist() == [64] * count  # 64 white cells for 50 slots
    assert (outputs.labels == 0).all()
    dark = backend.run(np.zeros((1, 64, 64, 3), np.uint8))
    assert (dark.labels == -1).all()
    assert dark.candidates.tolist() == [0]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_model_with_rounds_of_nms_has_the_output_unconverged(make_onnx: Callable, tmp_path: Path, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    spec = dataclasses.replace(open_model(make_onnx(tmp_path / "plain.onnx"), "onnx").spec, nms_rounds=8)
    backend = open_model(make_onnx(tmp_path / "model.onnx", spec=spec), name, threads=1)
    images = np.zeros((3, 64, 64, 3), np.uint8)
    images[1, :16] = 255
    outputs = backend.run(images)
    assert outputs.unconverged.tolist() == [0, 16, 0] and outputs.unconverged.dtype == np.int32
    without = make_onnx(tmp_path / "without.onnx", metadata=spec.to_json())
    with pytest.raises(ValueError, match="expected inputs and outputs .*unconverged.*export the model again"):
        open_model(without, name)


def test_bound_tensors_give_the_outputs_of_a_plain_run(make_onnx: Callable, tmp_path: Path) -> None:
    """The device is the CPU here; a GPU differs only in the device name."""
    backend = open_model(make_onnx(tmp_path / "model.onnx"), "onnx-cpu", threads=1)
    bound = BoundTensors(backend._session, backend.spec, 3, "cpu")
    outputs = None
    for seed in (1, 2):  # the buffers are reused
        images = np.random.default_rng(seed).integers(100, 256, (3, 64, 64, 3), dtype=np.uint8)
        before, outputs = outputs, bound.run(images)
        for ours, theirs in zip(outputs, backend.run(images), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert before is not None and not np.array_equal(before.scores, outputs.scores)


@pytest.mark.skipif(has_gpu_provider(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["onnx-cuda", "onnx-tensorrt", "onnx-rtx"])
def test_a_gpu_provider_is_refused_without_a_gpu(make_onnx: Callable, tmp_path: Path, backend: str) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    with pytest.raises(OSError, match=f"provider {backend[5:]} needs an NVIDIA GPU.*none here"):
        open_model(path, backend)
    assert open_model(path, "onnx").name.endswith(", CPU")


@pytest.mark.skipif(has_gpu_provider(), reason="there is a GPU")
def test_auto_falls_back_to_the_cpu_if_cuda_does_not_load(
    make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    usual = open_model(path).name
    monkeypatch.setattr(onnx_runtime, "_has_nvidia_gpu", lambda: True)  # a driver, but neither CUDA nor cuDNN
    if not has_gpu_provider():
        pytest.skip("this ONNX Runtime was built without CUDA")
    assert open_model(path).name == usual
    opened = open_model(path, "onnx")
    assert opened.name.endswith(", CPU") and not opened.on_gpu
    options = opened._session.get_session_options()
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"


def test_the_tensorrt_profile_covers_the_batch_sizes_of_the_model() -> None:
    assert onnx_runtime._profile(SPEC) == {
        "profile_min_shapes": "images:1x64x64x3",
        "profile_opt_shapes": "images:4x64x64x3",
        "profile_max_shapes": "images:4x64x64x3",
    }


@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_a_model_of_any_tile_is_opened_for_one(backend: str, make_onnx: Callable, tmp_path: Path) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(SPEC, tile_multiple=32))
    assert open_model(path, backend, threads=1).spec.tile == 64
    opened = open_model(path, backend, tile=96, threads=1)
    assert opened.spec.tile == 96 and opened.spec.tile_multiple == 32
    images = np.zeros((1, 96, 96, 3), np.uint8)
    images[0, 80:88, 88:96] = 255
    found = opened.run(images)
    assert found.boxes[0, 0].tolist() == [88, 80, 96, 88] and found.candidates.tolist() == [1]
    with pytest.raises(ValueError, match=r"\(N, 96, 96, 3\)"):
        opened.run(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"any multiple of 32 pixels, not 100; the nearest: 96 and 128"):
        open_model(path, backend, tile=100)
    with pytest.raises(ValueError, match="a number of pixels from 1"):
        open_model(path, backend, tile=0)


@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_a_model_of_one_tile_names_it_and_the_way_to_others(backend: str, make_onnx: Callable, tmp_path: Path) -> None:
    """Files of earlier versions."""
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    path = make_onnx(tmp_path / "old.onnx")
    assert open_model(path, backend, tile=64, threads=1).spec.tile == 64
    with pytest.raises(ValueError, match=r"old.onnx takes only tiles of 64, not 128; export .* export onnx") as refused:
        open_model(path, backend, tile=128)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 3, 64, 64), (9, 64, 64, 3)])
def test_tiles_of_another_shape_are_refused(make_onnx: Callable, tmp_path: Path, shape: tuple[int, ...]) -> None:
    backend = open_model(make_onnx(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match=r"\(N, 64, 64, 3\) with N <= 4"):
        backend.run(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("backend", ["onnx", "openvino", "auto"])
def test_foreign_and_damaged_onnx_files_are_refused_with_one_line(
    make_onnx: Callable, tmp_path: Path, capfd, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    spec = ModelSpec(("a",), (1,), "", "", tile=64, max_detections=50)
    later = json.dumps({**json.loads(spec.to_json()), "format": 99})
    cases = {
        "foreign.onnx": (
            make_onnx(tmp_path / "foreign.onnx", metadata=None),
            "was not exported by tinydet.*tinydet export onnx",
        ),
        "garbage.onnx": (make_onnx(tmp_path / "garbage.onnx", metadata="{}"), "not a tinydet model description"),
        "later.onnx": (make_onnx(tmp_path / "later.onnx", metadata=later), "format 99"),
        "outputs.onnx": (make_onnx(tmp_path / "outputs.onnx", labels="classes"), "expected inputs and outputs"),
        "tile.onnx": (
            make_onnx(tmp_path / "tile.onnx", metadata=dataclasses.replace(spec, tile=32).to_json()),
            "tiles of 32",
        ),
    }
    (tmp_path / "cut.onnx").write_bytes(cases["foreign.onnx"][0].read_bytes()[:500])
    cases["cut.onnx"] = (tmp_path / "cut.onnx", "not a valid ONNX file")
    for name, content in (("empty.onnx", b""), ("text.onnx", b"xx")):
        (tmp_path / name).write_bytes(content)
        cases[name] = (tmp_path / name, "")
    for name, (path, message) in cases.items():
        with pytest.raises(ValueError, match=f"{name}.*{message}") as error:
            open_model(path, backend)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone.onnx"):
        open_model(tmp_path / "gone.onnx", backend)
    assert capfd.readouterr().err == ""


def test_a_checkpoint_says_how_to_export_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tinydet export onnx .*model.pth"):
        open_model(tmp_path / "model.pth")


def test_the_best_usable_model_is_chosen_and_reasons_are_given_for_the_others(
    make_onnx: Callable, tmp_path: Path
) -> None:
    make_onnx(tmp_path / "model.onnx")
    choice = choose_model(folder=tmp_path)
    assert (choice.path, choice.passed_over) == (tmp_path / "model.onnx", ())
    (tmp_path / "model.engine").write_bytes(b"vtrt" + bytes(100))  # without a description
    choice = choose_model(folder=tmp_path)
    assert choice.path == tmp_path / "model.onnx"
    (reason,) = choice.passed_over
    assert "model.engine" in reason
    assert choose_model("onnx", folder=tmp_path).passed_over == ()


def test_a_folder_without_a_usable_model_gives_the_reason_for_each(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model.engine or model.onnx in .*tinydet export onnx model.pth"):
        choose_model(folder=tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    (tmp_path / "model.engine").write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(ValueError, match=r"no model here can run.*model.engine.*model.onnx"):
        choose_model(folder=tmp_path)
    with pytest.raises(ValueError, match=r"no model here can run.*model.onnx") as error:
        choose_model("onnx", folder=tmp_path)
    assert "model.engine" not in str(error.value)


def test_a_file_is_opened_only_by_its_own_backend(make_onnx: Callable, tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"is for the backend onnx, not tensorrt.*tinydet export engine"):
        open_model(path, "tensorrt")
    disguised = tmp_path / "disguised.onnx"
    disguised.write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(ValueError, match=r"is for the backend tensorrt, not onnx"):
        open_model(disguised, "onnx")
    with pytest.raises(ValueError, match=r"one of auto, tensorrt, openvino, .*, got 'triton'"):
        open_model(path, "triton")
    with pytest.raises(ValueError, match="threads: expected a whole number from 1 to 1024, got .0."):
        open_model(path, threads=0)
