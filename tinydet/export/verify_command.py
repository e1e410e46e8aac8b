"""`tinydet export verify`: compare a model with the one that it was made from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydet._internal.atomic import claim
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.json_files import read_json
from tinydet.export.onnx_command import choose_data, is_tile_filter
from tinydet.export.options import add_verification_options
from tinydet.export.parity import tolerance_of
from tinydet.export.steps import show_steps
from tinydet.export.verification_images import (
    OwnData,
    choose_images,
    find_data,
    own_data_of_checkpoint,
    own_data_of_config,
    own_data_of_report,
)
from tinydet.export.verify import (
    CONVERSION_FIELDS,
    REFERENCE_BACKEND,
    format_report,
    other_tile,
    report_paths,
    verify,
    write_report,
)
from tinydet.runtime.backends import BACKENDS, Backend, open_model
from tinydet.spec import ModelSpec

if TYPE_CHECKING:
    from tinydet.export.adopt.graft import Plan
    from tinydet.export.adopt.original import Original

EXAMPLES = ("model.engine --reference model.onnx --data beach-val",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Repeat the verification of an export: compare the detections on real, empty and crowded tiles in batches of "
        "1, 3 and the largest, and AP by object size; and the detections on tiles of another size, if the model takes "
        "several. Exit code 1 if the model fails. Needs no torch unless the "
        "reference is a checkpoint."
    )
    parser.add_argument("model", type=Path, metavar="model.onnx|model.engine", help="the model to verify")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="checkpoint or ONNX file that it was made from (default: the file of the same name next to it; "
        "for an adopted model the original next to it)",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="backend that runs the model (default: auto)"
    )
    add_verification_options(parser)


def run(args: argparse.Namespace) -> int:
    model: Path = args.model
    check_file(model)
    find_data(args.data)
    if (adopted := _adopted(model, args.reference)) is not None:
        return _verify_adopted(args, *adopted)
    reference_path: Path = args.reference or _reference_of(model)
    candidate = open_model(model, args.backend)
    reference, own = open_reference(reference_path, candidate.spec)
    at_other_tile = None
    if other := _other_tile(candidate.spec):
        same = open_reference(reference_path, replace(candidate.spec, tile=other))[0]
        at_other_tile = same, open_model(model, args.backend, tile=other)
    chosen = choose_data(candidate.spec, args, own, None)
    bfloat16 = args.backend == "openvino-bf16" and candidate.spec.precision == "fp32"
    with claim(*report_paths(model)), show_steps("verifying"):
        verification = verify(
            reference,
            candidate,
            chosen.images,
            chosen.dataset,
            limit=len(chosen.images),
            source=chosen.source,
            record=chosen.record(model.parent),
            max_drop=args.max_drop,
            tolerance=tolerance_of(candidate.spec, "fp16") if bfloat16 else None,
            at_other_tile=at_other_tile,
        )
    print(format_report(verification))
    print("wrote " + " and ".join(map(str, write_report(verification, model, _conversion_fields(model)))))
    return 0 if verification.passed else 1


def _adopted(model: Path, reference: Path | None) -> tuple[Original, Plan] | None:
    """Return the original of an adopted model and how it was adopted; None for other models and references."""
    if model.suffix not in (".onnx", ".xml"):
        return None
    from tinydet.export.adopt.adopting import read_adopted

    if reference is not None:
        check_file(reference)
    return read_adopted(model, reference)


def _verify_adopted(args: argparse.Namespace, original: Original, plan: Plan) -> int:
    """Compare an adopted model with its original again."""
    from tinydet.export.adopt.adopting import compare_with_original

    model: Path = args.model
    own = own_data_of_report(model)
    chosen = choose_images(plan.spec.classes, args.images, args.data, own, limit=args.limit)
    with claim(*report_paths(model)), show_steps("verifying"):
        verification = compare_with_original(original, plan, model, chosen, folder=model.parent, max_drop=args.max_drop)
    print(format_report(verification))
    print("wrote " + " and ".join(map(str, write_report(verification, model))))
    return 0 if verification.passed else 1


def open_reference(path: Path, spec: ModelSpec) -> tuple[Backend, OwnData]:
    """Open the model that a model with this spec was made from, for the same tile; return it and its data."""
    if path.suffix != ".pth":
        backend = REFERENCE_BACKEND if path.suffix == ".onnx" else "auto"
        return open_model(path, backend, tile=spec.tile), own_data_of_report(path)
    with needs_extra("train,export"):
        from tinydet.models.backend import TorchBackend
        from tinydet.models.checkpoint import load_checkpoint
        from tinydet.models.tile_filter import TorchFilter, load_filter
    if is_tile_filter(path):
        trained = load_filter(path)
        return TorchFilter(trained.build(), spec), own_data_of_config(path, trained.config)
    checkpoint = load_checkpoint(path)
    same = checkpoint.spec(
        tile=spec.tile,
        max_batch=spec.max_batch,
        max_detections=spec.max_detections,
        nms_rounds=spec.nms_rounds or None,
        grid_rois=spec.grid_rois or None,
    )
    return TorchBackend(checkpoint.build(), same), own_data_of_checkpoint(checkpoint, path)


def _other_tile(spec: ModelSpec) -> int | None:
    """Return another tile that the model takes; None if there is none."""
    if spec.tile_multiple:
        return other_tile(spec)
    return next((tile for tile in spec.tiles if tile != spec.tile), None)


def _reference_of(model: Path) -> Path:
    """Return the model that `model` was made from, by its name: a file in the same folder."""
    if Path(model.stem).suffix in (".fp16", ".int8"):
        model = model.with_name(f"{Path(model.stem).stem}.engine")
    for suffix in (".pth",) if model.suffix == ".onnx" else (".onnx", ".pth"):
        if (path := model.with_suffix(suffix)).is_file():
            return path
    raise ValueError(
        f"{model}: the model that it was made from is not in the same folder; name it with --reference FILE"
    )


def _conversion_fields(model: Path) -> dict[str, Any]:
    """Read the fields that only the conversion knew from the report that it wrote, to keep them in the new one."""
    report = report_paths(model)[0]
    try:
        known = read_json(report) if report.is_file() else {}
    except ValueError:
        return {}
    return {name: known[name] for name in CONVERSION_FIELDS if name in known} if isinstance(known, dict) else {}
