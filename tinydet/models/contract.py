"""Try a registered detector and its backbone on two small tiles, before data are read and hours of training begin.

The rules are those of docs/extending.md. The detectors and backbones of tinydet have tests instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tinydet._internal.arguments import quoted
from tinydet._internal.errors import line_in, reason
from tinydet.data.samples import Sample
from tinydet.models.backbone import Backbone
from tinydet.models.batch import Batch, collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.detector import Detector
from tinydet.models.fpn import PlainFPN
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.losses import total
from tinydet.models.registry import detector_info
from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.backends.contract import check_outputs, output_shapes
from tinydet.spec import ModelSpec

TILE = 128  # pixels, or more if the detector's tiles are multiples of a larger number
STRIDES = (4, 8, 16, 32)
HINT = 'see "The contract" in docs/extending.md'


class ContractError(ValueError):
    """A detector or backbone that does not do what the rest of tinydet needs."""


def check_contract(config: DetectorConfig, device: torch.device) -> None:
    """Build a detector with random weights, and check its attributes, features, losses, levels and outputs.

    Random numbers that follow are not affected.

    Raises:
        ContractError: names the detector, the rule and what came instead; for an exception its file and line.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        name = f"detector {config.detector}"
        with _step(name, "`load`", []):
            loaded: object = detector_info(config.detector).load()
        if not (isinstance(loaded, type) and issubclass(loaded, Detector)):
            raise ContractError(f"{name}: `load` must return a subclass of Detector, not {quoted(loaded)}; {HINT}")
        code: list[object] = [loaded]
        with _step(name, "the constructor", code):
            detector = build_detector(config).to(device)
        for attribute, kind in (("backbone", Backbone), ("fpn", PlainFPN)):
            if not isinstance(value := getattr(detector, attribute, None), kind):
                raise ContractError(f"{name}: `{attribute}` must be a {kind.__name__}, not {quoted(value)}; {HINT}")
        if not hasattr(detector, "design"):
            raise ContractError(f"{name}: the attribute `design` is missing; {HINT}")
        code.append(type(detector.backbone))
        _check_features(detector.backbone, f"backbone {config.backbone}", device, code)
        _check_statistics(config, code)
        _check_losses(detector.train(), name, device, code)
        _check_inference(detector, config, name, device, code)


def _check_features(backbone: Backbone, name: str, device: torch.device, code: Sequence[object]) -> None:
    height, width = 64, 96
    with _step(name, "forward(images)", code), torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, height, width, device=device))
    wanted = [(1, c, height // s, width // s) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    found = [tuple(each.shape) if isinstance(each, Tensor) else quoted(each) for each in features]
    if found != wanted:
        raise ContractError(
            f"{name}: for images of {height} x {width} pixels, forward(images) must return C2..C5 with the shapes "
            f"{wanted}, not {found}; {HINT}"
        )


def _check_statistics(config: DetectorConfig, code: Sequence[object]) -> None:
    info, name = detector_info(config.detector), f"detector {config.detector}"
    sides = np.array([4.0, 16.0, 64.0])
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    sizes, index = np.full((2, 2), TILE, np.int64), np.array([0, 0, 1], np.int64)
    for statistic in info.statistics.values():
        for some in (slice(3), slice(0)):
            with _step(name, "counts(boxes, sizes, image_index, options) of a statistic", code):
                counts = statistic.counts(boxes[some], sizes, index[some], config.options)
            try:
                statistic.checked(counts, info.pyramid.levels)
            except ValueError as error:
                raise ContractError(f"{name}: {error}; {HINT}") from error


def _check_losses(detector: Detector, name: str, device: torch.device, code: Sequence[object]) -> None:
    for objects in (2, 0):
        step = f"loss(batch) of a batch with {objects or 'no'} objects"
        with _step(name, step, code):
            losses: object = detector.loss(_batch(objects, detector, device))
        named = isinstance(losses, dict) and losses and all(isinstance(key, str) for key in losses)
        if not named or not isinstance(losses, dict):
            raise ContractError(f"{name}: {step} must return a dict of named losses, not {quoted(losses)}; {HINT}")
        for key, value in losses.items():
            if not isinstance(value, Tensor) or value.ndim:
                kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else quoted(value)
                raise ContractError(f"{name}: {step}: {key!r} must be a scalar tensor, not {kind}; {HINT}")
            if not torch.isfinite(value):
                raise ContractError(f"{name}: {step}: {key!r} is {float(value.detach())}; {HINT}")
        if not total(losses).requires_grad:
            raise ContractError(f"{name}: {step}: no loss has a gradient, so nothing would be learned; {HINT}")


def _check_inference(
    detector: Detector, config: DetectorConfig, name: str, device: torch.device, code: Sequence[object]
) -> None:
    tile = detector_info(config.detector).fit_tile(TILE)
    spec = ModelSpec(
        classes=tuple(f"class {i}" for i in range(config.classes)),
        category_ids=tuple(range(config.classes)),
        detector=config.detector,
        backbone=config.backbone,
        tile=tile,
        max_detections=10,
        nms_rounds=detector_info(config.detector).nms_rounds,
        grid_rois=min(10, detector_info(config.detector).grid_rois),
    )
    with _step(name, "inference(spec)", code), torch.no_grad():
        graph = InferenceGraph(detector, spec).to(device)
        outputs: object = graph(torch.zeros(2, tile, tile, 3, dtype=torch.uint8, device=device))
    names = list(output_shapes(spec))
    if not isinstance(outputs, tuple | list) or [isinstance(each, Tensor) for each in outputs] != [True] * len(names):
        found = f"{len(outputs)} values" if isinstance(outputs, tuple | list) else quoted(outputs)
        raise ContractError(f"{name}: inference(spec) must return the tensors {', '.join(names)}, not {found}; {HINT}")
    try:
        check_outputs(TileOutputs(*(each.cpu().numpy() for each in outputs)), spec, 2, name=name)
    except ValueError as error:
        fault = str(error).partition(": ")[2].partition(";")[0]  # without the remedies for an exported model
        raise ContractError(f"{name}: inference(spec): {fault}; {HINT}") from error


def _batch(objects: int, detector: Detector, device: torch.device) -> Batch:
    """Return two gray tiles; the first has the objects."""
    sides = np.array([12.0, 24.0], np.float32)[:objects]
    low = np.float32(40)
    boxes = np.stack([low + 0 * sides, low + 0 * sides, low + sides, low + sides], axis=1)
    nothing = np.zeros((0, 4), np.float32)
    pixels = np.full((TILE, TILE, 3), 128, np.uint8)
    labels = np.zeros(objects, np.int64)
    samples = [Sample(pixels, boxes, labels, nothing), Sample(pixels, nothing, labels[:0], nothing)]
    return collate(samples, device, detector.backbone.pixels, multiple=detector.tile_multiple)


@contextmanager
def _step(name: str, what: str, code: Sequence[object]) -> Iterator[None]:
    """Raise an exception of the block as ContractError in one line, with its place in the user's files."""
    try:
        yield
    except NotImplementedError as error:
        raise ContractError(f"{name}: {what} is missing; {HINT}") from error
    except Exception as error:  # of the user's code
        files = [getattr(sys.modules.get(getattr(each, "__module__", "")), "__file__", None) for each in code]
        place = line_in(error, [file for file in files if file])
        where = f" ({place[0]}, line {place[1]})" if place else ""
        raise ContractError(
            f"{name}: {what} raised {type(error).__name__}: {reason(error)}{where}; {HINT}; "
            "TINYDET_TRACEBACK=1 shows the traceback"
        ) from error
