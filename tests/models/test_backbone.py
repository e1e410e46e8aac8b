"""Backbones: strides, channels, frozen stages, normalization, ImageNet weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2

from tinydet.models.backbone_registry import build_backbone
from tinydet.models.options import TORCHVISION_BACKBONES


@pytest.mark.parametrize("name", TORCHVISION_BACKBONES)
def test_levels_have_strides_4_to_32_and_the_declared_channels(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
def test_frozen_stages_get_no_gradient(name: str) -> None:
    image = torch.randn(1, 3, 64, 64)
    for stages in (0, 1, 2):
        backbone = build_backbone(name)
        backbone.freeze(stages)
        levels = backbone(image)
        assert levels[0].requires_grad == (stages < 2)
        assert levels[1].requires_grad
        first = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
        assert first.weight.requires_grad == (stages == 0)


def test_frozen_norm_keeps_its_statistics_in_training_mode_and_has_no_gradient() -> None:
    backbone = build_backbone("resnet18").train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())
    assert not any(p.requires_grad for n, p in backbone.named_parameters() if "bn" in n)


def test_with_a_file_of_torchvision_weights_the_features_are_torchvisions(tmp_path: Path) -> None:
    reference = mobilenet_v2().eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone("mobilenet_v2").eval()
    backbone.load_weights(str(tmp_path / "weights.pth"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[-1], reference.features[:18](image))


def test_the_message_names_a_wrong_weights_file(tmp_path: Path) -> None:
    backbone = build_backbone("mobilenet_v2")
    with pytest.raises(ValueError, match="nowhere.pth: no such file"):
        backbone.load_weights(str(tmp_path / "nowhere.pth"))
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: does not fit mobilenet_v2"):
        backbone.load_weights(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth: not a file of tensors"):
        backbone.load_weights(str(tmp_path / "text.pth"))


def test_a_failed_download_names_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # no server
    with pytest.raises(ValueError, match="--weights-backbone FILE.*--weights-backbone none"):
        build_backbone("mobilenet_v2").load_weights("default")


def test_an_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet34"):
        build_backbone("resnet19")


def test_group_norm_supports_a_batch_of_one_and_refuses_batch_norm_weights(tmp_path: Path) -> None:
    backbone = build_backbone("mobilenet_v2", norm="group")
    levels = backbone.train()(torch.randn(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: trained with batch norm.*--weights-backbone none"):
        backbone.load_weights(str(tmp_path / "weights.pth"))
