"""What a foreign file says about itself: classes, pixels and thresholds, in the metadata of several exporters."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinydet._internal.json_files import read_json
from tinydet.export.adopt.formats.format import Color, Pixels

LONGEST = 1 << 20  # characters of a metadata value that are parsed
PIPELINE = "pipeline.json"  # what mmdeploy's --dump-info writes next to the model


@dataclass(frozen=True)
class Description:
    """What metadata say; None where they are silent.

    Attributes:
        classes: names in the order of the labels.
        pixels: how pixels must be fed.
        tile: side of the input in pixels that it was exported or trained with.
        stride: sides must be a multiple of this.
        batch: largest batch that the graph's NMS was unrolled for.
        nms_iou: threshold of NMS.
        source: which exporter wrote them, for display.
    """

    classes: tuple[str, ...] | None = None
    pixels: Pixels | None = None
    tile: int | None = None
    stride: int | None = None
    batch: int | None = None
    nms_iou: float | None = None
    source: str = ""


def describe(path: Path, metadata: Mapping[str, str]) -> Description:
    """Read the metadata of Ultralytics, model_api and mmdeploy (`pipeline.json` next to the file)."""
    if any(key.startswith("model_info ") for key in metadata):
        return _of_model_api({key.removeprefix("model_info "): value for key, value in metadata.items()})
    if "names" in metadata:
        return _of_ultralytics(metadata)
    pipeline = path.with_name(PIPELINE)
    return _of_mmdeploy(pipeline) if pipeline.is_file() else Description()


def _of_ultralytics(metadata: Mapping[str, str]) -> Description:
    names, size = _literal(metadata.get("names", "")), _literal(metadata.get("imgsz", ""))
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names)] if all(isinstance(key, int) for key in names) else None
    arguments = _literal(metadata.get("args", ""))
    unrolled = isinstance(arguments, dict) and bool(arguments.get("nms"))
    return Description(
        classes=tuple(map(str, names)) if isinstance(names, list | tuple) and names else None,
        tile=max(size) if isinstance(size, list | tuple) and size and all(isinstance(n, int) for n in size) else None,
        stride=_whole(metadata.get("stride", "")),
        batch=_whole(metadata.get("batch", "")) if unrolled else None,
        source="Ultralytics",
    )


def _of_model_api(info: Mapping[str, str]) -> Description:
    """Read `model_info`. Label names have underscores for spaces; pixels are subtracted and divided without scaling."""
    labels = tuple(name.replace("_", " ") for name in info.get("labels", "").split())
    mean, std = (_numbers(info.get(key, "")) for key in ("mean_values", "scale_values"))
    color: Color = "bgr" if info.get("reverse_input_channels", "").lower() in ("true", "yes", "1") else "rgb"
    if info.get("model_type", "").lower() in ("yolov5", "yolov8", "yolo11"):  # they reverse OpenCV's BGR images
        color = "rgb"
    pixels = Pixels(1.0, mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0), color)
    if info.get("embedded_processing", "").lower() in ("true", "yes", "1"):
        pixels = Pixels(1.0, color="rgb")
    iou = _numbers(info.get("iou_threshold", "") + " 0 0")
    return Description(
        classes=labels or None, pixels=pixels, nms_iou=iou[0] if iou and iou[0] > 0 else None, source="model_api"
    )


def _of_mmdeploy(path: Path) -> Description:
    try:
        tasks = read_json(path)["pipeline"]["tasks"]
        steps = [step for task in tasks for step in task.get("transforms", ())]
        (step,) = [step for step in steps if step.get("type") == "Normalize"]
        mean, std = (_numbers(" ".join(map(str, step[key]))) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Description()
    if mean is None or std is None:
        return Description()
    color: Color = "rgb" if step.get("to_rgb", False) else "bgr"
    return Description(pixels=replace(Pixels(1.0, mean, std), color=color), source=str(path))


def _literal(text: str) -> Any:
    """Parse a Python or JSON literal; None if it is none."""
    if len(text) > LONGEST:
        return None
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _whole(text: str) -> int | None:
    return int(float(text)) if re.fullmatch(r"\d{1,6}(\.0+)?", text.strip()) else None


def _numbers(text: str) -> tuple[float, float, float] | None:
    """Return three numbers, or one for all three; None if there are no such numbers."""
    found = re.findall(r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?", text)[:3]
    if len(found) not in (1, 3):
        return None
    values = [float(each) for each in (found * 3)[:3]]
    return (values[0], values[1], values[2])
