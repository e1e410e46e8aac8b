"""Libra R-CNN: the formulas of the reference by independent code, and what its samplers and its pyramid guarantee."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detector_cases import cases_of
from numpy.typing import NDArray
from torch import Tensor, nn

from tinydet.data.samples import Sample
from tinydet.export.onnx_file import trace, write_onnx
from tinydet.models.backbone import PixelNorm
from tinydet.models.batch import Batch, collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.models.faster_rcnn import Candidates, FasterRCNN
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.libra_rcnn import (
    IOU_BINS,
    AnchorSampler,
    BalancedFeaturePyramid,
    LibraRCNN,
    NonLocal,
    balanced_l1,
    draw_negatives,
    draw_positives,
)
from tinydet.models.registry import DETECTORS, register_detector

CPU = torch.device("cpu")


def batch_of(objects: list[list[float]], side: int = 64) -> Batch:
    """Two tiles of noise; the first has the objects."""
    rng, nothing = np.random.default_rng(1), np.zeros((0, 4), np.float32)
    boxes = [np.array(objects, np.float32).reshape(-1, 4), nothing]
    samples = [
        Sample(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), each, np.zeros(len(each), np.int64), nothing)
        for each in boxes
    ]
    return collate(samples, CPU, PixelNorm(), multiple=64)


def libra(alpha: tuple[float, ...] | None = None, **options: Any) -> LibraRCNN:
    torch.manual_seed(2)
    config = DetectorConfig("mobilenet_v2", channels=8, detector="libra_rcnn", options=options)
    detector = build_detector(config, alpha)
    assert isinstance(detector, LibraRCNN)
    return detector


# ----------------------------------------------------------------------------------------------- balanced pyramid


def resized(source: NDArray[Any], shape: tuple[int, int], *, finer: bool) -> NDArray[Any]:
    """Adaptive max pooling, or the nearest cell, cell by cell."""
    result = np.empty((*source.shape[:-2], *shape))
    rows, columns = source.shape[-2:]
    for i in range(shape[0]):
        for j in range(shape[1]):
            if finer:
                result[..., i, j] = source[..., i * rows // shape[0], j * columns // shape[1]]
            else:
                top, bottom = i * rows // shape[0], -(-(i + 1) * rows // shape[0])
                left, right = j * columns // shape[1], -(-(j + 1) * columns // shape[1])
                result[..., i, j] = source[..., top:bottom, left:right].max(axis=(-2, -1))
    return result


def non_local(x: NDArray[Any], weights: dict[str, tuple[NDArray[Any], NDArray[Any]]]) -> NDArray[Any]:
    """(C, H, W) -> x + out(softmax over keys of theta' phi, applied to g); weights (out, in) and biases."""
    cells = x.reshape(len(x), -1)
    theta, phi, g = (weights[k][0] @ cells + weights[k][1][:, None] for k in ("theta", "phi", "g"))
    logits = theta.T @ phi  # (queries, keys)
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    found = weights["out"][0] @ (g @ attention.T) + weights["out"][1][:, None]
    return x + found.reshape(x.shape)


def weights_of(block: NonLocal) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    return {
        name: (conv.weight.detach().double().numpy()[:, :, 0, 0], conv.bias.detach().double().numpy())
        for name, conv in block.named_children()
    }


@torch.no_grad()
def test_the_balanced_pyramid_gives_the_numbers_of_the_cases(shared: Path) -> None:
    for case in cases_of(shared, "balanced_feature_pyramid"):
        given, expected = case["input"], case["expected"]
        levels = [torch.tensor(level)[None] for level in given["levels"]]
        assert given["gather_at"] == 2
        bfp = BalancedFeaturePyramid(levels[0].shape[1])
        for part, values in (given["refine"] or {}).items():
            getattr(bfp.refine, part).weight.copy_(torch.tensor(values["weight"])[:, :, None, None])
            getattr(bfp.refine, part).bias.copy_(torch.tensor(values["bias"]))
        found, wanted = [bfp.balanced(levels), *bfp(levels)], [expected["balanced"], *expected["levels"]]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[0], torch.tensor(other), atol=case["tolerance"], rtol=case["tolerance"])


@pytest.mark.parametrize("sizes", [
    [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)],  # every level is exactly twice the next
    [(21, 26), (11, 13), (6, 7), (3, 4), (2, 2)],  # as a pyramid has them without padding
    [(40, 9), (13, 9), (7, 5), (5, 1), (1, 1)],
    [(92, 3), (46, 3), (46, 3), (20, 2), (14, 1)],  # where F.interpolate rounds to a wrong row
])  # fmt: skip
@torch.no_grad()
def test_the_balanced_pyramid_is_its_formula_at_any_sizes(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(sum(map(sum, sizes)))
    levels = [torch.randn(2, 3, *size) for size in sizes]
    bfp = BalancedFeaturePyramid(3)
    for parameter in bfp.parameters():
        nn.init.normal_(parameter)
    found = bfp(levels)
    for image in range(2):
        maps = [level[image].double().numpy() for level in levels]
        gathered = [resized(each, sizes[2], finer=i > 2) for i, each in enumerate(maps)]
        assert isinstance(bfp.refine, NonLocal)
        refined = non_local(np.mean(gathered, axis=0), weights_of(bfp.refine))
        for i, each in enumerate(maps):
            wanted = torch.from_numpy(each + resized(refined, sizes[i], finer=i < 2)).float()
            torch.testing.assert_close(found[i][image], wanted, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_the_non_local_block_starts_as_an_identity_with_small_embeddings() -> None:
    torch.manual_seed(0)
    block = NonLocal(64)
    x = torch.randn(2, 64, 5, 7)
    assert torch.equal(block(x), x)
    for name, conv in block.named_children():
        assert not conv.bias.any()
        assert float(conv.weight.std()) == pytest.approx(0.0 if name == "out" else 0.01, rel=0.1)


@torch.no_grad()
def test_attention_is_computed_in_float32_under_autocast() -> None:
    block = NonLocal(8)
    for conv in (block.theta, block.phi, block.g, block.out):
        nn.init.eye_(conv.weight[:, :, 0, 0])  # exact in bfloat16
    block.g.weight.mul_(64)
    block.g.bias.fill_(-64 * 16.0)
    x = torch.zeros(1, 8, 2, 3)
    x[0, :, 0, :2] = 16.0
    x[0, 0, 0, 1] = 16.125
    # The first query has the logits 2048 and 2050, which are one number in bfloat16: it would average the two cells.
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    expected = 16.0 + 64 * 0.125 / (1 + math.exp(-2))
    assert float(found[0, 0, 0, 0]) == pytest.approx(expected, abs=0.04)
    assert torch.isfinite(block(x * 1e5)).all()  # logits of 1e13


# ------------------------------------------------------------------------------------------------------- box loss


def test_balanced_l1_gives_the_numbers_of_the_cases(shared: Path) -> None:
    for case in cases_of(shared, "balanced_l1"):
        for parameters, expected in zip(case["input"]["parameters"], case["expected"], strict=True):
            x = torch.tensor(case["input"]["x"], dtype=torch.float64, requires_grad=True)
            value = balanced_l1(x, **parameters)
            (derivative,) = torch.autograd.grad(value.sum(), x)
            for found, name in ((value, "value"), (derivative, "derivative")):
                wanted = torch.tensor(expected[name], dtype=torch.float64)
                torch.testing.assert_close(found, wanted, atol=case["tolerance"], rtol=case["tolerance"])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 1.5), (0.3, 1.0)])
def test_the_gradient_of_balanced_l1_is_the_papers_and_promotes_small_errors(alpha: float, gamma: float) -> None:
    x = torch.linspace(-3, 3, 121, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(balanced_l1(x, alpha, gamma).sum(), x)
    b = math.exp(gamma / alpha) - 1
    wanted = torch.where(x.abs() < 1, alpha * torch.log(b * x.abs() + 1), torch.tensor(gamma)) * x.sign()
    torch.testing.assert_close(found, wanted.detach(), atol=1e-9, rtol=0)
    inner = (x.abs() > 0) & (x.abs() < 1)
    assert (found.abs()[inner] > x.abs()[inner] * gamma).all()  # more than that of a parabola which ends in gamma


def test_the_regression_loss_is_balanced_l1_over_the_sample() -> None:
    torch.manual_seed(0)
    predicted, encoded = torch.randn(7, 4), torch.randn(7, 4)
    found = libra().box_loss(predicted, encoded)
    b, d = math.exp(3) - 1, (predicted - encoded).abs().double()
    wanted = torch.where(d < 1, 0.5 / b * (b * d + 1) * torch.log(b * d + 1) - 0.5 * d, 1.5 * d + 1.5 / b - 0.5)
    assert float(found) == pytest.approx(float(wanted.sum()), rel=1e-5)
    assert float(libra().box_loss(predicted[:0], encoded[:0])) == 0


# ------------------------------------------------------------------------------------------------------- samplers


def test_negatives_come_from_where_the_cases_say(shared: Path) -> None:
    for case in cases_of(shared, "iou_balanced_sampling"):
        assert case["input"]["bins"] == IOU_BINS
        best_iou = torch.tensor(case["input"]["best_iou"], dtype=torch.float64)
        negative = torch.where(torch.tensor(case["input"]["negative"]))[0]
        for wanted, expected in zip(case["input"]["cases"], case["expected"], strict=True):
            for seed in range(3):
                torch.manual_seed(seed)
                drawn = draw_negatives(negative, best_iou, wanted)
                assert len(drawn) == len(drawn.unique()) and set(drawn.tolist()) <= set(negative.tolist())
                check_negatives(best_iou[drawn], wanted, expected["later_calls"])


def check_negatives(iou: Tensor, wanted: int, rule: dict[str, Any]) -> None:
    """Check the IoUs of drawn negatives against the numbers of a case."""
    if "all" in rule:
        assert len(iou) == rule["all"]
        return
    assert len(iou) == wanted and int((iou == 0).sum()) == rule["from_zero"]
    if rule["per_bin"] is None:
        assert int((iou > 0).sum()) == rule["pool_taken"]
        return
    bins = itertools.pairwise(rule["edges"])
    counts = [int(((iou > 0) & (iou >= low) & (iou < high)).sum()) for low, high in bins]
    assert all(found >= least for found, least in zip(counts, rule["per_bin"], strict=True))
    assert int((iou > 0).sum()) == sum(rule["per_bin"]) + rule["filled_from_rest_of_pool"]


def test_positives_come_from_the_objects_that_the_cases_say(shared: Path) -> None:
    for case in cases_of(shared, "instance_balanced_sampling"):
        for given, expected in zip(case["input"], case["expected"], strict=True):
            of_objects = torch.tensor(given["positives_of_object"])
            owner, wanted, first = torch.repeat_interleave(of_objects), given["wanted"], sum(expected["first"])
            drawn = draw_positives(torch.arange(len(owner)), owner, wanted)
            assert len(drawn) == len(drawn.unique()) == min(wanted, len(owner))
            counts = owner[drawn].bincount(minlength=len(of_objects)).tolist()
            pairs = list(zip(counts, expected["first"], strict=True))
            # The first draw is filled up or, where it is more than wanted, dropped from.
            assert all(found >= least for found, least in pairs) or first > wanted
            assert all(found <= most for found, most in pairs) or first < wanted


def positives_by_hand(owner: list[int], wanted: int, rng: np.random.Generator) -> list[int]:
    """Counts by object of one draw, object by object."""
    objects = sorted(set(owner))
    most = round(wanted / len(objects)) + 1
    chosen: list[int] = []
    for each in objects:
        own = rng.permutation([i for i, o in enumerate(owner) if o == each])
        chosen += own[:most].tolist()
    if len(chosen) > wanted:
        chosen = rng.permutation(chosen)[:wanted].tolist()
    others = rng.permutation([i for i in range(len(owner)) if i not in set(chosen)])
    return chosen + others[: wanted - len(chosen)].tolist()


@pytest.mark.parametrize(("of_objects", "wanted"), [([9, 2, 30], 12), ([5] * 9, 10), ([3, 1], 40), ([1] * 20, 6)])
def test_positives_are_drawn_as_by_a_loop_over_objects(of_objects: list[int], wanted: int) -> None:
    torch.manual_seed(0)
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(len(of_objects)) * 3, of_objects)  # numbers with gaps
    positive = torch.arange(len(owner)) + 100
    drawn, by_hand = np.zeros(len(owner)), np.zeros(len(owner))
    draws = 400
    for _ in range(draws):
        found = draw_positives(positive, torch.from_numpy(owner), wanted) - 100
        assert len(found) == len(found.unique()) == min(wanted, len(owner))
        drawn[found] += 1 / draws
        by_hand[positives_by_hand(owner.tolist(), min(wanted, len(owner)), rng)] += 1 / draws
    assert np.abs(drawn - by_hand).max() < 5 * math.sqrt(0.5 / draws)  # five standard errors


@pytest.mark.parametrize(("most_iou", "wanted"), [(1.0, 30), (1.0, 75), (0.5, 9), (1.0, 99)])
def test_each_bin_gives_a_third_and_the_rest_of_the_overlapping_fills_up(most_iou: float, wanted: int) -> None:
    torch.manual_seed(1)
    best_iou = torch.cat([torch.zeros(40), 0.3 * torch.rand(60) + 1e-3, 0.34 + 0.15 * torch.rand(12)])
    negative = torch.arange(len(best_iou))
    best_iou = torch.cat([best_iou, torch.tensor([most_iou])])  # an object itself
    bins = (best_iou[negative] * 3 / most_iou).long()
    often = torch.zeros(len(negative))
    draws = 300
    for _ in range(draws):
        drawn = draw_negatives(negative, best_iou, wanted)
        assert len(drawn) == len(drawn.unique()) == wanted
        often[drawn] += 1 / draws
        pool = best_iou[drawn] > 0
        assert int(pool.sum()) == min(wanted, 72)
        if wanted < 72:
            for i in range(3):
                available = int(((bins == i) & (best_iou[negative] > 0)).sum())
                assert int((bins[drawn[pool]] == i).sum()) >= min(wanted // 3, available)
    alike = [best_iou[negative] == 0, (bins == 0) & (best_iou[negative] > 0)]
    for group in alike:  # within a bin every candidate is as likely
        assert float(often[group].max() - often[group].min()) < 8 * math.sqrt(0.25 / draws)


def test_a_tile_without_objects_gives_background_at_random_and_one_without_candidates_nothing() -> None:
    nothing = torch.zeros(0)
    assert draw_negatives(torch.arange(9), torch.zeros(9), 4).unique().numel() == 4
    assert draw_negatives(nothing.long(), nothing, 4).tolist() == []
    assert draw_positives(nothing.long(), nothing.long(), 4).tolist() == []


def test_the_sample_has_512_proposals_a_quarter_of_them_positive_at_most_and_repeats_with_the_seed() -> None:
    torch.manual_seed(3)
    labels = torch.cat([torch.ones(300, dtype=torch.int64), torch.zeros(900, dtype=torch.int64)])
    best_iou = torch.cat([0.5 + 0.5 * torch.rand(300), 0.5 * torch.rand(900)])
    candidates = Candidates(torch.zeros(1200, 4), labels, best_iou, torch.randint(0, 5, (1200,)))
    detector, draws = libra(), []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append(detector.draw(candidates))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len(draws[0].unique()) == 512 and int(labels[draws[0]].sum()) == 128


@pytest.mark.parametrize(("positives", "expected"), [(0, (0, 5)), (1, (1, 5)), (30, (30, 150)), (60, (60, 196)),
                                                     (400, (128, 128))])  # fmt: skip
def test_at_most_five_background_anchors_are_sampled_for_each_positive(
    positives: int, expected: tuple[int, int]
) -> None:
    labels = torch.cat([torch.ones(positives), torch.zeros(900), torch.full((50,), -1.0)])
    (positive,), (negative,) = AnchorSampler(256, 0.5)([labels])
    assert (int(positive.sum()), int(negative.sum())) == expected
    assert (labels[positive.bool()] == 1).all() and (labels[negative.bool()] == 0).all()
    assert isinstance(libra().rpn.fg_bg_sampler, AnchorSampler)


# -------------------------------------------------------------------------------------------------- the detector


def test_with_weights_of_faster_rcnn_it_starts_as_faster_rcnn_on_the_averaged_pyramid() -> None:
    detector = libra()
    plain = FasterRCNN("mobilenet_v2", 1, channels=8)
    left_out = plain.load_state_dict(
        {k: v for k, v in detector.state_dict().items() if not k.startswith("bfp.")}, strict=True
    )
    assert not left_out.missing_keys
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        levels = plain.eval().pyramid(images)
        found = detector.eval().pyramid(images)
    mean = np.mean([resized(level[0].numpy(), (4, 8), finer=i > 2) for i, level in enumerate(levels.values())], axis=0)
    for i, (name, level) in enumerate(levels.items()):
        wanted = level[0].numpy() + resized(mean, level.shape[2:], finer=i < 2)
        np.testing.assert_allclose(found[name][0].numpy(), wanted, atol=1e-5)


def test_anchors_across_the_border_are_trained_unless_told_otherwise() -> None:
    assert libra().rpn.straddling and not libra(straddling=False).rpn.straddling


def trained() -> LibraRCNN:
    """As after training: attention, objectness and scores differ from place to place."""
    detector = libra((0.5, 0.25, 2.0))  # powers of two fold exactly
    predictor = detector.roi_heads.box_predictor
    for layer, spread in ((detector.bfp.refine.out, 0.5), (detector.bfp.refine.theta, 0.3),
                          (detector.bfp.refine.phi, 0.3), (detector.rpn.head.cls_logits, 0.5),
                          (predictor.cls_score, 0.5)):  # fmt: skip
        nn.init.normal_(layer.weight, std=spread)
    return detector.eval()


def spec_of(tile: int, slots: int = 100) -> Any:
    config = DetectorConfig("mobilenet_v2", channels=8, detector="libra_rcnn")
    return Checkpoint(config, {}, ("person",), (1,), tile=tile).spec(max_batch=2, max_detections=slots)


def test_the_exported_pyramid_gives_torchs_outputs_with_one_attention_and_no_adaptive_pooling() -> None:
    import onnxruntime

    torch.manual_seed(0)
    bfp = BalancedFeaturePyramid(4).eval()
    for parameter in bfp.parameters():
        nn.init.normal_(parameter)
    levels = [torch.randn(2, 4, 16 >> i, 32 >> i) for i in range(5)]
    names = [f"P{i}" for i in range(2, 7)]
    model = trace(Levels(bfp), tuple(levels), names, [f"out_{name}" for name in names])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = bfp([level[:1] for level in levels])  # another batch than was traced
    found = session.run(None, {name: level[:1].numpy() for name, level in zip(names, levels, strict=True)})
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4, rtol=1e-5)
    operators = Counter(node.op_type for node in model.graph.node)
    assert (operators["MaxPool"], operators["Resize"], operators["Conv"]) == (4, 4, 4)
    assert (operators["MatMul"], operators["Softmax"]) == (2, 1)
    makers = {output: node for node in model.graph.node for output in node.output}
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    assert makers[softmax.input[0]].op_type == "MatMul"  # nothing divides or multiplies the logits


class Levels(nn.Module):
    """A pyramid that takes its levels as separate arguments, as `torch.onnx.export` requires."""

    def __init__(self, bfp: BalancedFeaturePyramid) -> None:
        super().__init__()
        self.bfp = bfp

    def forward(self, *levels: Tensor) -> list[Tensor]:
        return self.bfp(levels)


@pytest.mark.slow
def test_the_file_finds_what_torch_finds(tmp_path: Path) -> None:
    report = write_onnx(trained(), spec_of(64), tmp_path / "model.onnx")
    assert report.parity.detections > 50 and report.parity.unmatched == 0 and report.operators_added == 0


@pytest.mark.parametrize("tile", [96, 672])
def test_a_tile_that_is_no_multiple_of_64_is_refused_with_those_that_are(tile: int) -> None:
    near = f"got {tile}; the nearest are {tile - 32} and {tile + 32}"
    rule = "must be a multiple of 64 for Libra R-CNN and at least 64"
    with pytest.raises(ValueError, match=f"the tile {rule}, {near}"):
        InferenceGraph(libra(), spec_of(tile))


def test_batches_are_padded_to_multiples_of_64() -> None:
    detector = libra()
    assert detector.tile_multiple == 64
    nothing = np.zeros((0, 4), np.float32)
    sample = Sample(np.zeros((96, 130, 3), np.uint8), nothing, np.zeros(0, np.int64), nothing)
    batch = collate([sample], CPU, PixelNorm(), multiple=detector.tile_multiple)
    assert batch.size == (128, 192) and batch.sizes == ((96, 130),)


def test_commands_refuse_other_tiles_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tinydet.__main__ import main

    config = DetectorConfig("mobilenet_v2", channels=8, detector="libra_rcnn")
    save_checkpoint(Checkpoint(config, libra().state_dict(), ("person",), (1,), tile=128), tmp_path / "model.pth")
    rule = "--tile must be a multiple of 64 for Libra R-CNN and at least 64, got 672; the nearest are 640 and 704"
    for words in (["train", "--detector", "libra_rcnn"], ["export", "onnx", str(tmp_path / "model.pth")]):
        assert main([*words, "--tile", "672"]) == 2
        assert capsys.readouterr().err.strip().endswith(f"error: {rule}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth"]


@pytest.mark.parametrize(("multiple", "side", "tile"), [(32, 1, 64), (32, 600, 608), (64, 608, 640), (96, 1, 96),
                                                        (96, 640, 672)])  # fmt: skip
def test_default_tiles_are_rounded_up_to_those_of_the_detector(multiple: int, side: int, tile: int) -> None:
    info = replace(DETECTORS["retinanet"], tile_multiple=multiple)
    assert info.fit_tile(side) == tile
    info.check_tile(tile)
    with pytest.raises(ValueError, match="tile must be a multiple"):
        info.check_tile(tile + 16)


def test_a_plugin_whose_tiles_are_no_multiple_of_the_stride_of_c5_is_refused() -> None:
    info = replace(DETECTORS["retinanet"], tile_multiple=48)
    with pytest.raises(ValueError, match="detector 'my': tile_multiple must be a multiple of 32, got 48"):
        register_detector("my", info)
