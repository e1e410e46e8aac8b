"""`tinydet export onnx`: export a checkpoint to ONNX, convert an ONNX file to FP16 or INT8."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tinydet._internal.arguments import batch_size
from tinydet._internal.atomic import claim
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.shell import tinydet_command
from tinydet.export.console import infer_command
from tinydet.export.onnx_model import read_onnx
from tinydet.export.options import (
    MOST_NMS_ROUNDS,
    add_precision_options,
    add_shape_options,
    add_verification_options,
)
from tinydet.export.precision import Precision, convert
from tinydet.export.steps import show_steps, step
from tinydet.export.tile_filter import recalibrate
from tinydet.export.verification_images import (
    OwnData,
    VerificationImages,
    choose_images,
    find_data,
    own_data_of_checkpoint,
    own_data_of_config,
    own_data_of_report,
    with_calibration,
)
from tinydet.export.verify import Verification, summarize, verify
from tinydet.models.registry import detector_info
from tinydet.runtime.backends import Backend
from tinydet.runtime.bundled import model_path
from tinydet.runtime.tile_filter import describe
from tinydet.spec import ModelSpec

Report = Callable[[str], None]  # takes one line

EXAMPLES = ("model.pth --tile 640",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export a checkpoint to model.onnx and model.json, and verify the file against torch. The graph takes uint8 "
        "tiles and outputs boxes; it contains alpha folded into the convolutions, and no plugins. Given an FP32 ONNX "
        "file, convert it to another precision."
    )
    parser.add_argument(
        "model", type=Path, metavar="model.pth|model.onnx", help="a checkpoint, or an FP32 ONNX file to convert"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="ONNX file to write (default: next to the checkpoint)"
    )
    parser.add_argument(
        "--batch", type=batch_size, default=16, metavar="N", help="largest batch of tiles (default: 16)"
    )
    add_shape_options(parser)
    add_precision_options(parser, "fp32", "fp32; others are written next to it, such as model.fp16.onnx")
    add_verification_options(parser)


def run(args: argparse.Namespace) -> int:
    output, _ = export(args, print)
    spec = read_onnx(output).spec
    print(f"run it        {infer_command(output, spec)}")
    print(f"build engine  {tinydet_command('export', 'engine', output)}")
    return 0


def export(args: argparse.Namespace, report: Report) -> tuple[Path, Verification]:
    """Export or convert as the arguments say; return the file and its verification.

    Args:
        report: called with each line of the report.
    """
    model = model_path(args.model, ".pth")
    refuse_ir(model)
    check_file(model)
    find_data(args.data)
    if model.suffix == ".onnx":
        if args.precision == "fp32":
            raise ValueError(f"{model} is already an ONNX file; use --precision fp16 or int8 to convert it")
        if args.output:
            raise ValueError(
                f"--output names the ONNX file of a checkpoint; {model} is converted to "
                f"{model.with_suffix(f'.{args.precision}.onnx')}, so leave --output out"
            )
        refuse_shape_options(args)
        chosen = choose_data(read_onnx(model).spec, args, own_data_of_report(model), args.precision)
        output, verification = convert_precision(model, args.precision, args, chosen, report)
    else:
        output = args.output or args.model.with_suffix(".onnx")
        if output.exists() and output.samefile(model):
            raise ValueError(f"{output} is the checkpoint itself; name another output")
        export_model = export_tile_filter if is_tile_filter(model) else export_checkpoint
        verification, chosen = export_model(
            model, output, args.batch, args, report, tiles=(args.tile,) if args.tile else ()
        )
        if args.precision != "fp32":
            output, verification = convert_precision(output, args.precision, args, chosen, report)
    return output, verification


def export_checkpoint(
    model: Path, output: Path, batch: int, args: argparse.Namespace, say: Report, *, tiles: Sequence[int]
) -> tuple[Verification, VerificationImages]:
    """Export a checkpoint and report it; return its verification and the images to verify on.

    Args:
        tiles: the default tile, and others that the file must take; empty for the training tile.
    """
    with needs_extra("train,export"):
        from tinydet.models.backend import TorchBackend
        from tinydet.models.checkpoint import load_checkpoint
        from tinydet.models.folding import ZERO
    from tinydet.export.onnx_file import NotConvergedError, write_onnx

    checkpoint = load_checkpoint(model)
    for tile in tiles:
        detector_info(checkpoint.detector.detector).check_tile(tile, "--tile")
    try:
        spec = checkpoint.spec(
            tile=tiles[0] if tiles else None,
            max_batch=batch,
            max_detections=args.max_detections,
            nms_rounds=args.nms_rounds,
            grid_rois=args.grid_rois,
        )
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    chosen = choose_data(spec, args, own_data_of_checkpoint(checkpoint, model), args.precision)
    with show_steps("exporting"):

        def verify_onnx(candidate: Backend) -> Verification:
            reference = TorchBackend(checkpoint.build(), spec)
            return verify(
                reference,
                candidate,
                chosen.images,
                chosen.dataset,
                limit=len(chosen.images),
                max_drop=args.max_drop,
                source=chosen.source,
                record=chosen.record(output.parent),
            )

        while True:
            try:
                report = write_onnx(checkpoint.build(), spec, output, verify=verify_onnx)
                break
            except NotConvergedError:
                if args.nms_rounds or spec.nms_rounds >= MOST_NMS_ROUNDS:
                    raise
            step(f"{spec.nms_rounds} rounds of suppression are not enough; exporting with {2 * spec.nms_rounds}")
            spec = replace(spec, nms_rounds=2 * spec.nms_rounds)
    spec, parity = report.spec, report.parity
    size = f"{report.bytes / 1e6:.1f} MB, {spec.precision}, {report.nodes} nodes"
    say(f"wrote         {output}  {size}, {report.seconds:.0f} s")
    say(f"              {output.with_suffix('.json')}")
    say(f"input         uint8 (N, {spec.tile}, {spec.tile}, 3), N up to {spec.max_batch}")
    if spec.tile_multiple:
        say(f"tile          {spec.tile} pixels by default; any multiple of {spec.tile_multiple}: infer --tile")
    say(f"output        up to {plural(spec.max_detections, 'box')} per tile; classes: {', '.join(spec.classes)}")
    if spec.nms_rounds:
        say(f"proposals     suppressed in {spec.nms_rounds} rounds, enough for every tile that was compared")
    if spec.grid_rois:
        say(f"grid branch   on the best {plural(spec.grid_rois, 'proposal')} of a tile")
    alpha = ", ".join(f"{a:.3g}" for a in spec.alpha) or "computed from the features (attention)"
    say(f"alpha         {alpha}; operators added by it: {report.operators_added}")
    for edge in report.deleted_edges:
        say(f"              edge {edge} is not in the graph, because its alpha is 0 or below {ZERO:g}")
    if spec.alpha:
        for edge in report.kept_edges:
            say(f"              edge {edge} keeps its factor, because folding it would exceed the range of FP16")
    assert report.verification is not None
    say(summarize(report.verification, output))
    if parity.detections:
        say(
            f"vs torch      {plural(parity.detections, 'detection')} on {plural(parity.tiles, 'test tile')}, "
            f"{parity.unmatched} unmatched; "
            f"largest difference: score {parity.score_difference:.1e}, box {parity.box_difference:.1e} px"
        )
    else:
        compared = plural(parity.tiles, "test tile")
        say(f"vs torch      nothing to compare: no box above score {spec.score_floor} on {compared}")
    return report.verification, chosen


def is_tile_filter(model: Path) -> bool:
    """Return whether a checkpoint is that of a tile filter. Imports torch."""
    with needs_extra("train,export"):
        from tinydet.models.tile_filter import is_filter
    return is_filter(model)


def export_tile_filter(
    model: Path, output: Path, batch: int, args: argparse.Namespace, say: Report, *, tiles: Sequence[int]
) -> tuple[Verification, VerificationImages]:
    """Export the checkpoint of a tile filter, as `export_checkpoint` exports that of a detector."""
    from tinydet.export.onnx_file import write_filter_onnx
    from tinydet.models.tile_filter import TorchFilter, load_filter

    if tiles or args.max_detections or args.nms_rounds or args.grid_rois:
        raise ValueError(
            f"{model} is a tile filter, which takes the tiles that it was calibrated on; leave --tile, "
            "--max-detections, --nms-rounds and --grid-rois out"
        )
    checkpoint = load_filter(model)
    spec = replace(checkpoint.spec, max_batch=batch)
    chosen = choose_data(spec, args, own_data_of_config(model, checkpoint.config), args.precision)
    network = checkpoint.build()
    with show_steps("exporting"):
        report = write_filter_onnx(
            network,
            spec,
            output,
            verify=lambda candidate: verify(
                TorchFilter(network, candidate.spec),
                candidate,
                chosen.images,
                source=chosen.source,
                record=chosen.record(output.parent),
            ),
        )
    record = report.spec.tile_filter
    assert record is not None and report.verification is not None
    size = f"{report.bytes / 1e3:.0f} kB, {report.spec.precision}, {report.nodes} nodes"
    say(f"wrote         {output}  {size}, {report.seconds:.0f} s")
    say(f"              {output.with_suffix('.json')}")
    say(f"tile filter   {describe(record)}")
    say(f"tiles         of {min(record.tiles)} pixels or more, reduced by {record.reduction}; scale {record.scale:g}")
    say(summarize(report.verification, output))
    return report.verification, chosen


def choose_data(spec: ModelSpec, args: argparse.Namespace, own: OwnData, precision: str | None) -> VerificationImages:
    """Return the images to verify a model on, and for INT8 those to calibrate on.

    Args:
        own: data of the model.
        precision: to convert the model to.
    """
    if spec.tile_filter is not None:
        chosen = choose_images(spec.tile_filter.classes, args.images, args.data, own, limit=args.limit)
        chosen = replace(chosen, dataset=None)  # its boxes are cells, which have no AP
    else:
        chosen = choose_images(spec.classes, args.images, args.data, own, limit=args.limit)
    return with_calibration(chosen, args.calibration) if precision == "int8" else chosen


def convert_precision(
    source: Path, precision: Precision, args: argparse.Namespace, chosen: VerificationImages, say: Report
) -> tuple[Path, Verification]:
    """Convert an ONNX file to a file next to it and report it; return its path and its verification.

    Args:
        chosen: from `choose_data`.
    """
    output = source.with_suffix(f".{precision}.onnx")
    calibration = chosen.calibration
    with claim(output), show_steps(f"converting to {precision}"):
        converted = convert(
            source,
            output,
            precision,
            chosen.images,
            chosen.dataset,
            calibration=calibration.images if calibration else (),
            method=args.calibration_method,
            limit=len(chosen.images),
            max_drop=args.max_drop,
            origin=chosen.source,
            record=chosen.record(output.parent),
        )
    weights = ", ".join(f"{count:,} {kind}" for kind, count in sorted(converted.weights.items()))
    size = f"{converted.bytes / 1e6:.1f} MB, {converted.spec.precision}"
    say(f"wrote         {output}  {size}, {converted.seconds:.0f} s")
    say(f"              {output.with_suffix('.json')}")
    say(f"constants     {weights}")
    if calibration:
        say(f"calibrated    on {plural(len(calibration.images), 'image')}: {calibration.source}")
    if converted.spec.tile_filter is not None:
        record = recalibrate(output, args.data, chosen.own)
        say(f"tile filter   {describe(record)}")
    kept = ", ".join(converted.kept) or "none"
    say(f"layers        {converted.layers - len(converted.kept)} of {converted.layers} in {precision}; in fp32: {kept}")
    say(summarize(converted.verification, output))
    return output, converted.verification


def refuse_ir(model: Path) -> None:
    """Raise ValueError for an OpenVINO IR, which has no conversion to ONNX."""
    if model.suffix == ".xml":
        raise ValueError(
            f"{model}: an OpenVINO IR cannot become an ONNX file or an engine; adopt the ONNX file that it was made "
            f"from: {tinydet_command('export', 'adopt', 'FOREIGN.onnx')}"
        )


def refuse_shape_options(args: argparse.Namespace, *, tile: bool = True) -> None:
    """Raise ValueError for options that an ONNX file has already fixed.

    Args:
        tile: whether `--tile` is one of them.
    """
    names = ("tile", "max_detections", "nms_rounds", "grid_rois")[0 if tile else 1 :]
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if given:
        raise ValueError(
            f"{args.model}: {given[0]} is fixed in an ONNX file; export the checkpoint, or adopt the original, again "
            "with another value"
        )
