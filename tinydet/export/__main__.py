"""The commands `tinydet export onnx`, `tinydet export engine` and `tinydet export freeze`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from tinydet._command import command
from tinydet._extras import needs_extra
from tinydet.export.engine import build_engine, parse_only, read_onnx
from tinydet.runtime.backends import MODEL_FILES
from tinydet.runtime.backends.tensorrt import PRODUCTS
from tinydet.spec import ModelSpec

MEBIBYTE = 1 << 20


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def run_onnx(arguments: argparse.Namespace) -> int:
    output = arguments.output or arguments.model.with_suffix(".onnx")
    spec = _write_onnx(arguments.model, output, arguments.tile, arguments.batch, arguments.max_detections)
    print(f"run it        {_how_to_run(output, spec)}")
    print(f"build for GPU python export/to_trt.py {output}")
    return 0


def run_engine(arguments: argparse.Namespace) -> int:
    model: Path = arguments.model
    onnx_path = model
    if model.suffix != ".onnx":
        onnx_path = (arguments.output or model).with_suffix(".onnx")
        largest = arguments.batch[2] if arguments.batch else 16
        _write_onnx(model, onnx_path, arguments.tile, largest, arguments.max_detections)
    elif arguments.tile or arguments.max_detections:
        raise ValueError(
            f"{model}: tile and slots are fixed in an ONNX file; export the checkpoint with the ones you want"
        )
    spec = read_onnx(onnx_path).spec
    try:
        if arguments.dry_run:
            return _parse(onnx_path, arguments)
        return _write_engine(onnx_path, arguments)
    except (ValueError, OSError, ModuleNotFoundError):
        print(f"{onnx_path} is whole and runs with ONNX Runtime: {_how_to_run(onnx_path, spec)}", file=sys.stderr)
        raise


def run_freeze(arguments: argparse.Namespace) -> int:
    with needs_extra("train"):
        from tinydet.checkpoint import load_checkpoint, save_checkpoint
    from tinydet.data.coco import find_dataset, load_dataset
    from tinydet.data.synthetic import embedded_dataset
    from tinydet.export.freeze import freeze_checkpoint

    output = arguments.output or arguments.model.with_suffix(".frozen.pth")
    checkpoint = load_checkpoint(arguments.model)
    data, val = (
        load_dataset(*find_dataset(folder or embedded_dataset(split)), categories=checkpoint.classes)
        for folder, split in ((arguments.data, "train"), (arguments.val, "val"))
    )
    frozen = freeze_checkpoint(checkpoint, data, val)
    save_checkpoint(frozen.checkpoint, output)
    factors = ", ".join(f"{a:.3f} ± {d:.3f}" for a, d in zip(frozen.alpha, frozen.deviation, strict=True))
    print(f"alpha         {factors} on {frozen.tiles} tiles (P3->P2, P4->P3, P5->P4)")
    for name, before in frozen.before.items():
        after = frozen.after[name]
        print(f"{name:<13} {100 * before:.2f} with attention, {100 * after:.2f} frozen: {100 * (after - before):+.2f}")
    print(f"wrote         {output}")
    print(f"next          tinydet export onnx {output}")
    return 0


def _write_onnx(model: Path, output: Path, tile: int | None, batch: int, slots: int | None) -> ModelSpec:
    """Export a checkpoint and tell what came of it."""
    with needs_extra("train"):
        from tinydet.checkpoint import load_checkpoint
        from tinydet.retinanet import RetinaNet, RetinaNetP3P7
    from tinydet.export.onnx_file import export_onnx

    checkpoint = load_checkpoint(model)
    detector = checkpoint.build()
    if not isinstance(detector, RetinaNet) or isinstance(detector, RetinaNetP3P7):
        raise ValueError(f"{model}: a {checkpoint.detector.detector} cannot be exported yet; tinydet evaluate runs it")
    spec = checkpoint.spec(tile=tile, max_batch=batch, max_detections=slots or 1000)
    with _progress("exporting") as progress:
        report = export_onnx(detector, spec, output, progress=progress)
    spec, parity = report.spec, report.parity
    size = f"{report.bytes / 1e6:.1f} MB, {spec.precision}, {report.nodes} nodes"
    print(f"wrote         {output}  {size}, {report.seconds:.0f} s")
    print(f"              {output.with_suffix('.json')}")
    print(f"input         uint8 (N, {spec.tile}, {spec.tile}, 3), N up to {spec.max_batch}")
    print(f"output        up to {spec.max_detections} boxes a tile, of: {', '.join(spec.classes)}")
    alpha = ", ".join(f"{a:.3g}" for a in spec.alpha) or "from the features (attention)"
    print(f"alpha         {alpha}; operators added by it: {report.operators_added}")
    if not spec.alpha:
        print(f"              to be rid of them: tinydet export freeze {model}")
    for edge in report.deleted_edges:
        print(f"              the edge {edge} has alpha 0 and is not in the graph")
    if spec.alpha:
        for edge in report.kept_edges:
            print(f"              the edge {edge} keeps its factor: folded, it would leave the range of FP16")
    if parity.detections:
        print(
            f"ONNX = torch  {parity.detections} detections on {parity.tiles} tiles, {parity.unmatched} unmatched; "
            f"largest difference: score {parity.score_difference:.1e}, box {parity.box_difference:.1e} px"
        )
    else:
        print(f"ONNX = torch  nothing to compare: {parity.tiles} tiles gave no box over score {spec.score_floor}")
    return spec


def _parse(onnx_path: Path, arguments: argparse.Namespace) -> int:
    parsed = parse_only(onnx_path, target=arguments.target, log=_print_log if arguments.verbose else None)
    product = f"{PRODUCTS[parsed.flavour]} {parsed.version}"
    print(f"{onnx_path}: the parser of {product} takes it, {parsed.layers} layers; nothing was built")
    return 0


def _write_engine(onnx_path: Path, arguments: argparse.Namespace) -> int:
    output = arguments.output or onnx_path.with_suffix(".engine")
    with _progress("building (TensorRT may take minutes)") as progress:
        spec = build_engine(
            onnx_path,
            output,
            target=arguments.target,
            batch=arguments.batch,
            workspace=arguments.workspace and arguments.workspace * MEBIBYTE,
            version_compatible=arguments.version_compatible,
            hardware_compatible=arguments.hardware_compatible,
            compute_capabilities=arguments.compute_capability,
            timing_cache=arguments.timing_cache,
            progress=progress,
            log=_print_log if arguments.verbose else None,
        )
    built = spec.engine
    print(f"wrote         {output}  {built['bytes'] / 1e6:.1f} MB, {spec.precision}, {built['seconds']:.1f} s")
    print(f"              {output.with_suffix('.json')}")
    print(
        f"built by      {PRODUCTS[built['flavour']]} {built['version']} for {built['gpu'] or 'the GPU of this machine'}"
    )
    print(f"batch         {', '.join(map(str, built['batch']))} (smallest, usual, largest)")
    print(f"run it        {_how_to_run(output, spec)}")
    return 0


def _how_to_run(model: Path, spec: ModelSpec) -> str:
    found = str(model) in MODEL_FILES  # in the current folder, under the names that are looked for
    return f"python deploy/infer.py {'' if found else f'--model {model} '}--image scene.jpg --tile {spec.tile}"


def _print_log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is going on."""
    with tqdm(bar_format="{desc}", disable=None, leave=False, file=sys.stderr) as line:
        line.set_description_str(title)
        yield lambda phase: line.set_description_str(f"{title}: {phase}")


def _batch_sizes(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise argparse.ArgumentTypeError(f"expected three rising numbers such as 1,8,16, got {text!r}")
    return sizes[0], sizes[1], sizes[2]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet export", description="Turn a trained checkpoint into files that run without torch."
    )
    commands = parser.add_subparsers(required=True, metavar="onnx | engine | freeze")
    onnx = commands.add_parser(
        "onnx",
        help="model.pth -> model.onnx, compared with torch",
        description="Write model.onnx and model.json: alpha folded away, boxes decoded, compared with torch.",
        epilog="example: tinydet export onnx model.pth --tile 640",
    )
    onnx.set_defaults(run=run_onnx)
    onnx.add_argument("model", type=Path, metavar="model.pth", help="a checkpoint of tinydet.train")
    onnx.add_argument("--output", type=Path, metavar="FILE", help="the ONNX file (default: beside the checkpoint)")
    onnx.add_argument("--batch", type=_positive, default=16, metavar="N", help="largest batch of tiles (default: 16)")
    _add_shape(onnx)

    engine = commands.add_parser(
        "engine",
        help="model.pth or model.onnx -> model.engine, for TensorRT or TensorRT-RTX",
        description="Build model.engine and describe it in model.json. Needs no torch when given an ONNX file.",
        epilog="example: tinydet export engine model.onnx --target rtx --batch 1,8,16",
    )
    engine.set_defaults(run=run_engine)
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
        type=_positive,
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
        "--dry-run", action="store_true", help="only ask the parser whether it takes the graph (default: build)"
    )
    engine.add_argument("--verbose", action="store_true", help="print all that TensorRT says (default: errors)")
    _add_shape(engine)

    freeze = commands.add_parser(
        "freeze",
        help="model.pth with attention -> model.frozen.pth, whose constant factors fold",
        description="Fix the factors of atten-alpha at their mean on a data set, and say what that costs in AP.",
        epilog="example: tinydet export freeze model.pth --data my/train --val my/val",
    )
    _add_freeze(freeze)
    return parser


def _add_freeze(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_freeze)
    parser.add_argument("model", type=Path, metavar="model.pth", help="a checkpoint trained with --alpha attention")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="COCO folder to take the mean on (default: the embedded data)"
    )
    parser.add_argument(
        "--val", type=Path, metavar="DIR", help="COCO folder to measure AP on, before and after (default: embedded)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the new checkpoint (default: MODEL.frozen.pth)")


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile",
        type=_positive,
        metavar="PIXELS",
        help="side of the square input, a multiple of 32 (default: as trained)",
    )
    parser.add_argument(
        "--max-detections", type=_positive, metavar="K", help="boxes a tile can give, up to 3840 (default: 1000)"
    )


if __name__ == "__main__":
    sys.exit(main())
