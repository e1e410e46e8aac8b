"""The parity gate: a converted model against the one that it was made from, before anybody relies on it.

Two questions. Do both give the same detections, as sets, on real tiles, an empty one and a crowded one, in every batch
size? And is the average precision of each size range still there, by the protocol that `tinydet evaluate` uses? No
torch: an engine is verified on the machine that it was built on, against its ONNX file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import write_json, write_text
from tinydet.data.coco import Dataset
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.score_model import detect_dataset, score_dataset
from tinydet.export.parity import TOLERANCES, Parity, Tolerance, compare
from tinydet.runtime.backends import Backend, TileOutputs
from tinydet.runtime.scan import unsettled
from tinydet.runtime.scenes import open_scene
from tinydet.spec import ModelSpec

PROTOCOL = "coco"
JUDGE = "onnx-cpu"  # what runs an ONNX file that others are compared with: CUDA's FP32 is TF32 unless told otherwise
CONVERSION = ("kept_in_fp32", "shares")  # of a report: what only the conversion knows
AP_IOU = "0.50"
MAX_DROP = 0.005  # of AP-tiny, as a fraction
REAL_TILES = 4
PATCH = 32  # pixels: what is cut around a small object to make the crowded tile


@dataclass(frozen=True)
class Verification:
    """What the gate saw.

    Attributes:
        model, reference: what ran each, in words.
        parity: by what was compared.
        saturated: whether the crowded tile had more candidates than the model has slots.
        precision: AP at IoU 0.5 by size range, (before, after), as fractions; -1 where the data has no such objects.
            Empty where the images have no annotations.
        images: how many AP was measured on; `source`: what they are.
        faults: why the model must not be used; empty when the gate is passed.
        nms_iou: of the suppression that forgives a box without a partner, see `compare`; None: it forgives none.
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
    nms_iou: float | None = None

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
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare `candidate` with `reference`.

    Args:
        images: pictures that real tiles are cut from, spread over the whole list.
        dataset: annotated images that AP is measured on; None: no AP.
        limit: the first so many images of it only; None for all.
        max_drop: of AP-tiny (of AP of all sizes where the data has nothing tiny), as a fraction.
        before: the reference's `precision_by_size` on the same images, where it is known.
        tolerance: None: that of the candidate's precision; its backend may compute in a lower one.
        progress: is told what is going on.

    Raises:
        ValueError: two models that do not take the same tiles or name the same classes; an image that cannot be read.
    """
    ours, theirs = candidate.spec, reference.spec
    for name in ("tile", "classes", "max_detections", "score_floor"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{name} is {getattr(ours, name)} in one model and {getattr(theirs, name)} in the other, so their "
                "answers cannot be compared; export both from one checkpoint"
            )
    say = progress or (lambda _: None)
    started = time.monotonic()
    tolerance = tolerance or TOLERANCES[ours.precision]
    say("comparing detections")
    kinds = gate_tiles(reference, images)
    wanted = {kind: run_in_batches(reference, tiles, 1) for kind, tiles in kinds.items()}
    nms_iou = ours.nms_iou if ours.nms_rounds else None
    parity = {
        f"{kind}, batch 1": compare(
            wanted[kind], run_in_batches(candidate, tiles, 1), ours.score_floor, tolerance, nms_iou=nms_iou
        )
        for kind, tiles in kinds.items()
    }
    all_tiles, all_wanted = np.concatenate(list(kinds.values())), _joined(list(wanted.values()))
    for size in sorted({min(3, ours.max_batch), ours.max_batch} - {1}):
        order = np.arange(max(size, len(all_tiles))) % len(all_tiles)
        answers = run_in_batches(candidate, all_tiles[order], size)
        known = all_wanted
        again = TileOutputs(known.boxes[order], known.scores[order], known.labels[order], known.candidates[order])
        parity[f"all of them, batch {size}"] = compare(again, answers, ours.score_floor, tolerance, nms_iou=nms_iou)
    faults = [fault for what, found in parity.items() for fault in _parity_faults(what, found, tolerance, ours)]

    precision: dict[str, tuple[float, float]] = {}
    looked_at = 0
    if dataset is not None:
        looked_at = len(dataset.images[:limit])
        if before is None:
            say(f"average precision of the reference, {looked_at} images")
            before = precision_by_size(reference, dataset, limit)
        say(f"average precision of the model, {looked_at} images")
        after, unconverged = _precision(candidate, dataset, limit)
        precision = {name: (before[name], after[name]) for name in before}
        faults += _precision_faults(precision, max_drop)
        if unconverged:
            faults.append(f"average precision: {unsettled(unconverged, ours)}")
    return Verification(
        model=f"{candidate.name}, {ours.precision}",
        reference=f"{reference.name}, {theirs.precision}",
        tolerance=tolerance,
        parity=parity,
        saturated=bool((wanted["crowded tile"].candidates > ours.max_detections).any()),
        precision=precision,
        max_drop=max_drop,
        images=looked_at,
        source=str(dataset.source) if dataset is not None else f"{len(images)} images without annotations",
        seconds=time.monotonic() - started,
        faults=tuple(faults),
        nms_iou=nms_iou,
    )


def gate_tiles(reference: Backend, images: Sequence[Path]) -> dict[str, NDArray[np.uint8]]:
    """Tiles (N, T, T, 3) to compare on: from the middle of real images, an empty one, and one crowded with objects.

    The crowded one repeats what the reference found best on the real ones; where it found nothing it is noise.
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
    """The middle of a picture as a model's tile (T, T, 3), padded where the picture is smaller."""
    image = np.full((spec.tile, spec.tile, 3), spec.pad, np.uint8)
    with open_scene(path, stretch=spec.stretch) as scene:
        width, height = min(spec.tile, scene.width), min(spec.tile, scene.height)
        x, y = (scene.width - width) // 2, (scene.height - height) // 2
        image[:height, :width] = scene.read(x, y, width, height, (width, height))
    return image


def run_in_batches(backend: Backend, tiles: NDArray[np.uint8], size: int) -> TileOutputs:
    """Answers for all tiles, `size` at a time; the last batch may be smaller."""
    return _joined([backend.run(tiles[i : i + size]) for i in range(0, len(tiles), size)])


def precision_by_size(backend: Backend, dataset: Dataset, limit: int | None = None) -> dict[str, float]:
    """AP at IoU 0.5 of each size range, as fractions; -1 where there are no such objects."""
    return _precision(backend, dataset, limit)[0]


def deciding_range(precision: Mapping[str, Any]) -> str:
    """The size range whose AP must not drop: tiny, where there are such objects."""
    value = precision["tiny"]
    return "tiny" if (value[0] if isinstance(value, tuple) else value) >= 0 else "all"


def report_paths(model: Path) -> tuple[Path, Path]:
    """Where the report of a model lies: beside it; `model.verify.md` is of model.onnx, `model.engine.verify.md` of an
    engine of that name.
    """
    stem = model.name if model.suffix in (".engine", ".plan") else model.stem
    return model.with_name(f"{stem}.verify.json"), model.with_name(f"{stem}.verify.md")


def write_report(verification: Verification, model: Path, more: Mapping[str, Any] | None = None) -> tuple[Path, Path]:
    """Write the report beside the model, as JSON (with what `more` holds) and as Markdown."""
    data, text = report_paths(model)
    write_json(data, {"passed": verification.passed, **asdict(verification), **(more or {})})
    write_text(text, format_report(verification))
    return data, text


def format_report(verification: Verification) -> str:
    """The report as Markdown."""
    v, tolerance = verification, verification.tolerance
    forgiven = "" if v.nms_iou is None else f", nor what suppression at IoU {v.nms_iou} removes"
    lines = [
        f"# {'Passed' if v.passed else 'Failed'}: {v.model}",
        "",
        f"Reference: {v.reference}. Images: {v.source}.",
        "",
        *(f"- {fault}" for fault in v.faults),
        *([""] if v.faults else []),
        f"Two detections are the same where their class is, IoU > {tolerance.iou} and scores differ by at most "
        f"{tolerance.score}. Of those that need a partner {tolerance.unmatched:.0%} may lack it; one about as weak as "
        f"what is cut off needs none{forgiven}. The crowded tile "
        f"{'had' if v.saturated else 'did not have'} more candidates than the model has slots.",
        "",
        "| compared on | tiles | detections | unmatched | score, largest difference | box, pixels |",
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
            f"Average precision at IoU {AP_IOU} on {v.images} images, protocol {PROTOCOL}, percent; "
            f"{deciding_range(v.precision)} may drop by {100 * v.max_drop:g}.",
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
    """`precision_by_size`, and how many proposals did not settle meanwhile."""
    found = detect_dataset(backend, dataset, limit=limit, progress=True)
    ranges = score_dataset(dataset, found, choose_protocol(PROTOCOL)).to_json()["AP"]
    return {name: float(values[AP_IOU]) for name, values in ranges.items()}, found.unconverged


def _parity_faults(what: str, found: Parity, tolerance: Tolerance, spec: ModelSpec) -> list[str]:
    faults = [f"{what}: {unsettled(found.unconverged, spec)}"] if found.unconverged else []
    if found.unmatched > tolerance.unmatched * found.judged:
        faults.append(
            f"{what}: {found.unmatched} detections have no partner; the reference has {found.judged} that need one "
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
    return [f"AP-{name} falls from {100 * before:.2f} to {100 * after:.2f}, by more than {100 * max_drop:g} points"]


def _crowded_tile(tiles: NDArray[np.uint8], found: TileOutputs) -> NDArray[np.uint8]:
    """A lattice of patches around the sixteen best detections."""
    size = tiles.shape[1]
    which, slot = np.nonzero(found.labels >= 0)
    if len(which) == 0:
        return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    best = np.argsort(-found.scores[which, slot], kind="stable")[:16]
    corners = (found.boxes[which, slot].reshape(-1, 2, 2).mean(axis=1) - PATCH / 2).clip(0, size - PATCH).astype(int)
    patches = [tiles[which[i], corners[i, 1] :, corners[i, 0] :][:PATCH, :PATCH] for i in best.tolist()]
    cells = -(-size // PATCH)
    rows = [np.hstack([patches[(r * cells + c) % len(patches)] for c in range(cells)]) for r in range(cells)]
    crowded: NDArray[np.uint8] = np.ascontiguousarray(np.vstack(rows)[:size, :size])
    return crowded


def _joined(parts: Sequence[TileOutputs]) -> TileOutputs:
    return TileOutputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
