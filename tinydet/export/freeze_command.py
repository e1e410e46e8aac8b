"""`tinydet export freeze`: replace attention by constant factors, which can be folded."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydet._internal.atomic import claim
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.shell import tinydet_command
from tinydet.data.source import announce, builtin_source, find_source, validation_of
from tinydet.models.registry import detector_info

EXAMPLES = ("model.pth --data my/train --val my/val",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replace the attention of a checkpoint by its mean factors on a dataset, and report what that costs in AP. "
        "Constant factors can be folded into the convolutions."
    )
    parser.add_argument("model", type=Path, metavar="model.pth", help="a checkpoint trained with --alpha attention")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="dataset to average over (default: the built-in training set)"
    )
    parser.add_argument(
        "--val",
        type=Path,
        metavar="PATH",
        help="dataset to measure AP on, before and after (default: the split val of --data, else the built-in set)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="checkpoint to write (default: MODEL.frozen.pth)")


def run(args: argparse.Namespace) -> int:
    train = builtin_source("train")
    scored = builtin_source("val")
    if args.data is not None:
        train = find_source(args.data, prefer=("train",), needs_images=True)
        scored = validation_of(train) or scored
    if args.val is not None:
        scored = find_source(args.val, prefer=("val", "test"), needs_images=True)
    with needs_extra("train"):
        from tinydet.models.checkpoint import load_checkpoint, save_checkpoint
    from tinydet.export.freeze import freeze_checkpoint, require_attention

    check_file(args.model)
    output = args.output or args.model.with_suffix(".frozen.pth")
    checkpoint = load_checkpoint(args.model)
    require_attention(checkpoint)
    data = announce(train).load(categories=checkpoint.classes, allow_absent=True)
    val = announce(scored).load(categories=checkpoint.classes, allow_absent=True)
    with claim(output, inputs=[args.model]):
        frozen = freeze_checkpoint(checkpoint, data, val)
        save_checkpoint(frozen.checkpoint, output)
    edges = ", ".join(detector_info(checkpoint.detector.detector).pyramid.edges)
    factors = ", ".join(f"{a:.3f} ± {d:.3f}" for a, d in zip(frozen.alpha, frozen.deviation, strict=True))
    print(f"alpha         {factors} on {plural(frozen.tiles, 'tile')} ({edges})")
    for name, before in frozen.before.items():
        after = frozen.after[name]
        print(f"{name:<13} {100 * before:.2f} with attention, {100 * after:.2f} frozen: {100 * (after - before):+.2f}")
    print(f"wrote         {output}")
    print(f"next          {tinydet_command('export', 'onnx', output)}")
    return 0
