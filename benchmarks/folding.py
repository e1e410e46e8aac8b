"""Numerical error of folding alpha into the convolutions, in FP32, FP16 and INT8.

    python benchmarks/folding.py

An FPN for a ResNet-50 with random weights is run in three forms: as trained (alpha multiplies), folded by `fold_alpha`
(scaled by a power of two that is chosen for FP16), and folded as in the paper (the finest level is not scaled). The
error is the relative L2 distance from the outputs in float64, on the worst of P2 to P6, over --rounds draws of weights
and features.

Number formats are simulated on the CPU. FP16 rounds weights and the result of every operation, and accumulates in
float32; "flushed" also replaces subnormal numbers by 0, as some hardware does. INT8 rounds weights symmetrically per
output channel and activations per tensor, scaled to their largest value on the same features.

Takes less than a minute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import ROOT, environment
from torch import Tensor, nn

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.models.folding import FoldedFPN, fold_alpha
from tinydet.models.fpn import FPN, PlainFPN

CHANNELS, WIDTH = (256, 512, 1024, 2048), 256
CASES: dict[
    str, tuple[tuple[float, float, float], float | None]
] = {  # alpha, and the standard deviation of small lateral weights
    **{f"{a}": ((a, a, a), None) for a in (0.1, 0.3, 0.5, 0.9, 1.1)},
    "S-alpha of the paper, RetinaNet": ((0.368, 0.387, 0.367), None),
    "S-alpha of the paper, Faster R-CNN": ((0.48, 0.66, 1.06), None),
    "0.1, lateral weights of 0.002": ((0.1, 0.1, 0.1), 0.002),
}
FORMS = ("alpha multiplies", "folded", "folded as in the paper")
Rounding = Callable[[Tensor], Tensor]


@command("benchmarks/folding.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"command": "python benchmarks/folding.py", **environment(), "rounds": args.rounds}
    result |= {"channels": CHANNELS, "width": WIDTH, "side_of_C2": args.side, "error": "relative L2, worst level"}
    result["cases"] = {}
    for name, (alpha, spread) in CASES.items():
        rounds = [measure(alpha, spread, seed, args.side) for seed in range(args.rounds)]
        result["cases"][name] = {
            "alpha": alpha,
            "edges_that_keep_a_factor": rounds[0]["kept"],
            "error": {
                number: {form: summary([r["error"][number][form] for r in rounds]) for form in FORMS}
                for number in rounds[0]["error"]
            },
        }
        print(f"{name}: done", flush=True)
    write_json(args.output, result)
    print(table(result))
    print(f"wrote {args.output}")
    return 0


@torch.no_grad()
def measure(alpha: tuple[float, float, float], spread: float | None, seed: int, side: int) -> dict[str, Any]:
    """Return the errors of one draw, by number format and form of the pyramid."""
    torch.manual_seed(seed)
    trained = FPN(CHANNELS, WIDTH, alpha)
    if spread is not None:
        for conv in trained.inner:
            nn.init.normal_(conv.weight, std=spread)
    features = [torch.randn(1, c, side >> i, side >> i) for i, c in enumerate(CHANNELS)]
    exact = forward(trained.double(), [f.double() for f in features], same, same)
    trained.float()
    folded = fold_alpha(trained)
    pyramids = dict(zip(FORMS, (trained, folded, fold_as_in_the_paper(trained)), strict=True))
    formats = {
        "FP32": (same, same),
        "FP16": (half, half),
        "FP16, flushed": (flushed, flushed),
        "INT8": (int8_rows, int8),
    }
    errors = {
        number: {form: error(forward(p, features, *rounding), exact) for form, p in pyramids.items()}
        for number, rounding in formats.items()
    }
    return {"error": errors, "kept": list(folded.kept)}


def forward(fpn: PlainFPN, features: Sequence[Tensor], weights: Rounding, values: Rounding) -> list[Tensor]:
    """Run a pyramid with every weight and every result rounded; `same` rounds nothing."""

    def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return values(F.conv2d(x, weights(conv.weight), conv.bias, padding=conv.padding))

    features = [values(f) for f in features]
    merged = convolve(fpn.inner[-1], features[-1])
    outputs = [convolve(fpn.layer[-1], merged)]
    for i in reversed(range(len(features) - 1)):
        lateral = convolve(fpn.inner[i], features[i])
        if fpn.edges[i]:
            deeper = F.interpolate(merged, scale_factor=2.0, mode="nearest")
            factor = factor_of(fpn, i)
            merged = values(lateral + (deeper if factor is None else values(values(factor) * deeper)))
        else:
            merged = lateral
        outputs.insert(0, convolve(fpn.layer[i], merged))
    return [*outputs, outputs[-1][:, :, ::2, ::2]]


def factor_of(fpn: PlainFPN, i: int) -> Tensor | None:
    """Return the factor of edge `i`; None if it has none."""
    if isinstance(fpn, FPN):
        return fpn.alpha[i]
    return getattr(fpn, f"factor{i}") if isinstance(fpn, FoldedFPN) and i in fpn.kept else None


def fold_as_in_the_paper(fpn: FPN) -> PlainFPN:
    """Fold with g = 1: P2 is not scaled, and the scale of P_i is the product of the factors below it."""
    plain = PlainFPN(CHANNELS, WIDTH)
    plain.load_state_dict({k: v for k, v in fpn.state_dict().items() if k != "alpha"})
    scale = 1.0
    for level, (inner, layer) in enumerate(zip(plain.inner, plain.layer, strict=True)):
        scale *= float(fpn.alpha[level - 1]) if level else 1.0
        inner.weight.mul_(scale)
        inner.bias.mul_(scale)
        layer.weight.div_(scale)
    return plain


def same(x: Tensor) -> Tensor:
    return x


def half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def flushed(x: Tensor) -> Tensor:
    rounded = half(x)
    return torch.where(rounded.abs() < torch.finfo(torch.float16).tiny, 0.0, rounded)


def int8(x: Tensor) -> Tensor:
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


def int8_rows(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    return (x / scale).round() * scale


def error(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    return max(float((o.double() - e).norm() / e.norm()) for o, e in zip(outputs, exact, strict=True))


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


def table(result: dict[str, Any]) -> str:
    """Format the mean errors as Markdown."""
    lines = [f"| α | number format | {' | '.join(FORMS)} |", "| --- | --- |" + " --- |" * len(FORMS)]
    for name, case in result["cases"].items():
        for number, forms in case["error"].items():
            cells = [f"{forms[form]['mean']:.1e}" for form in FORMS]
            lines.append(f"| {name} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=3, help="draws of weights and features (default: 3)")
    parser.add_argument(
        "--side", type=positive_int, default=32, help="side of C2 in cells, a multiple of 8 (default: 32)"
    )
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one round with a side of 16")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "folding.json",
                        help="result file (default: benchmarks/results/folding.json)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.side = 1, 16
    if args.side % 8:
        parser.error(f"argument --side: expected a multiple of 8, got {args.side}")
    return args


if __name__ == "__main__":
    sys.exit(main())
