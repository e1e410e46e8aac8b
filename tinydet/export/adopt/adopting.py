"""The steps of an adoption: recognize, graft, verify against the original, write."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tinydet
from tinydet._internal.atomic import atomic_path, claim, write_text
from tinydet._internal.extras import needs_extra
from tinydet._internal.json_files import parse_json
from tinydet.export.adopt.classes import assign_labels
from tinydet.export.adopt.described import Description, describe
from tinydet.export.adopt.formats import FORMATS, recognize
from tinydet.export.adopt.formats.format import Color, Format, Layout, Pixels, Signature, pixels_of_json
from tinydet.export.adopt.graft import Plan, adopted_graph
from tinydet.export.adopt.limits import detection_limit
from tinydet.export.adopt.openvino_ir import write_ir
from tinydet.export.adopt.original import IrOriginal, OnnxOriginal, Original, open_original, read_metadata
from tinydet.export.adopt.probe import probe
from tinydet.export.adopt.reference import ClippedBackend, ReferenceBackend, after_nms, are_shares
from tinydet.export.onnx_model import description_path, graph_precision
from tinydet.export.parity import TOLERANCES, Tolerance, compare
from tinydet.export.steps import step
from tinydet.export.verification_images import VerificationImages
from tinydet.export.verify import (
    REAL_TILES,
    REFERENCE_BACKEND,
    Verification,
    middle_tile,
    precision_by_size,
    run_in_batches,
    verify,
    write_report,
)
from tinydet.runtime.backends import Backend, open_model
from tinydet.spec import METADATA_KEY, ModelSpec

RECORD_KEY = "tinydet_adopted"  # of the record in the metadata of an adopted file
SLOTS = 1000  # default number of detection slots
SCORE_FLOOR = 0.05
MAX_BATCH = 16
FEW = 8  # detections of all tiles below which the comparison uses a lower score floor
ENOUGH = 200  # detections of all tiles that it then compares


@dataclass(frozen=True)
class Options:
    """What the user sets by hand; None: as the file or its format says."""

    format: str | None = None
    classes: tuple[str, ...] | None = None
    first_label: int | None = None
    input_scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    color: Color | None = None
    layout: Layout | None = None
    tile: int | None = None
    batch: int = MAX_BATCH
    max_detections: int | None = None
    score_floor: float = SCORE_FLOOR
    nms_iou: float | None = None
    boxes: Literal["pixels", "shares"] | None = None


@dataclass(frozen=True)
class Adoption:
    """A written model.

    Attributes:
        bytes: size of its files.
        floor: score floor of the comparison, which is lower than the model's if the original finds next to nothing.
    """

    path: Path
    spec: ModelSpec
    bytes: int
    floor: float
    seconds: float


def make_plan(original: Original, options: Options) -> tuple[Plan, Description]:
    """Recognize a detector and decide how it is adopted. Runs the original a few times.

    Raises:
        ValueError: it cannot be adopted, or an option does not fit it. Names the file.
    """
    path = original.path
    description = describe(path, original.metadata)
    tile = options.tile or description.tile
    try:
        signature = probe(original, tile=tile, stride=description.stride, layout=options.layout)
        names = options.classes or description.classes
        chosen = recognize(signature, options.format, len(names) if names else None)
        columns = chosen.columns(signature)
        first = chosen.first_label if options.first_label is None else options.first_label
        classes = assign_labels(names, columns, first_label=first, background=chosen.background)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    if chosen.name == "yolox":  # its grid is a constant
        signature = replace(signature, multiple=0)
    side = _tile(path, signature, options.tile)
    pixels = _pixels(path, signature, chosen, description, options)
    limit = detection_limit(original, chosen, signature)
    slots = min(options.max_detections or SLOTS, limit or SLOTS)
    if not chosen.counted and not signature.multiple:
        slots = min(slots, _rows(signature))
    max_batch = signature.batch or min(options.batch, description.batch or options.batch)
    spec = ModelSpec(
        classes=classes.names,
        category_ids=classes.category_ids,
        detector=chosen.name,
        backbone=path.stem,
        tile=side,
        tile_multiple=signature.multiple,
        max_batch=max_batch,
        max_detections=slots,
        score_floor=options.score_floor,
        nms_iou=options.nms_iou or description.nms_iou or chosen.nms_iou or 0.5,
        nms_in_graph=chosen.nms_iou is None,
        pad=chosen.pad,
        versions={"tinydet": tinydet.__version__, "original": original.producer},
    )
    found = chosen.detections(signature.values, signature)
    shares = options.boxes == "shares" if options.boxes else are_shares(found.boxes) or None
    return Plan(chosen, signature, pixels, classes.labels, limit, spec, shares), description


def adopt(
    original: Original, plan: Plan, output: Path, chosen: VerificationImages, *, max_drop: float
) -> tuple[Adoption, Verification]:
    """Write the adopted model, its `.json` and its verification report.

    Raises:
        ValueError: the adopted model differs from the original; nothing is written then.
        OSError: a file cannot be written. An existing output is kept.
    """
    started = time.monotonic()
    suffix = output_suffix(original)
    sidecar = description_path(output, suffix)
    outputs = [output, output.with_suffix(".bin")] if suffix == ".xml" else [output]
    with claim(*outputs, inputs=[original.path]), tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / output.name
        step("grafting")
        floor = _comparison_floor(original, plan, chosen.images)
        compared = replace(plan, spec=replace(plan.spec, score_floor=floor))
        write_adopted(original, compared, made)
        step("comparing with the original")
        verification = compare_with_original(original, compared, made, chosen, folder=output.parent, max_drop=max_drop)
        if not verification.passed:
            raise ValueError(f"{output} was not written: {'; '.join(verification.faults)}")
        spec = write_adopted(original, plan, made)
        open_adopted(made)
        spec = replace(spec, onnx_sha256=hashlib.sha256(made.read_bytes()).hexdigest())
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(atomic_path(path)) for path in outputs]
            for path, target in zip(outputs, targets, strict=True):
                target.write_bytes(made.with_suffix(path.suffix).read_bytes())
    write_text(sidecar, spec.to_json() + "\n")
    write_report(verification, output)
    sizes = sum(path.stat().st_size for path in outputs)
    return Adoption(output, spec, sizes, floor, time.monotonic() - started), verification


def compare_with_original(
    original: Original,
    plan: Plan,
    model: Path,
    chosen: VerificationImages,
    *,
    folder: Path,
    max_drop: float,
) -> Verification:
    """Compare an adopted model with the original as its framework runs it.

    Boxes are compared before NMS. The framework's NMS, where it has one, is compared with the runtime's on the boxes of
    the adopted model, because the order of boxes with nearly the same score would make other comparisons arbitrary. A
    model that takes any tile is compared on a second size too.

    Args:
        folder: of the report.
    """
    tolerance = _tolerance(plan)
    limit = len(chosen.images)
    before = None
    if chosen.dataset is not None:
        step("average precision of the original")
        before = precision_by_size(ReferenceBackend(original, plan, nms=True), chosen.dataset, limit)
    candidate = ClippedBackend(open_adopted(model))
    verification = verify(
        ReferenceBackend(original, plan),
        candidate,
        chosen.images,
        chosen.dataset,
        limit=limit,
        max_drop=max_drop,
        before=before,
        tolerance=tolerance,
        source=chosen.source,
        record=chosen.record(folder),
    )
    parity, faults = dict(verification.parity), list(verification.faults)
    tiles = np.stack([middle_tile(path, plan.spec) for path in _spaced(chosen.images)])
    if plan.format.nms_iou is not None:
        step("comparing NMS")
        found, iou = run_in_batches(candidate, tiles, 1), plan.spec.nms_iou
        ours, theirs = (after_nms(found, iou, by_framework=each) for each in (False, True))
        name = f"NMS at IoU {iou:g}, real tiles"
        parity[name] = compare(theirs, ours, plan.spec.score_floor, tolerance)
        if parity[name].unmatched:
            faults.append(f"{name}: {parity[name].unmatched} detections differ between the runtime and the framework")
    if multiple := plan.spec.tile_multiple:
        other = plan.spec.tile + multiple
        step("comparing tiles of %d pixels", other)
        larger = replace(plan, spec=replace(plan.spec, tile=other))
        tiles = np.stack([middle_tile(path, larger.spec) for path in _spaced(chosen.images)])
        expected = run_in_batches(ReferenceBackend(original, larger), tiles, 1)
        got = run_in_batches(ClippedBackend(open_adopted(model, other)), tiles, 1)
        name = f"real tiles of {other} pixels"
        parity[name] = compare(expected, got, plan.spec.score_floor, tolerance)
        if parity[name].unmatched > tolerance.unmatched * parity[name].judged:
            faults.append(f"{name}: {parity[name].unmatched} detections are unmatched")
    return replace(verification, parity=parity, faults=tuple(faults))


def write_adopted(original: Original, plan: Plan, path: Path) -> ModelSpec:
    """Write an adopted model, without verification; return its spec."""
    record = json.dumps(_record(original, plan), ensure_ascii=False)
    if isinstance(original, IrOriginal):
        write_ir(original.model, plan, path, {METADATA_KEY: plan.spec.to_json(), RECORD_KEY: record})
        return plan.spec
    assert isinstance(original, OnnxOriginal)
    model = adopted_graph(original.model, plan)
    with needs_extra("export"):
        import onnx
    _, precision = graph_precision(model.graph)
    spec = replace(plan.spec, precision=precision, versions={**plan.spec.versions, "onnx": onnx.__version__})
    for key, value in ((METADATA_KEY, spec.to_json()), (RECORD_KEY, record)):
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return spec


def open_adopted(path: Path, tile: int | None = None) -> Backend:
    """Open an adopted model with the backend that verifies it."""
    return open_model(path, REFERENCE_BACKEND if path.suffix == ".onnx" else "openvino", tile=tile)


def output_suffix(original: Original) -> str:
    """Return the suffix of the adopted file."""
    return ".xml" if isinstance(original, IrOriginal) else ".onnx"


def read_adopted(path: Path, source: Path | None = None) -> tuple[Original, Plan] | None:
    """Return the original of an adopted model and its plan; None if the model is not adopted.

    Args:
        source: the original, or another model, for which this returns None; None: the original in the same folder.

    Raises:
        ValueError: the original is not in the folder, or is another file.
    """
    metadata = read_metadata(path)
    if RECORD_KEY not in metadata:
        return None
    spec = ModelSpec.from_json(metadata[METADATA_KEY], source=path)
    record = parse_json(metadata[RECORD_KEY], source=path, remedy="adopt the original again")
    name = Path(str(record["original"])).name
    if source is not None and source.name != name:
        return None
    source = source or path.parent / name
    if not source.is_file():
        raise ValueError(
            f"{path}: it was adopted from {name}, which is not in the same folder; copy it there, or name it with "
            "--reference"
        )
    original = open_original(source)
    if original.sha256 != record["sha256"]:
        raise ValueError(f"{source}: not the file that {path} was adopted from; adopt it again")
    pixels = pixels_of_json(record["pixels"])
    signature = probe(original, tile=spec.tile, stride=record["multiple"] or None, layout=record["layout"])
    signature = replace(signature, multiple=record["multiple"])
    form, labels, shares = FORMATS[record["format"]], tuple(record["labels"]), record.get("shares")
    plan = Plan(form, signature, pixels, labels, record["limit"], spec, shares)
    return original, plan


def _record(original: Original, plan: Plan) -> dict[str, Any]:
    """Return what `recorded_plan` needs."""
    return {
        "original": original.path.name,
        "sha256": original.sha256,
        "format": plan.format.name,
        "pixels": dataclasses.asdict(plan.pixels),
        "layout": plan.signature.layout,
        "multiple": plan.signature.multiple,
        "labels": list(plan.labels),
        "limit": plan.limit,
        "shares": plan.shares,
    }


def _tile(path: Path, signature: Signature, wanted: int | None) -> int:
    """Return the side of the square tile: the input's, or its shorter side."""
    side = min(signature.height, signature.width)
    if signature.multiple and side % signature.multiple:
        raise ValueError(f"{path}: its tile must be a multiple of {signature.multiple}, not {side}; choose --tile")
    if wanted is None or wanted == side:
        return side
    size = f"{signature.height}x{signature.width}"
    raise ValueError(f"{path}: its input is fixed at {size} (height x width), so --tile is {side}; leave it out")


def _pixels(path: Path, signature: Signature, chosen: Format, description: Description, options: Options) -> Pixels:
    """Return how the original is fed: by options, else by its metadata, else as the format's framework does.

    An input of type uint8 is fed the pixels as they are.
    """
    usual = description.pixels or chosen.pixels
    if signature.image.dtype == np.uint8:
        if any(value is not None for value in (options.mean, options.std)) or options.input_scale not in (None, 1.0):
            raise ValueError(
                f"{path}: its input is uint8, which takes pixels from 0 to 255 as they are; leave out --input-scale, "
                "--mean and --std"
            )
        return Pixels(scale=1.0, color=options.color or usual.color)
    return Pixels(
        scale=options.input_scale or usual.scale,
        mean=options.mean or usual.mean,
        std=options.std or usual.std,
        color=options.color or usual.color,
    )


def _rows(signature: Signature) -> int:
    """Return the number of boxes that the original returns for an image: the largest axis but those of classes."""
    return max(max(shape[1:], default=1) for shape in signature.shapes.values())


def _tolerance(plan: Plan) -> Tolerance:
    """Return when detections match.

    Scores far below the usual ones must agree more closely. NMS inside of a graph turns a rounding difference between
    two sessions into another box, so a few of those may differ.
    """
    usual, floor = TOLERANCES["fp32"], plan.spec.score_floor
    score = min(usual.score, floor / 50) if floor > 0 else usual.score
    if plan.format.counted:
        return replace(usual, score=score, unmatched=0.01, candidates=0.05)
    return replace(usual, score=score)


def _comparison_floor(original: Original, plan: Plan, images: Sequence[Path]) -> float:
    """Return the score floor of the comparison.

    It is the model's, unless the original finds next to nothing on the images: then a comparison above that floor would
    prove nothing, and the score of one of its best few hundred detections takes its place.
    """
    unlimited = replace(plan, spec=replace(plan.spec, score_floor=0.0), limit=None)
    reference = ReferenceBackend(original, unlimited)
    found = reference.run(np.stack([middle_tile(path, plan.spec) for path in _spaced(images)]))
    scores = np.sort(found.scores[found.labels >= 0])[::-1]
    floor = plan.spec.score_floor
    if (scores > floor).sum() < FEW and len(scores):
        floor = float(scores[min(ENOUGH, len(scores)) - 1]) * 0.999
    return floor


def _spaced(images: Sequence[Path]) -> list[Path]:
    """Return up to four images, evenly spaced."""
    return [images[i] for i in np.unique(np.linspace(0, len(images) - 1, REAL_TILES).round().astype(int))]
