"""The ModelSpec of a model in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tinydet._internal.extras import needs_extra
from tinydet.models.registry import DETECTORS
from tinydet.runtime.domain import COLOR
from tinydet.runtime.model_files import read_spec
from tinydet.runtime.score_calibration import describe_thresholds
from tinydet.spec import Domain, ModelSpec


def spec_of(path: Path) -> ModelSpec:
    """Return the ModelSpec of an ONNX file, an adopted OpenVINO IR, an engine or a checkpoint.

    Raises:
        ValueError, OSError: the file is missing, damaged or not a model of tinydet. Names it.
        ModuleNotFoundError: it is a checkpoint, and torch is not installed.
    """
    if path.suffix not in (".pth", ".pt"):
        return read_spec(path)
    with needs_extra("train"):
        from tinydet.models.checkpoint import load_checkpoint
    return load_checkpoint(path).spec()


def spec_rows(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Yield what a model takes, finds and was trained on, as label and text."""
    info = DETECTORS.get(spec.detector)
    yield "finds", ", ".join(spec.classes)
    yield "network", f"{spec.detector if info is None else info.label} with {spec.backbone}, {spec.precision}"
    tile = f"tiles of {spec.tile} x {spec.tile} pixels"
    if spec.tile_multiple:
        tile += f" by default, any multiple of {spec.tile_multiple}"
    yield "input", f"{tile}, up to {spec.max_batch} at once"
    nms = f"overlapping boxes of one class (IoU above {spec.nms_iou:g}) are removed "
    nms += "in the graph" if spec.nms_in_graph else "by the runtime"
    if spec.is_adopted and spec.nms_in_graph:
        nms = "overlapping boxes are removed by the original, if it needs that"
    yield "output", f"up to {spec.boxes_per_tile} boxes per tile with a score of {spec.score_floor:g} or more"
    yield "", nms
    if spec.object_sizes is not None:
        low, middle, high = spec.object_sizes
        yield "objects", f"trained on {low:g} to {high:g} pixels (1 to 99 %), median {middle:g}"
    if spec.domain is not None:
        yield from _domain_rows(spec.domain, spec.classes)
    if spec.alpha:
        yield "alpha", f"{', '.join(f'{a:.3g}' for a in spec.alpha)}: {spec.alpha_source}"
    if spec.thresholds:
        yield "thresholds", describe_thresholds(spec)
    if spec.calibration:
        yield "calibrated", spec.calibration_source
    if spec.engine:
        yield "engine", ", ".join(f"{key} {value}" for key, value in spec.engine.items() if key != "sha256")
    if spec.versions:
        yield "made with", ", ".join(f"{name} {version}" for name, version in spec.versions.items())


def _domain_rows(domain: Domain, classes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, (low, middle, high) in zip(classes, domain.class_sizes, strict=False):
        if high:
            yield "", f"{name}: {low:.3g} to {high:.3g} pixels, median {middle:.3g}"
    kind = "gray" if domain.chroma[2] <= COLOR else "color" if domain.chroma[0] > COLOR else "gray and color"
    low, _, high = domain.brightness
    yield (
        "images",
        f"{kind}, brightness {low:.0f} to {high:.0f} of 255 (5 to 95 % of {domain.images} that were measured)",
    )
    if domain.gsd is not None:
        yield "", f"{domain.gsd[0]:.3g} to {domain.gsd[2]:.3g} m per pixel on the ground"
