"""`tinydet export engine`: build a TensorRT or TensorRT-RTX engine from a checkpoint or an ONNX file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import batch_size, quoted, whole
from tinydet._internal.input_files import check_file
from tinydet._internal.shell import tinydet_command
from tinydet.export.console import infer_command
from tinydet.export.engine import parse_only, write_engine
from tinydet.export.onnx_command import (
    Report,
    choose_data,
    convert_precision,
    export_checkpoint,
    export_tile_filter,
    is_tile_filter,
    refuse_ir,
    refuse_shape_options,
)
from tinydet.export.onnx_model import read_onnx
from tinydet.export.options import add_precision_options, add_shape_options, add_verification_options
from tinydet.export.steps import show_steps
from tinydet.export.verification_images import VerificationImages, find_data, own_data_of_report
from tinydet.export.verify import REFERENCE_BACKEND, Verification, report_paths, summarize, verify, write_report
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.contract import spec_for_tile
from tinydet.runtime.backends.tensorrt import PRODUCTS, open_engine
from tinydet.runtime.bundled import model_path
from tinydet.spec import ModelSpec

MEBIBYTE = 1 << 20

EXAMPLES = ("model.onnx --target rtx --batch 1,8,16", "model.onnx --tile 640,1024")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build model.engine and its description model.json. A checkpoint is exported to ONNX first; an ONNX file needs "
        "no torch. The engine is verified if it can run on this machine."
    )
    parser.add_argument(
        "model", type=Path, metavar="model.pth|model.onnx", help="a checkpoint, or an ONNX file that tinydet exported"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="engine to write (default: next to the model)")
    parser.add_argument(
        "--target",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto uses TensorRT if it finds a GPU, else TensorRT-RTX, which builds without one (default: auto)",
    )
    parser.add_argument(
        "--batch",
        type=_batch_sizes,
        metavar="A,B,C",
        help="smallest, typical and largest batch (default: 1, 8 and the largest of the ONNX file, 16)",
    )
    parser.add_argument(
        "--workspace",
        type=whole(1, 10_000_000),
        metavar="MIB",
        help="limit of the GPU memory for intermediate results of layers, in MiB (default: no limit)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="TensorRT: build an engine that newer versions run too, slower (default: this version only)",
    )
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="TensorRT: build an engine for all GPUs from Ampere on, slower (default: this GPU only)",
    )
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="TensorRT-RTX: build for these GPUs, such as 7.5, or current: that of this machine (default: Ampere and "
        "newer)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="TensorRT: read and update this file, which makes the next build faster (default: none)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only check that the parser accepts the ONNX file; a checkpoint is exported first (default: build)",
    )
    parser.add_argument("--verbose", action="store_true", help="print the whole log of TensorRT (default: errors only)")
    add_shape_options(parser, several_tiles=True)
    add_precision_options(parser, None, "fp16, or the precision of the ONNX file if that is not fp32")
    add_verification_options(parser)


def run(args: argparse.Namespace) -> int:
    output, _, spec, _ = export(args, print)
    if not args.dry_run:
        print(f"run it        {infer_command(output, spec)}")
    return 0


def export(args: argparse.Namespace, report: Report) -> tuple[Path, Path, ModelSpec, Verification | None]:
    """Build an engine as the arguments say; return it, its ONNX file, its spec, and its verification if it ran here.

    Args:
        report: called with each line of the report. With `args.dry_run` the ONNX file is parsed, and no engine built.
    """
    model = model_path(args.model, ".pth")
    refuse_ir(model)
    check_file(model)
    find_data(args.data)
    output: Path = args.output or args.model.with_suffix(".engine")
    onnx_path = model
    tiles: tuple[int, ...] = args.tile or ()
    chosen: VerificationImages | None = None
    if model.suffix != ".onnx":
        onnx_path = output.with_suffix(".onnx")
        largest = args.batch[2] if args.batch else 16
        export_model = export_tile_filter if is_tile_filter(model) else export_checkpoint
        _, chosen = export_model(model, onnx_path, largest, args, report, tiles=tiles)
    else:
        refuse_shape_options(args, tile=False)
    exported = read_onnx(onnx_path)
    for tile in tiles:
        spec_for_tile(exported.spec, tile, onnx_path)
    logging.getLogger("tinydet.tensorrt").setLevel(logging.DEBUG if args.verbose else logging.NOTSET)
    try:
        if args.dry_run:
            _parse(onnx_path, args, report)
            return onnx_path, onnx_path, exported.spec, None
        precision: Any = args.precision or ("fp16" if exported.precision == "fp32" else exported.precision)
        if chosen is None:
            converted = precision if precision != exported.precision else None
            chosen = choose_data(exported.spec, args, own_data_of_report(model), converted)
        if precision != exported.precision:
            onnx_path, _ = convert_precision(onnx_path, precision, args, chosen, report)
        spec, verification = _build(onnx_path, output, args, chosen, report)
        return output, onnx_path, spec, verification
    except (ValueError, OSError, ModuleNotFoundError):
        command = infer_command(onnx_path, exported.spec)
        report(f"{onnx_path} is complete and runs with ONNX Runtime: {command}")
        raise


def _parse(onnx_path: Path, args: argparse.Namespace, report: Report) -> None:
    parsed = parse_only(onnx_path, target=args.target, tiles=args.tile or ())
    product = f"{PRODUCTS[parsed.flavour]} {parsed.version}"
    report(f"{onnx_path}: the parser of {product} accepts it ({parsed.layers} layers); nothing was built")


def _build(
    onnx_path: Path, output: Path, args: argparse.Namespace, chosen: VerificationImages, report: Report
) -> tuple[ModelSpec, Verification | None]:
    """Build and verify the engine, and report it."""
    verification: Verification | None = None
    reason = ""  # why the engine could not be verified here

    def verify_engine(plan: Path, spec: ModelSpec) -> None:
        """Verify the engine before it is renamed to `output`, if it can run on this machine."""
        nonlocal verification, reason
        try:
            engine = open_engine(plan, spec)
        except (OSError, ImportError, RuntimeError) as error:  # RuntimeError: the driver lacks a function
            reason = str(error).replace(str(plan), str(output))
            return
        reference = open_model(onnx_path, REFERENCE_BACKEND, tile=spec.tile)
        at_other_tile = None
        if len(spec.tiles) > 1:
            other = spec.tiles[1]
            same = open_model(onnx_path, REFERENCE_BACKEND, tile=other)
            at_other_tile = same, open_engine(plan, spec, tile=other)
        with show_steps("verifying"):
            verification = verify(
                reference,
                engine,
                chosen.images,
                chosen.dataset,
                limit=len(chosen.images),
                max_drop=args.max_drop,
                source=chosen.source,
                record=chosen.record(output.parent),
                at_other_tile=at_other_tile,
            )
        if not verification.passed:
            raise ValueError(
                f"{output} was not written, because the engine failed verification: {'; '.join(verification.faults)}"
            )

    with show_steps("building (TensorRT may take minutes)"):
        spec = write_engine(
            onnx_path,
            output,
            target=args.target,
            batch=args.batch,
            tiles=args.tile or (),
            workspace=args.workspace and args.workspace * MEBIBYTE,
            version_compatible=args.version_compatible,
            hardware_compatible=args.hardware_compatible,
            compute_capabilities=args.compute_capability,
            timing_cache=args.timing_cache,
            verify=verify_engine,
        )
    built = spec.engine
    product, gpu = f"{PRODUCTS[built['flavour']]} {built['version']}", built["gpu"] or "the GPU of this machine"
    report(f"wrote         {output}  {built['bytes'] / 1e6:.1f} MB, {spec.precision}, {built['seconds']:.1f} s")
    report(f"              {output.with_suffix('.json')}")
    report(f"built by      {product} for {gpu}")
    report(f"tiles         {', '.join(map(str, built['tiles']))} pixels; for others build again with --tile")
    report(f"batch         {', '.join(map(str, built['batch']))} (smallest, typical, largest)")
    if verification is not None:
        write_report(verification, output)
        report(summarize(verification, output))
    else:
        for outdated in report_paths(output):  # reports of the engine that was replaced
            outdated.unlink(missing_ok=True)
        report(f"not verified  {reason}")
        again = tinydet_command("export", "verify", output, "--reference", onnx_path)
        report(f"              on the target machine: {again}")
    return spec, verification


def _batch_sizes(text: str) -> tuple[int, int, int]:
    try:
        sizes = [batch_size(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        sizes = []
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise argparse.ArgumentTypeError(f"expected three rising numbers such as 1,8,16, got {quoted(text)}")
    return sizes[0], sizes[1], sizes[2]
