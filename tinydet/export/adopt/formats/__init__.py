"""The registry of formats, and how the one of a foreign detector is recognized."""

from __future__ import annotations

from tinydet._internal.console import plural
from tinydet._internal.shell import tinydet_command
from tinydet.export.adopt.formats.boxes import GENERIC, MMDEPLOY, RAW, SSD, TORCHVISION
from tinydet.export.adopt.formats.detr import (
    HUGGING_FACE,
    RF_DETR,
    RT_DETR,
    SOFTMAX,
    ULTRALYTICS_RT_DETR,
    has_no_object_column,
)
from tinydet.export.adopt.formats.format import Format, Signature
from tinydet.export.adopt.formats.yolo import END_TO_END, YOLOV5, YOLOV8, YOLOX

# In the order in which they are tried.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        ULTRALYTICS_RT_DETR,
        RT_DETR,
        RF_DETR,
        HUGGING_FACE,
        SOFTMAX,
        END_TO_END,
        YOLOV8,
        YOLOV5,
        YOLOX,
        TORCHVISION,
        MMDEPLOY,
        GENERIC,
        SSD,
        RAW,
    )
}
TASKS = {
    "segment": "instance segmentation",
    "semantic": "semantic segmentation",
    "obb": "oriented boxes",
    "pose": "key points",
    "classify": "image classification",
    "depth": "depth",
}
MASK_RANK = 4  # of prototypes and masks


def recognize(signature: Signature, wanted: str | None = None, classes: int | None = None) -> Format:
    """Return the format of a detector: `wanted` if its outputs fit it, else the first one that fits.

    Args:
        classes: number of classes that were named; None if nobody named them.

    Raises:
        ValueError: no format fits, or the model is not a detector of upright boxes. Lists its outputs.
    """
    if problem := _other_task(signature):
        raise ValueError(problem)
    if wanted is not None:
        if not FORMATS[wanted].matches(signature):
            raise ValueError(f"its outputs are not those of {wanted} ({FORMATS[wanted].title}): {_outputs(signature)}")
        return FORMATS[wanted]
    for each in FORMATS.values():
        if each.matches(signature):
            return SOFTMAX if each is HUGGING_FACE and has_no_object_column(signature, classes) else each
    raise ValueError(
        f"its outputs have no known format: {_outputs(signature)}; export it with boxes (N, M, 4), scores (N, M) and "
        f"labels (N, M) as outputs, or see the formats in `{tinydet_command('export', 'adopt', '--help')}`"
    )


def _other_task(signature: Signature) -> str:
    """Return why a model is not a detector of upright boxes; empty if nothing says so."""
    task = signature.metadata.get("task", "detect")
    remedy = "adopt takes detectors of upright boxes; train or export the detection variant"
    if task in TASKS:
        return f"a model for {TASKS[task]} (its metadata say task {task}); {remedy}"
    for name, shape in signature.shapes.items():
        if "mask" in name.lower() or "keypoint" in name.lower():
            return f"its output {name} {shape} means {'masks' if 'mask' in name.lower() else 'key points'}; {remedy}"
    ranks = [len(shape) for shape in signature.shapes.values()]
    if len(ranks) == 2 and ranks[0] == 3 and ranks[1] == MASK_RANK:
        return f"its second output looks like the prototypes of masks: {_outputs(signature)}; {remedy}"
    if signature.bare and len(ranks) == 1:
        return f"its output looks like scores of whole images: {_outputs(signature)}; {remedy}"
    return ""


def _outputs(signature: Signature) -> str:
    listed = ", ".join(f"{name} {signature.values[name].dtype} {shape}" for name, shape in signature.shapes.items())
    return f"{plural(len(signature.shapes), 'output')} {listed} for an image of {signature.width}x{signature.height}"
