"""Detectors with seeded random weights and conversions of every layer, for measurements without regard to accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinydet._internal.extras import needs_extra
from tinydet.export.verify import middle_tile
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.registry import detector_info, recommended_options
from tinydet.spec import METADATA_KEY, ModelSpec
from tinydet.train.config import PRESETS


def write_random_checkpoint(
    path: Path, detector: str, backbone: str, preset: str, tile: int, images: Sequence[Path]
) -> None:
    """Write a checkpoint with two classes.

    Batch norms have the statistics of `images`, so activations have the usual range. Weights of the last layers and the
    score bias are set so that some hundred boxes score above 0.05.
    """
    tiles = _tiles(images, tile)
    info = detector_info(detector)
    options = recommended_options(detector, preset)
    if "head_init" in info.option_names:
        options["head_init"] = "he"
    torch.manual_seed(0)
    config = DetectorConfig(backbone, PRESETS[preset]["channels"], "batch", 2, detector, options=options)
    network = build_detector(config, (0.368, 0.387, 0.367)[: len(info.pyramid.edges)])
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # average over all batches
    with torch.no_grad():
        network.backbone.train()(tiles)
    for name, values in network.named_parameters():  # far enough from zero for differences to show
        if name.endswith(("cls_logits.weight", "bbox_reg.weight", "cls_score.weight", "bbox_pred.weight")):
            torch.nn.init.normal_(values, std=0.05)
    _spread_scores(network.eval(), tiles[:1])
    save_checkpoint(Checkpoint(config, network.state_dict(), ("person", "car"), (1, 2), tile=tile), path)


def write_converted(source: Path, output: Path, precision: str, calibration: Sequence[Path], method: Any) -> str:
    """Convert every layer of an ONNX file to FP16 or INT8, without verification; return the types of its weights.

    Args:
        calibration: the images on which INT8 ranges are measured. `method`: how, as in `tinydet export onnx`.
    """
    with needs_extra("export"):
        import onnx
    from tinydet.export.fp16 import to_fp16
    from tinydet.export.int8 import calibrate, to_int8
    from tinydet.export.onnx_model import graph_precision
    from tinydet.runtime.backends import open_model

    model, spec = onnx.load(str(source)), open_model(source, "onnx-cpu").spec
    ranges = calibrate(source, calibration, spec, method) if precision == "int8" else None
    converted = to_fp16(model) if ranges is None else to_int8(model, ranges)
    weights, found = graph_precision(converted.graph)
    del converted.metadata_props[:]
    converted.metadata_props.add(key=METADATA_KEY, value=replace(spec, precision=found, onnx_sha256=None).to_json())
    output.write_bytes(converted.SerializeToString())
    return weights


@torch.no_grad()
def _spread_scores(network: Detector, tile: torch.Tensor) -> None:
    """Scale the class logits and set their bias so that about 300 candidates on the tile score above 0.05.

    More would fill the output and hide differences. With a background class no proposal on a uniform tile scores that
    high, because rounding decides which of many equal proposals are kept.
    """
    (name,) = (name for name, (_, rows) in network.class_layers().items() if rows == 1)
    last: Any = network.get_submodule(name)

    def logits(images: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        with last.register_forward_hook(lambda layer, inputs, output: outputs.append(output)):
            network(images)
        return torch.cat([(each[:, 1:] - each[:, :1] if network.background else each).flatten() for each in outputs])

    last.bias.zero_()
    found = logits(tile)
    scale = 1.5 / found.std()
    last.weight *= scale
    shift = 3 + (scale * found).topk(300).values[-1]
    if network.background:
        last.bias[0] = torch.maximum(shift, 3 + logits(torch.zeros_like(tile)).max())  # of the background class
    else:
        last.bias -= shift


def _tiles(images: Sequence[Path], side: int) -> torch.Tensor:
    """Return the central tile of each image, (N, 3, T, T), roughly normalized."""
    spec = ModelSpec(("any",), (1,), "retinanet", "any", tile=side)
    tiles = np.stack([middle_tile(path, spec) for path in images])
    return (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() - 120) / 58
