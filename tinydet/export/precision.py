"""Convert an exported FP32 model to FP16 or INT8, as far as the accuracy allows. Needs no torch.

The precision is part of the graph, so that no build flag can be forgotten. If the converted model loses too much, the
most sensitive layers go back to FP32: see `tinydet.export.layer_search`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinydet._internal.atomic import atomic_path, write_text
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet.data.coco import Dataset
from tinydet.export.fp16 import layers_beyond_fp16, to_fp16
from tinydet.export.int8 import Method, calibrate, to_int8
from tinydet.export.layer_search import search_layers
from tinydet.export.layers import layers_of
from tinydet.export.onnx_model import description_path, graph_precision, read_onnx
from tinydet.export.parity import disagreement, tolerance_of
from tinydet.export.steps import step
from tinydet.export.verify import (
    MAX_DROP,
    REFERENCE_BACKEND,
    Verification,
    middle_tile,
    other_tile,
    precision_by_size,
    run_in_batches,
    verify,
    write_report,
)
from tinydet.runtime.backends import Backend, open_model
from tinydet.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["fp16", "int8"]

SEARCH_IMAGES = 30  # upper limit; measuring one set of layers takes minutes on more


@dataclass(frozen=True)
class Conversion:
    """A converted model and its verification.

    Attributes:
        kept: layers that stayed in FP32, by the names of their weights.
        layers: number of layers, including those.
        sensitivity: see `LayerSearch`; empty if no search was needed.
        weights: number of constants by type.
        seconds: wall time, search included.
    """

    path: Path
    spec: ModelSpec
    bytes: int
    kept: tuple[str, ...]
    layers: int
    sensitivity: dict[str, float]
    weights: dict[str, int]
    verification: Verification
    seconds: float


def convert(
    source: Path,
    output: Path,
    precision: Precision,
    images: Sequence[Path],
    dataset: Dataset | None = None,
    *,
    calibration: Sequence[Path] = (),
    method: Method = "max",
    limit: int | None = SEARCH_IMAGES,
    max_drop: float = MAX_DROP,
    origin: str = "",
    record: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert the FP32 model `source` and write `output`, its `.json` and its verification report.

    Args:
        images, dataset, limit, max_drop: for the verification, see `tinydet.export.verify.verify`. A search measures AP
            on at most 30 images; its result is verified on all of them.
        calibration: images that the INT8 ranges are measured on, best not those that verify; none: `images`.
        origin, record: where the images come from, see `source` and `record` of `verify`.
        method: INT8 calibration method. Tiny objects stand out by large activations, which "max" does not clip.

    Raises:
        ValueError: the source is not FP32, or no conversion stays within `max_drop`.
        OSError: a file cannot be written. An existing output is kept.
    """
    with needs_extra("export"):
        import onnx
    started = time.monotonic()
    exported = read_onnx(source)
    if exported.precision != "fp32":
        raise ValueError(f"{source} is already {exported.precision}; convert the FP32 file that it was made from")
    model = onnx.load(str(source))
    layers = layers_of(model.graph)
    sidecar = description_path(output, ".onnx")
    reference = open_model(source, REFERENCE_BACKEND)
    search_images = images[:: -(-len(images) // SEARCH_IMAGES)]
    few = dataset is None or len(dataset.images[:limit]) <= SEARCH_IMAGES
    search_limit = limit if few else SEARCH_IMAGES

    ranges: Any = None
    beyond_fp16: set[str] = set()
    if precision == "int8":
        step(f"calibrating on {plural(len(calibration or images), 'image')}")
        ranges = calibrate(source, calibration or images, exported.spec, method)
    else:
        step(f"measuring activation ranges on {plural(len(search_images), 'image')}")
        beyond_fp16 = layers_beyond_fp16(model.graph, calibrate(source, search_images, exported.spec, "max"))

    @functools.cache
    def reference_precision(limit: int | None) -> dict[str, float] | None:
        if dataset is None:
            return None
        return precision_by_size(reference, dataset, limit)

    with atomic_path(output) as temporary:

        def write(kept: Collection[str]) -> ModelSpec:
            keeping = {*kept, *beyond_fp16}
            converted = to_fp16(model, keeping) if precision == "fp16" else to_int8(model, ranges, keeping)
            return _write_model(converted, temporary, exported.spec)

        def check(kept: Collection[str], limit: int | None) -> Verification:
            write(kept)
            other = other_tile(exported.spec) if exported.spec.tile_multiple else None
            both = [open_model(path, REFERENCE_BACKEND, tile=other) for path in (source, temporary) if other]
            return verify(
                reference,
                open_model(temporary, REFERENCE_BACKEND),
                images,
                dataset,
                limit=limit,
                max_drop=max_drop,
                before=reference_precision(limit),
                tolerance=tolerance_of(exported.spec, precision),
                source=origin,
                record=record,
                at_other_tile=(both[0], both[1]) if both else None,
            )

        def sensitivity_of(converted: Collection[str]) -> float:
            write(layers.keys() - set(converted))
            return _disagreement(reference, open_model(temporary, REFERENCE_BACKEND), search_images)

        step(f"converting {plural(len(layers), 'layer')}")
        kept: tuple[str, ...] = ()
        sensitivity: dict[str, float] = {}
        verification = check(kept, limit)
        if not verification.passed:
            faults = "; ".join(verification.faults)
            found = search_layers(list(layers), sensitivity_of, lambda kept: check(kept, search_limit).passed)
            if found is None or len(found.kept) == len(layers):
                raise ValueError(
                    f"{output} was not written: no layer can be {precision} within the allowed drop of {max_drop} "
                    f"({faults}); allow more with --max-drop, calibrate on other images, or export --precision fp32"
                )
            kept, sensitivity = found.kept, found.sensitivity
            verification = check(kept, limit)
            if not verification.passed:
                raise ValueError(
                    f"{output} was not written: the layers that the search kept are not enough on all images "
                    f"({'; '.join(verification.faults)}); allow more with --max-drop, calibrate on other images, or "
                    "export --precision fp32"
                )
        kept = tuple(name for name in layers if name in beyond_fp16 or name in kept)
        spec = write(kept)
        if spec.precision != precision:
            raise ValueError(
                f"{output} was not written: {len(kept)} of {len(layers)} layers must stay in FP32, and with them most "
                "weights; use the FP32 file, or train with more weight decay or clipped gradients"
            )
        spec = replace(spec, onnx_sha256=read_onnx(temporary).sha256)
    write_text(sidecar, spec.to_json() + "\n")
    hashes = {"sha256": spec.onnx_sha256, "reference_sha256": exported.sha256}  # `auto` runs what was verified
    write_report(verification, output, {"kept_in_fp32": list(kept), "shares": sensitivity, **hashes})
    weights, _ = graph_precision(onnx.load(str(output)).graph)
    return Conversion(
        path=output,
        spec=spec,
        bytes=output.stat().st_size,
        kept=kept,
        layers=len(layers),
        sensitivity=sensitivity,
        weights=weights,
        verification=verification,
        seconds=time.monotonic() - started,
    )


def _write_model(model: ModelProto, path: Path, spec: ModelSpec) -> ModelSpec:
    """Write a graph with its description, whose precision is that of the graph; return the description."""
    _, precision = graph_precision(model.graph)
    spec = replace(spec, precision=precision, onnx_sha256=None)
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    path.write_bytes(model.SerializeToString())
    return spec


def _disagreement(reference: Backend, candidate: Backend, images: Sequence[Path]) -> float:
    tiles = np.stack([middle_tile(path, reference.spec) for path in images])
    return disagreement(run_in_batches(reference, tiles, 1), run_in_batches(candidate, tiles, 1))
