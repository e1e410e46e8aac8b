"""The fusion factor in the pyramid, and how it is folded away."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import detection
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tinydet.models.folding import fold_alpha, freeze_attention
from tinydet.models.fpn import FPN, PlainFPN, initialize_sigma_power
from tinydet.models.options import FUSIONS

CHANNELS = (8, 12, 16, 24)
OFFICIAL = (0.368, 0.387, 0.367)  # the released S-alpha of RetinaNet on TinyPerson, finest first


def features(size: int = 64, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(2, c, size // 2**i, size // 2**i, generator=generator).to(dtype) for i, c in enumerate(CHANNELS)
    ]


def pyramid(alpha: tuple[float, ...]) -> FPN:
    torch.manual_seed(5)
    fpn = FPN(CHANNELS, 16, alpha, top=LastLevelMaxPool())
    for conv in (*fpn.inner, *fpn.layer):  # biases start at zero; a fold that forgets them must not pass
        nn.init.normal_(conv.bias)
    return fpn


def test_levels_follow_equation_one() -> None:
    fpn = pyramid((0.5, 0.25, 2.0))
    c2, c3, c4, c5 = features()
    p5 = fpn.inner[3](c5)
    p4 = fpn.inner[2](c4) + 2.0 * F.interpolate(p5, scale_factor=2.0)
    p3 = fpn.inner[1](c3) + 0.25 * F.interpolate(p4, scale_factor=2.0)
    p2 = fpn.inner[0](c2) + 0.5 * F.interpolate(p3, scale_factor=2.0)
    expected = [layer(p) for layer, p in zip(fpn.layer, (p2, p3, p4, p5), strict=True)]
    expected.append(expected[-1][:, :, ::2, ::2])
    for level, wanted in zip(fpn([c2, c3, c4, c5]), expected, strict=True):
        torch.testing.assert_close(level, wanted)


def test_with_alpha_one_it_is_torchvisions_pyramid() -> None:
    fpn = pyramid((1.0, 1.0, 1.0))
    reference = FeaturePyramidNetwork(list(CHANNELS), 16, extra_blocks=LastLevelMaxPool())
    for ours, theirs in zip((*fpn.inner, *fpn.layer), (*reference.inner_blocks, *reference.layer_blocks), strict=True):
        theirs[0].load_state_dict(ours.state_dict())
    wanted = reference({str(i): f for i, f in enumerate(features())})
    for level, other in zip(fpn(features()), wanted.values(), strict=True):
        torch.testing.assert_close(level, other)


@pytest.mark.parametrize(
    "alpha", [OFFICIAL, (0.48, 0.66, 1.06), (0.1, 0.1, 0.1), (1.1, 1.1, 1.1), (-0.3, 0.7, -1.2), (0.2, 2.0, 0.2)]
)
def test_folding_changes_no_output(alpha: tuple[float, ...]) -> None:
    fpn = pyramid(alpha)
    for level, folded in zip(fpn(features()), fold_alpha(fpn)(features()), strict=True):
        assert (level - folded).abs().max() <= 2e-6 * level.abs().max()


def test_folding_in_float64_is_exact_to_rounding() -> None:
    fpn = pyramid(OFFICIAL).double()
    inputs = features(dtype=torch.float64)
    for level, folded in zip(fpn(inputs), fold_alpha(fpn)(inputs), strict=True):
        assert (level - folded).abs().max() <= 1e-14 * level.abs().max()


@pytest.mark.parametrize("alpha", [(0.5, 0.5, 0.5), (0.25, 2.0, 0.5), (1.0, 1.0, 1.0)])
def test_folding_a_power_of_two_is_bit_identical(alpha: tuple[float, ...]) -> None:
    fpn = pyramid(alpha)
    for level, folded in zip(fpn(features()), fold_alpha(fpn)(features()), strict=True):
        assert torch.equal(level, folded)


@pytest.mark.parametrize("alpha", [(0.0, 0.5, 0.3), (0.4, 0.0, 0.3), (0.4, 0.5, 0.0), (0.0, 0.0, 0.0)])
def test_an_edge_with_alpha_zero_is_deleted_and_no_output_changes(alpha: tuple[float, ...]) -> None:
    fpn = pyramid(alpha)
    folded = fold_alpha(fpn)
    assert folded.edges == tuple(a != 0 for a in alpha)
    for level, other in zip(fpn(features()), folded(features()), strict=True):
        assert (level - other).abs().max() <= 2e-6 * level.abs().max()


def test_folding_keeps_small_weights_in_the_normal_range_of_half_precision() -> None:
    fpn = pyramid((0.1, 0.1, 0.1))
    for conv in fpn.inner:
        nn.init.normal_(conv.weight, std=0.002)
    folded = fold_alpha(fpn)
    smallest = min(float(c.weight.detach().square().mean().sqrt()) for c in (*folded.inner, *folded.layer))
    assert smallest > torch.finfo(torch.float16).tiny


def test_a_folded_pyramid_has_the_parameters_of_a_plain_one() -> None:
    plain = PlainFPN(CHANNELS, 16)
    assert fold_alpha(pyramid(OFFICIAL)).state_dict().keys() == plain.state_dict().keys()


def test_alpha_travels_with_the_weights_and_strict_loading_refuses_the_other_kind() -> None:
    fused, plain = pyramid(OFFICIAL), PlainFPN(CHANNELS, 16)
    other = FPN(CHANNELS, 16)
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other.alpha, fused.alpha)
    with pytest.raises(RuntimeError, match="alpha"):
        other.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="alpha"):
        plain.load_state_dict(fused.state_dict())


def test_alpha_is_no_parameter() -> None:
    assert "alpha" not in dict(pyramid(OFFICIAL).named_parameters())


def test_a_wrong_number_of_factors_is_named() -> None:
    with pytest.raises(ValueError, match="3 fused edges, but alpha has 2 values"):
        FPN(CHANNELS, 16, (0.5, 0.5))


def learned(fusion: str) -> FPN:
    """A pyramid with learned factors that have left their initial values."""
    torch.manual_seed(5)
    fpn = FPN(CHANNELS, 16, (0.9, 0.5, 0.7), fusion=fusion)
    for parameter in (p for name, p in fpn.named_parameters() if name.startswith(("alpha", "attention"))):
        parameter.data += 0.2 * torch.randn_like(parameter)
    return fpn


@pytest.mark.parametrize("fusion", ["one", "three", "channel"])
def test_folding_learned_factors_changes_no_output(fusion: str) -> None:
    fpn = learned(fusion)
    folded = fold_alpha(fpn)
    assert folded.kept == ()
    for level, other in zip(fpn(features()), folded(features()), strict=True):
        assert (level - other).abs().max() <= 3e-6 * level.abs().max()


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f != "fixed"])
def test_learned_factors_start_at_the_given_alpha_and_have_a_gradient(fusion: str) -> None:
    torch.manual_seed(5)
    start = None if fusion == "attention" else (0.5, 0.5, 0.5)
    fpn = FPN(CHANNELS, 16, start, fusion=fusion)
    fixed = FPN(CHANNELS, 16, start)
    fixed.load_state_dict({**fixed.state_dict(), **{k: v for k, v in fpn.state_dict().items() if k[0] in "il"}})
    for level, other in zip(fpn(features()), fixed(features()), strict=True):
        torch.testing.assert_close(level, other)
    sum(level.square().mean() for level in fpn(features())).backward()
    own = [p for name, p in fpn.named_parameters() if name.startswith(("alpha", "attention"))]
    assert own and any(p.grad is not None and p.grad.abs().max() > 0 for p in own)


def test_attention_gives_each_image_its_own_factor_and_cannot_be_folded() -> None:
    fpn = learned("attention")
    both = features()
    alone = [level[1:] for level in both]
    torch.testing.assert_close(fpn(both)[0][1:], fpn(alone)[0])
    lateral, deeper = both[0][:, :8].repeat(1, 2, 1, 1), both[0].repeat(1, 2, 1, 1)
    factor = fpn.factor(0, lateral, deeper)
    assert factor.shape == (2, 1, 1, 1) and factor[0] != factor[1] and ((factor > 0) & (factor < 2)).all()
    with pytest.raises(ValueError, match="freeze it first"):
        fold_alpha(fpn)


def test_frozen_attention_is_a_fixed_pyramid() -> None:
    fpn = FPN(CHANNELS, 16, fusion="attention")  # starts at 1
    frozen = freeze_attention(fpn, (1.0, 1.0, 1.0))
    assert frozen.fusion == "fixed"
    for level, other in zip(fpn(features()), fold_alpha(frozen)(features()), strict=True):
        torch.testing.assert_close(level, other)


def test_sigma_power_initialization_with_alpha_one_is_alpha_sigma() -> None:
    powers, fused = pyramid((1.0, 1.0, 1.0)), pyramid((0.5, 0.5, 0.5))
    initialize_sigma_power(powers, 0.5)
    for level, other in zip(powers(features()), fused(features()), strict=True):
        torch.testing.assert_close(level, other)


def test_a_spread_that_would_leave_half_precision_keeps_a_factor_and_changes_no_output() -> None:
    fpn = pyramid((0.01, 0.01, 0.01))
    for conv in fpn.inner:
        nn.init.normal_(conv.weight, std=0.002)
    folded = fold_alpha(fpn)
    assert folded.kept
    smallest = min(float(c.weight.detach().square().mean().sqrt()) for c in (*folded.inner, *folded.layer))
    assert smallest > torch.finfo(torch.float16).tiny
    for level, other in zip(fpn(features()), folded(features()), strict=True):
        assert (level - other).abs().max() <= 3e-6 * level.abs().max()


@pytest.mark.parametrize("factor", [0.002, 0.01, 0.05])
def test_a_single_weak_channel_folds_within_half_precision_or_keeps_its_factor(factor: float) -> None:
    """One of many does not show in the size of all the weights."""
    torch.manual_seed(5)
    fpn = FPN(CHANNELS, 256, (0.9, 0.5, 0.7), fusion="channel")
    fpn.alpha.data[:, 3] = factor
    folded = fold_alpha(fpn)
    normal = torch.finfo(torch.float16)
    for inner, layer in zip(folded.inner, folded.layer, strict=True):
        rows = inner.weight.detach().flatten(1).square().mean(dim=1).sqrt()
        columns = layer.weight.detach().movedim(1, 0).flatten(1).square().mean(dim=1).sqrt()
        assert min(float(rows.min()), float(columns.min())) > normal.tiny
        assert max(float(p.detach().abs().max()) for p in (inner.weight, layer.weight)) < normal.max
    assert bool(folded.kept) == (factor < 0.05)
    for level, other in zip(fpn(features()), folded(features()), strict=True):
        assert (level - other).abs().max() <= 3e-6 * level.abs().max()


def test_weights_that_were_small_before_keep_no_factor_that_folding_does_not_hurt() -> None:
    fpn = pyramid((1.0, 1.0, 1.0))
    for conv in fpn.inner:
        nn.init.normal_(conv.weight, std=1e-5)
    assert fold_alpha(fpn).kept == ()


def test_a_level_without_weights_hides_no_other_one_that_can_be_kept_in_range() -> None:
    fpn = pyramid((0.0, 0.01, 0.01))
    nn.init.zeros_(fpn.inner[0].weight)
    for conv in list(fpn.inner)[1:]:
        nn.init.normal_(conv.weight, std=0.002)
    folded = fold_alpha(fpn)
    assert folded.edges == (False, True, True) and folded.kept
    smallest = min(float(c.weight.detach().square().mean().sqrt()) for c in (*list(folded.inner)[1:], *folded.layer))
    assert smallest > 2 * torch.finfo(torch.float16).tiny


def test_a_single_dead_channel_keeps_its_factors_and_changes_no_output() -> None:
    fpn = learned("channel")
    fpn.alpha.data[1, 3] = 0.0
    folded = fold_alpha(fpn)
    assert folded.kept == (1,) and folded.factor1.shape == (16, 1, 1)
    for level, other in zip(fpn(features()), folded(features()), strict=True):
        assert (level - other).abs().max() <= 3e-6 * level.abs().max()


# ------------------------------------------------------------------------------------- in a detector of torchvision

QUICK = {"weights": None, "weights_backbone": None, "num_classes": 3, "min_size": 64, "max_size": 96}
FEW_BOXES = {"box_detections_per_img": 5, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 20}
FEW_ANCHORS = {"detections_per_img": 5, "score_thresh": 0.0, "topk_candidates": 20}
TORCHVISION = {
    "retinanet_resnet50_fpn": FEW_ANCHORS,
    "retinanet_resnet50_fpn_v2": FEW_ANCHORS,
    "fasterrcnn_resnet50_fpn": FEW_BOXES,
    "fasterrcnn_resnet50_fpn_v2": FEW_BOXES,  # has batch norm in its pyramid
    "maskrcnn_resnet50_fpn": FEW_BOXES,
}


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(11)
    model = getattr(detection, name)(**QUICK, **TORCHVISION[name]).eval()
    for module in model.backbone.fpn.modules():  # a pyramid that has learned
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


@pytest.fixture(scope="module", params=TORCHVISION)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return torchvision_model(request.param)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(each, nn.BatchNorm2d) for each in module.modules())


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (75, 99)])  # levels that are twice as large as the next, and that are not
def test_the_pyramid_of_any_torchvision_detector_takes_a_factor_and_folds_back(
    model: nn.Module, size: tuple[int, int]
) -> None:
    theirs = model.backbone.fpn
    torch.manual_seed(3)
    channels = [block[0].in_channels for block in theirs.inner_blocks]
    finest = 4 << (4 - len(channels))
    inputs = {  # of an image of this size, as the backbone would give them
        str(i): torch.randn(1, count, *(-(-side // (finest << i)) for side in size)) for i, count in enumerate(channels)
    }
    wanted = theirs(inputs)
    same = FPN.from_torchvision(theirs)(inputs)
    assert list(same) == list(wanted)
    assert all(torch.equal(same[name], level) and level.isfinite().all() for name, level in wanted.items())

    fpn = FPN.from_torchvision(theirs, alpha=0.5)
    weighed = fpn(inputs)
    assert not any(torch.equal(weighed[name], wanted[name]) for name in list(inputs)[:-1])
    assert torch.equal(weighed[list(inputs)[-1]], wanted[list(inputs)[-1]])  # C5 has no deeper level

    folded = fold_alpha(fpn)
    plain = folded.to_torchvision()
    assert type(plain) is FeaturePyramidNetwork and not has_batch_norm(plain)
    for name, level in folded(inputs).items():
        if has_batch_norm(theirs):
            assert (level - weighed[name]).abs().max() <= 1e-5 * level.abs().max()
        else:
            assert torch.equal(level, weighed[name])  # 0.5 is a power of two
        assert torch.equal(plain(inputs)[name], level)
    made = FeaturePyramidNetwork(channels, 256, extra_blocks=theirs.extra_blocks)
    assert plain.state_dict().keys() == made.state_dict().keys()


def test_a_pyramid_whose_norm_depends_on_the_image_is_not_folded() -> None:
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, norm_layer=lambda channels: nn.GroupNorm(4, channels))
    with pytest.raises(ValueError, match="expected a convolution with a bias or a batch norm"):
        fold_alpha(FPN.from_torchvision(theirs, alpha=0.5))


@torch.no_grad()
def test_any_torchvision_detector_takes_a_factor_in_one_line_and_is_saved_as_torchvision_does(
    model: nn.Module,
) -> None:
    theirs, image = model.backbone.fpn, torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(4))

    def boxes_and_scores() -> torch.Tensor:
        (found,) = model([image])
        return torch.cat([found["boxes"], found["scores"][:, None]], dim=1)

    wanted, names = boxes_and_scores(), model.state_dict().keys()
    assert len(wanted)
    try:
        model.backbone.fpn = FPN.from_torchvision(theirs)
        assert torch.equal(boxes_and_scores(), wanted)
        model.backbone.fpn = FPN.from_torchvision(theirs, alpha=[0.5, 0.25, 2.0][: len(theirs.inner_blocks) - 1])
        weighed = boxes_and_scores()
        assert weighed.shape != wanted.shape or not torch.allclose(weighed, wanted)
        model.backbone.fpn = fold_alpha(model.backbone.fpn)
        if not has_batch_norm(theirs):
            assert torch.equal(boxes_and_scores(), weighed)
        model.backbone.fpn = model.backbone.fpn.to_torchvision()
        if not has_batch_norm(theirs):
            assert torch.equal(boxes_and_scores(), weighed) and model.state_dict().keys() == names
    finally:
        model.backbone.fpn = theirs
