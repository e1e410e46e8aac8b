"""The commands `tinydet export onnx`, `engine`, `verify` and `freeze`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.synthetic import embedded_dataset
from tinydet.export.arguments import make_parser
from tinydet.export.engine import build_engine, parse_only, read_onnx
from tinydet.export.parity import TOLERANCES
from tinydet.export.precision import Precision, convert
from tinydet.export.verification_images import gate_images, is_embedded
from tinydet.export.verify import (
    CONVERSION,
    JUDGE,
    Verification,
    deciding_range,
    format_report,
    report_paths,
    verify,
    write_report,
)
from tinydet.models.registry import detector_info
from tinydet.runtime.backends import MODEL_FILES, Backend, open_model
from tinydet.runtime.backends.tensorrt import PRODUCTS, open_engine
from tinydet.spec import ModelSpec

MEBIBYTE = 1 << 20
FEEBLE = 0.05  # an AP below it cannot fall by enough to be noticed
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    match arguments.command:
        case "onnx":
            return run_onnx(arguments)
        case "engine":
            return run_engine(arguments)
        case "verify":
            return run_verify(arguments)
        case _:
            return run_freeze(arguments)


def run_onnx(arguments: argparse.Namespace) -> int:
    model: Path = arguments.model
    if model.suffix == ".onnx":
        if arguments.output or arguments.precision == "fp32":
            raise ValueError(f"{model} is an ONNX file already; say --precision fp16 or int8 to convert it")
        _refuse_shape(arguments)
        output = _convert(model, arguments.precision, arguments)
        spec = read_onnx(output).spec
    else:
        output = arguments.output or model.with_suffix(".onnx")
        spec, trained = _write_onnx(model, output, arguments.batch, arguments)
        if arguments.precision != "fp32":
            output = _convert(output, arguments.precision, arguments, trained)
    print(f"run it        {_how_to_run(output, spec)}")
    print(f"build for GPU python export/to_trt.py {output}")
    return 0


def run_engine(arguments: argparse.Namespace) -> int:
    model: Path = arguments.model
    output: Path = arguments.output or model.with_suffix(".engine")
    onnx_path = model
    trained: dict[str, Any] = {}
    if model.suffix != ".onnx":
        onnx_path = output.with_suffix(".onnx")
        largest = arguments.batch[2] if arguments.batch else 16
        _, trained = _write_onnx(model, onnx_path, largest, arguments)
    else:
        _refuse_shape(arguments)
    read = read_onnx(onnx_path)
    try:
        if arguments.dry_run:
            return _parse(onnx_path, arguments)
        wanted: Any = arguments.precision or ("fp16" if read.precision == "fp32" else read.precision)
        if wanted != read.precision:
            onnx_path = _convert(onnx_path, wanted, arguments, trained)
        return _write_engine(onnx_path, output, arguments, trained)
    except (ValueError, OSError, ModuleNotFoundError):
        print(f"{onnx_path} is whole and runs with ONNX Runtime: {_how_to_run(onnx_path, read.spec)}", file=sys.stderr)
        raise


def _refuse_shape(arguments: argparse.Namespace) -> None:
    if arguments.tile or arguments.max_detections or arguments.nms_rounds:
        raise ValueError(
            f"{arguments.model}: tile, slots and rounds are fixed in an ONNX file; export the checkpoint with the ones "
            "you want"
        )


def _convert(
    source: Path, precision: Precision, arguments: argparse.Namespace, trained: dict[str, Any] | None = None
) -> Path:
    """Write the model in another precision beside `source`, and tell what came of it."""
    output = source.with_suffix(f".{precision}.onnx")
    images, dataset = _gate_images(arguments, trained or {}, read_onnx(source).spec)
    if precision == "int8" and not (arguments.calibration or arguments.images) and is_embedded(images):
        note = "INT8 ranges come from the embedded scenes; where the model is for others, name some with --calibration"
        print(f"note: {note}", file=sys.stderr)
    with _progress(f"converting to {precision}") as progress:
        made = convert(
            source,
            output,
            precision,
            images,
            dataset,
            calibration=_pictures(arguments.calibration) if arguments.calibration else (),
            method=arguments.calibration_method,
            limit=arguments.limit,
            max_drop=arguments.max_drop,
            progress=progress,
        )
    weights = ", ".join(f"{count:,} {kind}" for kind, count in sorted(made.weights.items()))
    print(f"wrote         {output}  {made.bytes / 1e6:.1f} MB, {made.spec.precision}, {made.seconds:.0f} s")
    print(f"constants     {weights}")
    kept = ", ".join(made.kept)
    print(f"layers        {made.layers - len(made.kept)} of {made.layers} in {precision}; in fp32: {kept or 'none'}")
    _print_verification(made.verification, output)
    return output


def _pictures(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)}); name another with --calibration")
    return found


def run_verify(arguments: argparse.Namespace) -> int:
    model: Path = arguments.model
    reference: Path = arguments.reference or _reference_of(model)
    candidate = open_model(model, arguments.backend)
    trained: dict[str, Any] = {}
    if reference.suffix == ".pth":
        with needs_extra("train"):
            from tinydet.models.backend import TorchBackend
            from tinydet.models.checkpoint import load_checkpoint
        checkpoint = load_checkpoint(reference)
        trained = checkpoint.config
        seen = candidate.spec
        spec = checkpoint.spec(tile=seen.tile, max_batch=seen.max_batch, max_detections=seen.max_detections)
        other: Backend = TorchBackend(checkpoint.build(), spec)
    else:
        other = open_model(reference, JUDGE if reference.suffix == ".onnx" else "auto")
    images, dataset = _gate_images(arguments, trained, candidate.spec)
    halved = arguments.backend == "openvino-bf16" and candidate.spec.precision == "fp32"
    with _progress("verifying") as progress:
        verification = verify(
            other,
            candidate,
            images,
            dataset,
            limit=arguments.limit,
            max_drop=arguments.max_drop,
            tolerance=TOLERANCES["fp16"] if halved else None,
            progress=progress,
        )
    print(format_report(verification))
    print("wrote " + " and ".join(map(str, write_report(verification, model, _told_before(model)))))
    return 0 if verification.passed else 1


def run_freeze(arguments: argparse.Namespace) -> int:
    with needs_extra("train"):
        from tinydet.models.checkpoint import load_checkpoint, save_checkpoint
    from tinydet.export.freeze import freeze_checkpoint, refuse_without_attention

    output = arguments.output or arguments.model.with_suffix(".frozen.pth")
    checkpoint = load_checkpoint(arguments.model)
    refuse_without_attention(checkpoint)
    data, val = (
        load_dataset(*find_dataset(folder or embedded_dataset(split)), categories=checkpoint.classes)
        for folder, split in ((arguments.data, "train"), (arguments.val, "val"))
    )
    frozen = freeze_checkpoint(checkpoint, data, val)
    save_checkpoint(frozen.checkpoint, output)
    edges = ", ".join(detector_info(checkpoint.detector.detector).pyramid.edges)
    factors = ", ".join(f"{a:.3f} ± {d:.3f}" for a, d in zip(frozen.alpha, frozen.deviation, strict=True))
    print(f"alpha         {factors} on {frozen.tiles} tiles ({edges})")
    for name, before in frozen.before.items():
        after = frozen.after[name]
        print(f"{name:<13} {100 * before:.2f} with attention, {100 * after:.2f} frozen: {100 * (after - before):+.2f}")
    print(f"wrote         {output}")
    print(f"next          tinydet export onnx {output}")
    return 0


def _told_before(model: Path) -> dict[str, Any]:
    """What the conversion wrote of the model in its report, which a later look does not find out again."""
    report = report_paths(model)[0]
    try:
        known = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    except ValueError:
        return {}
    return {name: known[name] for name in CONVERSION if name in known} if isinstance(known, dict) else {}


def _write_onnx(
    model: Path, output: Path, batch: int, arguments: argparse.Namespace
) -> tuple[ModelSpec, dict[str, Any]]:
    """Export a checkpoint and tell what came of it; also gives its training configuration."""
    with needs_extra("train"):
        from tinydet.models.backend import TorchBackend
        from tinydet.models.checkpoint import load_checkpoint
        from tinydet.models.folding import ZERO
    from tinydet.export.onnx_file import export_onnx

    checkpoint = load_checkpoint(model)
    detector = checkpoint.build()
    if arguments.nms_rounds and not detector_info(checkpoint.detector.detector).nms_rounds:
        raise ValueError(
            f"{model}: --nms-rounds is for two-stage detectors; {checkpoint.detector.detector} has no proposals"
        )
    slots = arguments.max_detections or 1000
    spec = checkpoint.spec(tile=arguments.tile, max_batch=batch, max_detections=slots)
    spec = replace(spec, nms_rounds=arguments.nms_rounds or spec.nms_rounds)
    images, dataset = _gate_images(arguments, checkpoint.config, spec)
    with _progress("exporting") as progress:

        def gate(candidate: Backend) -> Verification:
            reference = TorchBackend(checkpoint.build(), spec)
            limit, max_drop = arguments.limit, arguments.max_drop
            return verify(reference, candidate, images, dataset, limit=limit, max_drop=max_drop, progress=progress)

        report = export_onnx(detector, spec, output, gate=gate, progress=progress)
    spec, parity = report.spec, report.parity
    size = f"{report.bytes / 1e6:.1f} MB, {spec.precision}, {report.nodes} nodes"
    print(f"wrote         {output}  {size}, {report.seconds:.0f} s")
    print(f"              {output.with_suffix('.json')}")
    print(f"input         uint8 (N, {spec.tile}, {spec.tile}, 3), N up to {spec.max_batch}")
    print(f"output        up to {spec.max_detections} boxes a tile, of: {', '.join(spec.classes)}")
    if spec.nms_rounds:
        print(f"proposals     suppressed in {spec.nms_rounds} rounds, which was enough for every tile compared")
    alpha = ", ".join(f"{a:.3g}" for a in spec.alpha) or "from the features (attention)"
    print(f"alpha         {alpha}; operators added by it: {report.operators_added}")
    for edge in report.deleted_edges:
        print(f"              the edge {edge} is not in the graph: its alpha is 0, or less than {ZERO:g}")
    if spec.alpha:
        for edge in report.kept_edges:
            print(f"              the edge {edge} keeps its factor: folded, it would leave the range of FP16")
    assert report.verification is not None
    _print_verification(report.verification, output)
    if parity.detections:
        print(
            f"ONNX = torch  {parity.detections} detections on {parity.tiles} tiles, {parity.unmatched} unmatched; "
            f"largest difference: score {parity.score_difference:.1e}, box {parity.box_difference:.1e} px"
        )
    else:
        print(f"ONNX = torch  nothing to compare: {parity.tiles} tiles gave no box over score {spec.score_floor}")
    return spec, checkpoint.config


def _parse(onnx_path: Path, arguments: argparse.Namespace) -> int:
    parsed = parse_only(onnx_path, target=arguments.target, log=_print_log if arguments.verbose else None)
    product = f"{PRODUCTS[parsed.flavour]} {parsed.version}"
    print(f"{onnx_path}: the parser of {product} takes it, {parsed.layers} layers; nothing was built")
    return 0


def _write_engine(onnx_path: Path, output: Path, arguments: argparse.Namespace, trained: dict[str, Any]) -> int:
    story: list[Verification | str] = []

    def gate(plan: Path, spec: ModelSpec) -> None:
        """Runs before the engine has its name; where it cannot run here, says why."""
        try:
            engine = open_engine(plan, spec)
        except (OSError, ImportError, RuntimeError) as error:  # RuntimeError: a driver that lacks a name of cuda-python
            story.append(str(error).replace(str(plan), str(output)))
            return
        images, dataset = _gate_images(arguments, trained, spec)
        reference, limit, max_drop = open_model(onnx_path, JUDGE), arguments.limit, arguments.max_drop
        with _progress("verifying") as progress:
            found = verify(reference, engine, images, dataset, limit=limit, max_drop=max_drop, progress=progress)
        if not found.passed:
            raise ValueError(f"{output} was not written, for the engine fails the gate: {'; '.join(found.faults)}")
        story.append(found)

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
            gate=gate,
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
    for told in story:
        if isinstance(told, Verification):
            write_report(told, output)
            _print_verification(told, output)
        else:
            for older in report_paths(output):  # of an engine that is no more
                older.unlink(missing_ok=True)
            print(f"not verified  {told}")
            print(f"              on the target: tinydet export verify {output} --reference {onnx_path}")
    print(f"run it        {_how_to_run(output, spec)}")
    return 0


def _print_verification(verification: Verification, output: Path) -> None:
    unmatched = sum(p.unmatched for p in verification.parity.values())
    detections = sum(p.detections for p in verification.parity.values())
    print(f"verified      {unmatched} of {detections} detections unmatched, on {verification.source}")
    if verification.precision:
        name = deciding_range(verification.precision)
        before, after = verification.precision[name]
        change = f"{100 * before:.2f} before, {100 * after:.2f} after"
        print(f"              AP-{name} {change}, on {verification.images} images")
        if before < FEEBLE:
            print("              which says little, for it finds next to nothing there; name its own data with --data")
    else:
        print("              AP was not measured: no annotations of these classes; name a COCO folder with --data")
    print(f"              {report_paths(output)[1]}")


def _gate_images(
    arguments: argparse.Namespace, trained: dict[str, Any], spec: ModelSpec
) -> tuple[list[Path], Dataset | None]:
    """What the gate looks at: the pictures named, else the checkpoint's validation set, else the embedded data."""
    if arguments.images:
        for path in arguments.images:
            if not path.is_file():
                raise ValueError(f"{path}: no such picture; name files with --images, or a COCO folder with --data")
        return list(arguments.images), None
    annotations, folder = trained.get("val_annotations"), trained.get("val_images")
    trained_on = None
    if annotations and folder and Path(annotations).is_file() and Path(folder).is_dir():
        trained_on = Path(annotations), Path(folder)
    return gate_images(spec.classes, arguments.data, trained_on)


def _reference_of(model: Path) -> Path:
    """What a model was made from, beside it."""
    if Path(model.stem).suffix in (".fp16", ".int8"):
        model = model.with_name(f"{Path(model.stem).stem}.engine")
    for suffix in (".pth",) if model.suffix == ".onnx" else (".onnx", ".pth"):
        if (path := model.with_suffix(suffix)).is_file():
            return path
    raise ValueError(f"{model}: the model that it was made from is not beside it; name it with --reference FILE")


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


if __name__ == "__main__":
    sys.exit(main())
