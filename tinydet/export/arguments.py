"""The flags of `tinydet export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydet._internal.arguments import positive_int
from tinydet.export.precision import METHODS
from tinydet.export.verify import MAX_DROP
from tinydet.runtime.backends import BACKENDS
from tinydet.spec import NMS_ROUNDS, PRECISIONS


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet export", description="Turn a trained checkpoint into files that run without torch."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="onnx | engine | verify | freeze")
    onnx = commands.add_parser(
        "onnx",
        help="model.pth -> model.onnx, compared with torch",
        description="Write model.onnx and model.json: alpha folded away, boxes decoded, compared with torch. Every "
        "detector becomes one graph without plugins; Faster R-CNN with its proposals and RoIAlign inside.",
        epilog="example: tinydet export onnx model.pth --tile 640",
    )
    onnx.add_argument(
        "model",
        type=Path,
        metavar="model.pth|model.onnx",
        help="a checkpoint of tinydet.train, or its FP32 ONNX file to convert",
    )
    onnx.add_argument("--output", type=Path, metavar="FILE", help="the ONNX file (default: beside the checkpoint)")
    onnx.add_argument(
        "--batch", type=positive_int, default=16, metavar="N", help="largest batch of tiles (default: 16)"
    )
    _add_shape(onnx)
    _add_precision(onnx, "fp32", "fp32; others lie beside it as model.fp16.onnx")
    add_gate(onnx)

    engine = commands.add_parser(
        "engine",
        help="model.pth or model.onnx -> model.engine, for TensorRT or TensorRT-RTX",
        description="Build model.engine and describe it in model.json. Needs no torch when given an ONNX file.",
        epilog="example: tinydet export engine model.onnx --target rtx --batch 1,8,16",
    )
    engine.add_argument(
        "model",
        type=Path,
        metavar="model.pth|model.onnx",
        help="a checkpoint (its ONNX is written first), or an ONNX file of tinydet",
    )
    engine.add_argument("--output", type=Path, metavar="FILE", help="the engine (default: beside the model)")
    engine.add_argument(
        "--target",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto: TensorRT where it finds a GPU, else TensorRT-RTX, which builds without one (default: auto)",
    )
    engine.add_argument(
        "--batch",
        type=_batch_sizes,
        metavar="A,B,C",
        help="smallest, usual and largest batch (default: 1,8 and the ONNX file's largest, 16)",
    )
    engine.add_argument(
        "--workspace",
        type=positive_int,
        metavar="MIB",
        help="GPU memory for layers while they run (default: as much as there is)",
    )
    engine.add_argument(
        "--version-compatible",
        action="store_true",
        help="TensorRT: also for newer versions, slower (default: this version)",
    )
    engine.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="TensorRT: for all GPUs from Ampere on, slower (default: this GPU)",
    )
    engine.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="TensorRT-RTX: for these GPUs, such as 7.5 (default: Ampere and newer)",
    )
    engine.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="TensorRT: read and extend it, makes the next build faster (default: none)",
    )
    engine.add_argument(
        "--dry-run",
        action="store_true",
        help="only ask the parser whether it takes the ONNX file as it is; a checkpoint is exported first "
        "(default: build)",
    )
    engine.add_argument("--verbose", action="store_true", help="print all that TensorRT says (default: errors)")
    _add_shape(engine)
    _add_precision(engine, None, "fp16, or the ONNX file's own where it is not fp32")
    add_gate(engine)

    check = commands.add_parser(
        "verify",
        help="compare a model with the one that it was made from",
        description="The gate that every export passes: detections as sets on real, empty and crowded tiles in batches "
        "of 1, 3 and the largest, and AP by size. Exit code 1 where it fails. Needs no torch unless the "
        "reference is a checkpoint.",
        epilog="example: tinydet export verify model.engine --reference model.onnx --data beach-val",
    )
    check.add_argument("model", type=Path, metavar="model.onnx|model.engine", help="the model to verify")
    check.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="checkpoint or ONNX file that it was made from (default: of the same name, beside it)",
    )
    check.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the model (default: auto)")
    add_gate(check)

    freeze = commands.add_parser(
        "freeze",
        help="model.pth with attention -> model.frozen.pth, whose constant factors fold",
        description="Fix the factors of atten-alpha at their mean on a data set, and say what that costs in AP.",
        epilog="example: tinydet export freeze model.pth --data my/train --val my/val",
    )
    freeze.add_argument("model", type=Path, metavar="model.pth", help="a checkpoint trained with --alpha attention")
    freeze.add_argument(
        "--data", type=Path, metavar="DIR", help="COCO folder to take the mean on (default: the embedded data)"
    )
    freeze.add_argument(
        "--val", type=Path, metavar="DIR", help="COCO folder to measure AP on, before and after (default: embedded)"
    )
    freeze.add_argument("--output", type=Path, metavar="FILE", help="the new checkpoint (default: MODEL.frozen.pth)")
    return parser


def _add_precision(parser: argparse.ArgumentParser, default: str | None, said: str) -> None:
    group = parser.add_argument_group("precision, which is in the graph")
    group.add_argument(
        "--precision", choices=PRECISIONS, default=default, help=f"of the convolutions (default: {said})"
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="int8: pictures that ranges are taken from (default: those that the model is verified on)",
    )
    group.add_argument(
        "--calibration-method",
        choices=tuple(METHODS),
        default="max",
        help="int8: how; entropy and percentile cut the strongest answers off (default: max)",
    )


def add_gate(parser: argparse.ArgumentParser) -> None:
    """What every verification of a model takes."""
    gate = parser.add_argument_group("what the model is verified on")
    gate.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a COCO folder (default: the checkpoint's validation set, else the embedded data)",
    )
    gate.add_argument("--images", type=Path, nargs="+", metavar="FILE", help="instead: pictures, without AP")
    gate.add_argument(
        "--limit", type=positive_int, default=50, metavar="N", help="AP on the first N images (default: 50)"
    )
    gate.add_argument(
        "--max-drop",
        type=_fraction,
        default=MAX_DROP,
        metavar="F",
        help=f"allowed drop of AP-tiny, as a fraction (default: {MAX_DROP})",
    )


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile",
        type=positive_int,
        metavar="PIXELS",
        help="side of the square input, a multiple of 32 (default: as trained)",
    )
    parser.add_argument(
        "--max-detections",
        type=positive_int,
        metavar="K",
        help="boxes a tile can give, up to 3840, and of Faster R-CNN its proposals times classes (default: 1000)",
    )
    parser.add_argument(
        "--nms-rounds",
        type=positive_int,
        metavar="N",
        help="Faster R-CNN: rounds of suppression among its proposals; the comparison fails where they are too few "
        f"(default: {NMS_ROUNDS})",
    )


def _batch_sizes(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise argparse.ArgumentTypeError(f"expected three rising numbers such as 1,8,16, got {text!r}")
    return sizes[0], sizes[1], sizes[2]


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction such as 0.005, got {text!r}")
    return value
