"""`tinydet gradients`: measure how alpha changes the gradients of each level's loss (Eq. 3, section 3.4 of the paper).

The loss of each pyramid level sends a gradient into C3, C4 and C5. The gradient of finer levels passes the fused edges
and is weighted by alpha; that of the same level, and of deeper levels through the backbone, is not. Both are measured
for a range of alpha, on a trained model and real images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import grid, overlap, positive_int
from tinydet._internal.atomic import atomic_path, claim, write_json
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.parser import Parser
from tinydet._internal.plugins import add_plugin_option
from tinydet._internal.progress import track
from tinydet.data.dataset_arguments import add_split
from tinydet.data.samples import TrainingTiles
from tinydet.data.source import DataSource, announce, builtin_source, find_source

if TYPE_CHECKING:
    from tinydet.models.checkpoint import Checkpoint
    from tinydet.models.detector import Detector

FEATURES = ("C3", "C4", "C5")


@command("gradients", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    source = builtin_source("val")
    if args.data is not None:
        source = find_source(args.data, split=args.split, prefer=("val", "test"), needs_images=True)
    with needs_extra("train"):
        from tinydet.models.checkpoint import load_checkpoint
        from tinydet.study.gradient_norms import can_measure

    check_file(args.model)
    checkpoint = load_checkpoint(args.model)
    detector = checkpoint.build()
    if not can_measure(detector):
        raise ValueError(
            f"{args.model}: gradients need a detector on P2-P6 whose losses are split by level, such as retinanet; "
            f"this is {checkpoint.detector.detector}"
        )
    if "alpha" not in detector.fpn.state_dict() or len(checkpoint.alpha) != 3:
        raise ValueError(
            f"{args.model}: {checkpoint.detector.fusion} has no alpha to vary; choose a model with fixed factors"
        )
    output = args.json or args.model.with_suffix(".gradients.json")
    image = args.plot or args.model.with_suffix(".gradients.png")
    with needs_extra("plots"):
        import matplotlib  # noqa: F401 - fail now rather than after the work
    with claim(output, image, inputs=[args.model]):
        return _measure(args, source, checkpoint, detector, output, image)


def _measure(
    args: argparse.Namespace, source: DataSource, checkpoint: Checkpoint, detector: Detector, output: Path, image: Path
) -> int:
    import torch

    from tinydet.models.batch import collate
    from tinydet.study.gradient_norms import measure

    dataset = announce(source).load(categories=checkpoint.classes, allow_absent=True)
    overlap = min(args.overlap, checkpoint.tile // 2)
    tiles = TrainingTiles(dataset, checkpoint.tile, overlap, flip=False)
    chosen = np.linspace(0, len(tiles) - 1, min(args.tiles, len(tiles))).round().astype(int).tolist()
    cpu = torch.device("cpu")
    samples = [tiles.sample(i, seed=0, epoch=0) for i in chosen]
    batches = [collate([each], cpu, detector.backbone.pixels, multiple=detector.tile_multiple) for each in samples]
    strengths = np.stack([measure(detector, (a, a, a), batches) for a in track(args.alpha, "alpha")])
    own = measure(detector, None, batches)
    result = _result(args.alpha, strengths, checkpoint.alpha, own, detector.design.levels, len(batches))
    print(_table(result))
    write_json(output, result)
    plot(result, image)
    print(f"wrote {output}\n      {image}")
    return 0


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot the gradients into C3, C4 and C5 against alpha, with a curve for each level's loss. Zeros are left out."""
    with needs_extra("plots"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, len(FEATURES))
    for axis, (feature, levels) in zip(axes, result["gradient"].items(), strict=True):
        for level, values in levels.items():
            shown = [value if value > 0 else np.nan for value in values]
            axis.plot(result["alpha"], shown, marker="o", markersize=3, label=f"loss of {level}")
        if any(value > 0 for values in levels.values() for value in values):
            axis.set_yscale("log")
        axis.set_title(f"gradient into {feature}")
        axis.set_xlabel("fusion factor α of all edges")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean L2 norm over tiles")
    axes[-1].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _result(
    alphas: Sequence[float],
    strengths: NDArray[np.float64],
    alpha: Sequence[float],
    own: NDArray[np.float64],
    levels: Sequence[str],
    tiles: int,
) -> dict[str, Any]:
    def by_feature(values: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
        return {
            feature: {level: values[..., i, column].tolist() for i, level in enumerate(levels)}
            for column, feature in enumerate(FEATURES)
        }

    return {
        "alpha": list(alphas),
        "gradient": by_feature(strengths),
        "model": {"alpha": list(alpha), "gradient": by_feature(own)},
        "tiles": tiles,
        "unit": "L2 norm of the gradient over all channels and positions, mean over tiles",
    }


def _table(result: dict[str, Any]) -> str:
    lines = []
    for feature, by_level in result["gradient"].items():
        lines.append(f"gradient into {feature} of the loss of each level")
        lines.append("alpha   " + "".join(f"{level:>11}" for level in by_level))
        for i, a in enumerate(result["alpha"]):
            lines.append(f"{a:<8.3g}" + "".join(f"{values[i]:11.3e}" for values in by_level.values()))
        lines.append("")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "gradients",
        positional="--model",
        examples=("model.pth --data my/val --alpha 0:1.2:0.2",),
        description="Measure the gradient that the loss of each pyramid level sends into C3, C4 and C5, for a range of "
        "alpha (Eq. 3 of the paper).",
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", default=Path("model.pth"), help="trained checkpoint (default: model.pth)")
    add("--data", type=Path, metavar="PATH", help="dataset, in any known layout (default: built-in validation set)")
    add_split(parser, "val")
    add(
        "--alpha",
        type=grid,
        default=grid("0:1.2:0.2"),
        metavar="A:B:STEP",
        help="grid LOW:HIGH:STEP, or values (default: 0:1.2:0.2)",
    )
    add("--tiles", type=positive_int, default=16, metavar="N", help="number of tiles to average over (default: 16)")
    add(
        "--overlap",
        type=overlap,
        default=128,
        metavar="PX",
        help="overlap of tiles in pixels, at most half a tile (default: 128)",
    )
    add("--json", type=Path, metavar="FILE", help="results (default: MODEL.gradients.json)")
    add("--plot", type=Path, metavar="FILE", help="plot (default: MODEL.gradients.png)")
    add_plugin_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
