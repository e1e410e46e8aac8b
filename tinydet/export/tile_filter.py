"""Calibrate a tile filter again after its graph was converted to another precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinydet._internal.shell import tinydet_command
from tinydet.data.source import find_source
from tinydet.evaluate.store import Target, store
from tinydet.evaluate.tile_filter import calibrated, measure_filter
from tinydet.export.steps import step
from tinydet.export.verification_images import OwnData
from tinydet.export.verify import REFERENCE_BACKEND
from tinydet.runtime.backends import open_model
from tinydet.runtime.model_files import read_spec
from tinydet.spec import FilterRecord


def recalibrate(path: Path, data: Path | None, own: OwnData) -> FilterRecord:
    """Choose the thresholds of a tile filter by its scores, and store them in its file.

    Args:
        data: annotated images that did not train it; None: its held-out images.
        own: data of the filter.

    Raises:
        ValueError: there are no such images, or they have no objects.
    """
    spec = read_spec(path)
    record = spec.tile_filter
    assert record is not None
    source = own.val if data is None else find_source(data, prefer=("val", "test"), needs_images=True)
    if source is None:
        again = tinydet_command("export", "onnx", "MODEL.filter.onnx", "--precision", spec.precision, "--data", "DATA")
        raise ValueError(
            f"{path} needs a new calibration, because its scores differ from those of the file that it was made from, "
            f"and its held-out images are gone; name annotated images that did not train it: {again}"
        )
    dataset = source.load(categories=record.classes, allow_absent=True)
    step("calibrating on %s", source.describe())
    sides = [tile // record.reduction for tile in record.tiles]
    backends = [open_model(path, REFERENCE_BACKEND, tile=side) for side in sides]
    scores = measure_filter(backends, dataset, reduction=record.reduction, scale=record.scale)
    thresholds, record = calibrated(scores, record)
    record = replace(record, precision=spec.precision, source=source.describe())
    store(Target(path, path, spec), replace(spec, thresholds=thresholds, tile_filter=record))
    return record
