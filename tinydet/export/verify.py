"""Verification: compare a converted model with the one that it was made from.

Two checks: do both models give the same set of detections on real tiles, an empty tile and a crowded tile, in every
batch size; and does average precision hold in each size range, by the protocol of `tinydet evaluate`. Needs no torch,
so an engine can be verified against its ONNX file on the machine that built it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import write_json, write_text
from tinydet._internal.console import plural
from tinydet.data.coco import Dataset
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.score_model import detect_dataset, score_dataset
from tinydet.export.parity import Parity, Tolerance, compare, tolerance_of
from tinydet.export.steps import step
from tinydet.runtime.backends import Backend, TileOutputs
from tinydet.runtime.scan import nms_not_converged
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.tile_filter import reduced
from tinydet.spec import ModelSpec

PROTOCOL = "coco"
REFERENCE_BACKEND = "onnx-cpu"  # runs the reference ONNX file; on a GPU, ONNX Runtime computes FP32 as TF32 by default
CONVERSION_FIELDS = ("kept_in_fp32", "shares", "sha256", "reference_sha256")  # known only to the conversion
AP_IOU = "0.50"
MAX_DROP = 0.005  # of AP-tiny, as a fraction
REAL_TILES = 4
PATCH = 32  # pixels; side of the patches around detections that make up the crowded tile
PATCHES = 16  # different ones
LOW_AP = 0.05  # an AP below this cannot drop by enough to reveal a bad conversion


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        model, reference: runtime and precision of each, for display.
        parity: one comparison for each kind of tile and batch size.
        saturated: whether the crowded tile had more candidates than the model has slots.
        precision: AP at IoU 0.5 by size range as (before, after), fractions; -1 where the dataset has no such objects.
            Empty if there are no annotations.
        images: number of images that AP was measured on.
        source: where the images come from, for display. `record`: more about them, for the report.
        faults: why the model must not be used; empty if it passed.
        unconverged: proposals whose suppression in the model's graph had not converged, of all tiles and images.
        nms_iou: unmatched boxes that NMS at this IoU removes were not counted, see `compare`. None: all were counted.
    """

    model: str
    reference: str
    tolerance: Tolerance
    parity: dict[str, Parity]
    saturated: bool
    precision: dict[str, tuple[float, float]]
    max_drop: float
    images: int
    source: str
    seconds: float
    faults: tuple[str, ...]
    unconverged: int = 0
    nms_iou: float | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.faults


def verify(
    reference: Backend,
    candidate: Backend,
    images: Sequence[Path],
    dataset: Dataset | None = None,
    *,
    limit: int | None = None,
    max_drop: float = MAX_DROP,
    before: Mapping[str, float] | None = None,
    tolerance: Tolerance | None = None,
    source: str = "",
    record: Mapping[str, Any] | None = None,
    at_other_tile: tuple[Backend, Backend] | None = None,
) -> Verification:
    """Compare `candidate` with `reference`.

    Args:
        images: the real tiles are cut from four of them, evenly spaced.
        dataset: annotated images to measure AP on; None to skip AP.
        limit: measure AP on the first `limit` images only; None for all.
        max_drop: largest allowed drop of AP-tiny, as a fraction; of AP over all sizes if there are no tiny objects.
        before: the `precision_by_size` of the reference on the same images, if known.
        tolerance: None for that of the candidate, see `tolerance_of`. Pass another one if the backend computes in a
            lower precision than the model.
        source: where the images come from, for the report; empty for the annotation file or their number.
        record: fields that are added to the report.
        at_other_tile: both models again, opened for another tile, to compare their detections on such tiles too.

    Raises:
        ValueError: the models differ in tile size, classes, slots or score floor, or an image cannot be read.
    """
    ours, theirs = candidate.spec, reference.spec
    for name in ("tile", "classes", "max_detections", "grid_rois", "score_floor"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{name} is {getattr(ours, name)} in one model and {getattr(theirs, name)} in the other, so their "
                "outputs cannot be compared; export both from the same checkpoint"
            )
    started = time.monotonic()
    tolerance = tolerance or tolerance_of(ours)
    nms_iou = ours.nms_iou if ours.nms_rounds else None

    step("comparing detections")
    tiles_by_kind = verification_tiles(reference, images)
    expected = {kind: run_in_batches(reference, tiles, 1) for kind, tiles in tiles_by_kind.items()}
    parity = {
        f"{kind}, batch 1": compare(
            expected[kind], run_in_batches(candidate, tiles, 1), ours.score_floor, tolerance, nms_iou=nms_iou
        )
        for kind, tiles in tiles_by_kind.items()
    }
    all_tiles, all_expected = np.concatenate(list(tiles_by_kind.values())), _joined(list(expected.values()))
    for size in sorted({min(3, ours.max_batch), ours.max_batch} - {1}):
        order = np.arange(max(size, len(all_tiles))) % len(all_tiles)
        outputs = run_in_batches(candidate, all_tiles[order], size)
        parity[f"all of them, batch {size}"] = compare(
            _selected(all_expected, order), outputs, ours.score_floor, tolerance, nms_iou=nms_iou
        )
    if at_other_tile is not None:
        known, converted = at_other_tile
        for kind, tiles in verification_tiles(known, images).items():
            parity[f"{kind} of {known.spec.tile} px, batch 1"] = compare(
                run_in_batches(known, tiles, 1),
                run_in_batches(converted, tiles, 1),
                ours.score_floor,
                tolerance,
                nms_iou=nms_iou,
            )
    faults = [fault for what, found in parity.items() for fault in _parity_faults(what, found, tolerance, ours)]

    precision: dict[str, tuple[float, float]] = {}
    scored_images = unconverged = 0
    if dataset is not None:
        scored_images = len(dataset.images[:limit])
        if before is None:
            before = precision_by_size(reference, dataset, limit)
        after, unconverged = _precision(candidate, dataset, limit)
        precision = {name: (before[name], after[name]) for name in before}
        faults += _precision_faults(precision, max_drop)
        if unconverged:
            faults.append(f"average precision: {nms_not_converged(unconverged, ours)}")
    return Verification(
        model=f"{candidate.name}, {ours.precision}",
        reference=f"{reference.name}, {theirs.precision}",
        tolerance=tolerance,
        parity=parity,
        saturated=bool((expected["crowded tile"].candidates > ours.boxes_per_tile).any()),
        precision=precision,
        max_drop=max_drop,
        images=scored_images,
        source=source or (str(dataset.source) if dataset is not None else _count_images(images)),
        seconds=time.monotonic() - started,
        faults=tuple(faults),
        unconverged=unconverged + sum(found.unconverged for found in parity.values()),
        nms_iou=nms_iou,
        record=record or {},
    )


def other_tile(spec: ModelSpec) -> int:
    """Return the side of other tiles that a model for any tile is compared on: half of its own, or twice.

    >>> [other_tile(ModelSpec(("a",), (1,), "d", "b", tile=t, tile_multiple=64)) for t in (640, 192, 128, 64)]
    [320, 64, 64, 128]
    """
    return spec.tile // 2 // spec.tile_multiple * spec.tile_multiple or 2 * spec.tile


def verification_tiles(reference: Backend, images: Sequence[Path]) -> dict[str, NDArray[np.uint8]]:
    """Return tiles (N, T, T, 3) by kind: from the middle of real images, an empty one, and one crowded with objects.

    The crowded tile repeats patches around the best detections of the reference on the real tiles, or is noise if there
    are none.
    """
    spec = reference.spec
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, REAL_TILES).round().astype(int))]
    real = np.stack([middle_tile(path, spec) for path in chosen])
    empty = np.full((1, spec.tile, spec.tile, 3), spec.pad, np.uint8)
    return {
        "real tiles": real,
        "empty tile": empty,
        "crowded tile": _crowded_tile(real, run_in_batches(reference, real, 1))[None],
    }


def middle_tile(path: Path, spec: ModelSpec) -> NDArray[np.uint8]:
    """Return the middle of an image as one tile (T, T, 3), padded if the image is smaller, reduced for a filter."""
    reduction = 1 if spec.tile_filter is None else spec.tile_filter.reduction
    image = np.full((reduction * spec.tile, reduction * spec.tile, 3), spec.pad, np.uint8)
    with open_scene(path, stretch=spec.stretch) as scene:
        width, height = min(len(image), scene.width), min(len(image), scene.height)
        x, y = (scene.width - width) // 2, (scene.height - height) // 2
        image[:height, :width] = scene.read(x, y, width, height, (width, height))
    return image if reduction == 1 else reduced(image, len(image), reduction)


def run_in_batches(backend: Backend, tiles: NDArray[np.uint8], size: int) -> TileOutputs:
    """Run a model on all tiles, `size` at a time; the last batch may be smaller."""
    return _joined([backend.run(tiles[i : i + size]) for i in range(0, len(tiles), size)])


def precision_by_size(backend: Backend, dataset: Dataset, limit: int | None = None) -> dict[str, float]:
    """Return AP at IoU 0.5 by size range, as fractions; -1 where the dataset has no such objects."""
    return _precision(backend, dataset, limit)[0]


def deciding_range(precision: Mapping[str, Any]) -> str:
    """Return the size range whose AP must not drop: tiny if the dataset has tiny objects, else all."""
    value = precision["tiny"]
    return "tiny" if (value[0] if isinstance(value, tuple) else value) >= 0 else "all"


def report_paths(model: Path) -> tuple[Path, Path]:
    """Return the paths of a model's report, next to it: `model.verify.json` and `.md` for `model.onnx`,
    `model.engine.verify.json` and `.md` for `model.engine`."""
    stem = model.name if model.suffix in (".engine", ".plan") else model.stem
    return model.with_name(f"{stem}.verify.json"), model.with_name(f"{stem}.verify.md")


def write_report(verification: Verification, model: Path, more: Mapping[str, Any] | None = None) -> tuple[Path, Path]:
    """Write the report next to the model, as JSON with the additional fields `more`, and as Markdown."""
    data, text = report_paths(model)
    values = asdict(verification)
    record = values.pop("record")
    write_json(data, {"passed": verification.passed, **values, **record, **(more or {})})
    write_text(text, format_report(verification))
    return data, text


def summarize(verification: Verification, model: Path) -> str:
    """Return the lines that an export prints about the verification of `model`."""
    detections = sum(found.detections for found in verification.parity.values())
    unmatched = sum(found.unmatched for found in verification.parity.values())
    lines = [
        f"verified      {plural(detections, 'detection')} compared, {unmatched} unmatched; on {verification.source}"
    ]
    if verification.precision:
        name = deciding_range(verification.precision)
        before, after = verification.precision[name]
        change = f"{100 * before:.2f} before, {100 * after:.2f} after"
        lines.append(f"              AP-{name} {change}, on {plural(verification.images, 'image')}")
        if before < LOW_AP:
            lines.append(
                "              this AP is too low to show a loss; name images like those of the training with --data"
            )
    else:
        lines.append("              AP not measured: no annotations of these classes; name a COCO folder with --data")
    lines.append(f"              report: {report_paths(model)[1]}")
    return "\n".join(lines)


def format_report(verification: Verification) -> str:
    """Return the report as Markdown."""
    v, tolerance = verification, verification.tolerance
    suppressed = "" if v.nms_iou is None else f", or if NMS at IoU {v.nms_iou} removes it"
    lines = [
        f"# {'Passed' if v.passed else 'Failed'}: {v.model}",
        "",
        f"Reference: {v.reference}. Images: {v.source}.",
        "",
        *(f"- {fault}" for fault in v.faults),
        *([""] if v.faults else []),
        f"Two detections match if they have the same class, an IoU above {tolerance.iou} and scores that differ by at "
        f"most {tolerance.score}. Up to {tolerance.unmatched:.0%} of the detections may be unmatched. An unmatched "
        f"detection does not count if it scores about as low as the weakest ones that the model outputs{suppressed}. "
        f"The crowded tile had {'more' if v.saturated else 'no more'} candidates than the model has slots.",
        "",
        "| compared on | tiles | detections | unmatched | largest score difference | largest box difference, px |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {what} | {p.tiles} | {p.detections} | {p.unmatched} | {p.score_difference:.1e} | "
            f"{p.box_difference:.1e} |"
            for what, p in v.parity.items()
        ),
        "",
    ]
    if v.precision:
        lines += [
            f"Average precision at IoU {AP_IOU} on {plural(v.images, 'image')}, protocol {PROTOCOL}, in percent. AP of "
            f"{deciding_range(v.precision)} may drop by {100 * v.max_drop:g} points.",
            "",
            "| objects | before | after | change |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {100 * before:.2f} | {100 * after:.2f} | {100 * (after - before):+.2f} |"
                for name, (before, after) in v.precision.items()
                if before >= 0
            ),
            "",
        ]
    return "\n".join(lines)


def _precision(backend: Backend, dataset: Dataset, limit: int | None) -> tuple[dict[str, float], int]:
    """Return `precision_by_size`, and the number of proposals whose suppression had not converged."""
    total, done = len(dataset.images[:limit]), 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        step("average precision of %s, image %d of %d", backend.name, done, total)

    found = detect_dataset(backend, dataset, limit=limit, progress=count)
    ranges = score_dataset(dataset, found, choose_protocol(PROTOCOL)).to_json()["AP"]
    return {name: float(values[AP_IOU]) for name, values in ranges.items()}, found.unconverged


def _parity_faults(what: str, found: Parity, tolerance: Tolerance, spec: ModelSpec) -> list[str]:
    faults = [f"{what}: {nms_not_converged(found.unconverged, spec)}"] if found.unconverged else []
    if found.unmatched > tolerance.unmatched * found.judged:
        faults.append(
            f"{what}: {found.unmatched} detections are unmatched, too many for {found.judged} that must match "
            f"(IoU {tolerance.iou}, score {tolerance.score})"
        )
    if found.silent:
        faults.append(f"{what}: the model finds nothing, the reference {found.detections} detections")
    if found.candidates_difference > tolerance.candidates:
        faults.append(f"{what}: the numbers of candidates differ by up to {found.candidates_difference:.1%}")
    return faults


def _precision_faults(precision: Mapping[str, tuple[float, float]], max_drop: float) -> list[str]:
    name = deciding_range(precision)
    before, after = precision[name]
    if before - after <= max_drop:
        return []
    return [f"AP-{name} drops from {100 * before:.2f} to {100 * after:.2f}, by more than {100 * max_drop:g} points"]


def _crowded_tile(tiles: NDArray[np.uint8], found: TileOutputs) -> NDArray[np.uint8]:
    """Return a grid of patches around the best detections."""
    size = tiles.shape[1]
    tile, slot = np.nonzero(found.labels >= 0)
    if len(tile) == 0:
        return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    best = np.argsort(-found.scores[tile, slot], kind="stable")[:PATCHES]
    corners = (found.boxes[tile, slot].reshape(-1, 2, 2).mean(axis=1) - PATCH / 2).clip(0, size - PATCH).astype(int)
    patches = [tiles[tile[i], corners[i, 1] :, corners[i, 0] :][:PATCH, :PATCH] for i in best.tolist()]
    cells = -(-size // PATCH)
    rows = [np.hstack([patches[(r * cells + c) % len(patches)] for c in range(cells)]) for r in range(cells)]
    crowded: NDArray[np.uint8] = np.ascontiguousarray(np.vstack(rows)[:size, :size])
    return crowded


def _count_images(images: Sequence[Path]) -> str:
    return f"{len(images)} image{'' if len(images) == 1 else 's'} without annotations"


def _selected(outputs: TileOutputs, tiles: NDArray[np.intp]) -> TileOutputs:
    return TileOutputs(outputs.boxes[tiles], outputs.scores[tiles], outputs.labels[tiles], outputs.candidates[tiles])


def _joined(parts: Sequence[TileOutputs]) -> TileOutputs:
    return TileOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
