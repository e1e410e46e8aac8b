"""Networks of timm as backbones: strides, weights, normalization, frozen stages, checkpoints, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tinydet.models.backbone import PIXEL_MEAN
from tinydet.models.backbone_registry import build_backbone, check_backbone
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.train import TrainConfig

timm = pytest.importorskip("timm")

SMALL = [
    "test_efficientnet",
    "test_resnet",
    "test_convnext",
    "test_byobnet",
    "test_mambaout",
]  # timm has them for tests
FAMILIES = [
    "cspresnet50", "convnext_atto", "dla34", "edgenext_xx_small", "efficientnet_lite0", "fbnetc_100", "ghostnet_100",
    "hrnet_w18", "mnasnet_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "regnety_002", "repvgg_a0",
    "resnet18d",
]  # fmt: skip


def checkpoint_of(backbone: str, norm: str = "batch") -> Checkpoint:
    config = DetectorConfig(backbone=backbone, channels=8, norm=norm, detector="retinanet", options={"head_convs": 1})
    weights = build_detector(config, (0.5, 0.4, 0.3)).state_dict()
    return Checkpoint(config, weights, ("person",), (1,), 64)


@pytest.mark.parametrize("name", SMALL)
def test_levels_have_strides_4_to_32_and_the_declared_channels(name: str) -> None:
    backbone = build_backbone(f"timm:{name}").eval()
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


def test_the_features_are_timms() -> None:
    backbone = build_backbone("timm:test_efficientnet").eval()
    reference = timm.create_model("test_efficientnet", features_only=True).eval()
    reference.load_state_dict(backbone.body.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), reference(image)[1:], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_classifier_are_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    classifier = timm.create_model("test_resnet", num_classes=7).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": classifier.state_dict()}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(classifier.state_dict(), path)
    backbone = build_backbone("timm:test_resnet").eval()
    backbone.load_weights(str(path))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[-1], classifier.forward_features(image))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone("timm:test_resnet")
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: does not fit test_resnet.*another --backbone"):
        backbone.load_weights(str(tmp_path / "other.pth"))
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part.pth: does not fit.* tensors are missing, e.g. layer3.0.conv1.weight"):
        backbone.load_weights(str(tmp_path / "part.pth"))
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="text.safetensors: cannot be read"):
        backbone.load_weights(str(tmp_path / "text.safetensors"))
    with pytest.raises(ValueError, match="trained with batch norm"):
        build_backbone("timm:test_resnet", norm="group").load_weights(str(tmp_path / "weights.pth"))


def test_a_failed_download_names_the_alternatives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="--weights-backbone FILE.*--weights-backbone none") as caught:
        build_backbone("timm:test_resnet").load_weights("default")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_frozen_stages_get_no_gradient(name: str) -> None:
    for stages in (0, 1, 2):
        backbone = build_backbone(f"timm:{name}", norm="batch")
        backbone.freeze(stages)
        levels = backbone(torch.randn(2, 3, 64, 64))
        assert levels[0].requires_grad == (stages < 2)
        assert levels[1].requires_grad
        first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
        assert first.weight.requires_grad == (stages == 0)


def test_frozen_batch_norms_keep_their_statistics_in_training_mode() -> None:
    backbone = build_backbone("timm:test_efficientnet", norm="frozen").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.randn(2, 3, 64, 64))
    assert before and all(torch.equal(value, backbone.state_dict()[key]) for key, value in before.items())
    learned = build_backbone("timm:test_efficientnet", norm="batch").train()
    learned(torch.randn(2, 3, 64, 64))
    assert any(value.any() for key, value in learned.state_dict().items() if key.endswith("running_mean"))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_group_norm_replaces_batch_norm_and_keeps_the_activation_inside_it(name: str) -> None:
    backbone = build_backbone(f"timm:{name}", norm="group")
    activations = [0, 0]
    for i, network in enumerate((timm.create_model(name, features_only=True), backbone.body)):
        activations[i] = sum(isinstance(module, nn.ReLU | nn.SiLU) for module in network.modules())
    assert activations[0] == activations[1] > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert len(backbone(torch.randn(1, 3, 64, 64))) == 4  # a batch of one


def test_group_norm_needs_a_network_with_batch_norm() -> None:
    with pytest.raises(ValueError, match="timm:test_convnext has no batch norm"):
        build_backbone("timm:test_convnext", norm="group")


def test_the_normalization_of_the_network_is_in_padding_checkpoint_and_graph(tmp_path: Path) -> None:
    assert timm.get_pretrained_cfg("test_resnet").mean == (0.5, 0.5, 0.5)
    checkpoint = checkpoint_of("timm:test_resnet")
    save_checkpoint(checkpoint, tmp_path / "model.pth")
    loaded = load_checkpoint(tmp_path / "model.pth")
    assert loaded.spec().pad == (128, 128, 128)
    graph = InferenceGraph(loaded.build(), loaded.spec())
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 64, 64, 3)
    torch.testing.assert_close(graph.pixels(pixels)[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_impossible_normalizations_are_refused(tmp_path: Path) -> None:
    for mean, std in (([0.0, 0, 0], [0.0, 1, 1]), ([-5.0, 0, 0], [1.0, 1, 1]), ([300.0, 0, 0], [1.0, 1, 1])):
        checkpoint = checkpoint_of("timm:test_resnet")
        checkpoint.weights["backbone.pixel_mean"] = torch.tensor(mean)
        checkpoint.weights["backbone.pixel_std"] = torch.tensor(std)
        save_checkpoint(checkpoint, tmp_path / "model.pth")
        with pytest.raises(ValueError, match="model.pth: not a usable checkpoint.*pixel_std"):
            load_checkpoint(tmp_path / "model.pth")


def test_a_network_brings_its_normalization() -> None:
    assert build_backbone("timm:lcnet_050").pixels.mean == pytest.approx(PIXEL_MEAN)
    name = "mobilevit_xxs"  # pixels in 0..1
    assert timm.get_pretrained_cfg(name).mean == (0.0, 0.0, 0.0)
    assert build_backbone(f"timm:{name}").pixels == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficentnet_lite0", "has no network 'efficentnet_lite0'.*; did you mean efficientnet_lite0"),
        ("vit_tiny_patch16_224", "has features with strides 16, 16, 16; a backbone needs 4, 8, 16 and 32"),
        ("swin_tiny_patch4_window7_224", "cannot process a tile of 96 x 64 pixels"),
        ("inception_v3", "cannot process a tile of 96 x 64 pixels"),
        ("resnet18.no_such_tag", "no_such_tag"),
    ],
)
def test_a_network_that_does_not_suit_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(f"timm:{name}")
    assert "\n" not in str(caught.value)


HOSTILE = ["timm:hf-hub:user/model", "timm:hf_hub:user/model", "timm:local-dir:/tmp/model", "timm:../model", "timm:",
           "timm:resnet18 ", "timm:user/model", "timm:resnet18\n", "timm:resnet18.a.b"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_cannot_name_a_download_or_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of("timm:test_resnet")
    object.__setattr__(checkpoint.detector, "backbone", name)
    save_checkpoint(checkpoint, tmp_path / "model.pth")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(ValueError, match=r"model.pth: not a usable checkpoint.*timm: and the name of an architecture"):
        load_checkpoint(tmp_path / "model.pth")


def test_loading_a_checkpoint_never_asks_for_pretrained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint_of("timm:test_resnet"), tmp_path / "model.pth")
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or create(*a, **k))
    load_checkpoint(tmp_path / "model.pth").build()
    assert asked and not any(asked)


def test_a_missing_timm_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tinydet\[timm\]'"):
        check_backbone("timm:resnet18")
    with pytest.raises(ValueError, match=r"pip install 'tinydet\[timm\]'"):
        TrainConfig(backbone="timm:resnet18")


@pytest.mark.parametrize(("given", "meant"), [("resnet81", "resnet18"), ("mobilenetv2", "mobilenet_v2")])
def test_an_unknown_name_gets_a_suggestion(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown backbone '{given}', expected one of .*; did you mean {meant}\\?"):
        TrainConfig(backbone=given)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_mambaout"])
def test_alpha_is_folded_without_changing_an_output(name: str) -> None:
    checkpoint = checkpoint_of(f"timm:{name}")
    detector, spec = checkpoint.build(), checkpoint.spec()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    with torch.no_grad():
        for folded, plain in zip(
            InferenceGraph(detector, spec)(images), InferenceGraph(detector, spec, fold=False)(images), strict=True
        ):
            torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "test_mambaout"])
def test_the_parser_of_tensorrt_rtx_takes_the_graph(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which parses without a GPU")
    pytest.importorskip("onnxscript")
    from tinydet.export.engine import parse_only
    from tinydet.export.onnx_file import write_onnx

    checkpoint = checkpoint_of(f"timm:{name}")
    path = write_onnx(checkpoint.build(), checkpoint.spec(max_detections=100), tmp_path / "model.onnx").path
    assert parse_only(path, target="rtx").flavour == "rtx"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *FAMILIES])
def test_it_is_exported_with_alpha_folded_and_equals_torch_in_onnx_runtime_and_openvino(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    from tinydet.export.onnx_file import write_onnx
    from tinydet.runtime.backends import open_model

    checkpoint = checkpoint_of(f"timm:{name}")
    spec = checkpoint.spec(max_detections=100)
    report = write_onnx(checkpoint.build(), spec, tmp_path / "model.onnx")  # compares ONNX Runtime with torch
    assert report.operators_added == 0 and not report.kept_edges and report.parity.unmatched == 0
    pytest.importorskip("openvino")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    ours, theirs = (open_model(report.path, backend).run(images) for backend in ("openvino", "onnx-cpu"))
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
