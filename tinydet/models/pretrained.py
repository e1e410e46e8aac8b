"""Where training starts from: weights of another detector, ours or torchvision's, as far as they fit.

What fits is taken level by level and class by class; what does not starts anew, and is named. Anchors and alpha are
no weights: they stay as the run has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, RetinaNet_ResNet50_FPN_Weights

from tinydet.models.box_coder import CODER_WEIGHTS
from tinydet.models.checkpoint import FORMAT, Checkpoint, load_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.retinanet import RetinaNet, RetinaNetP3P7
from tinydet.runtime.bundled import BUNDLED, model_path

BACKGROUND = "__background__"
# Published COCO weights by detector; each is of a ResNet-50 with 256 channels.
_COCO = {
    "retinanet": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "retinanet-p3p7": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "faster_rcnn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
}
_COCO_NAMES = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
# Old names of torchvision's own weights, and theirs for what ours calls otherwise.
_RENAMED = (
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"fpn.\1.\2.\3"),
    (r"^backbone\.fpn\.extra_blocks\.", "extra."),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
_OLD_TOWER = re.compile(r"^(head\.\w+\.conv)\.(\d+)\.(weight|bias)$")  # a ReLU between any two


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        name: for people.
        weights: under our names; levels are counted from C2 or C3, as `first_level` says.
        classes: what each row of the class-dependent layers stands for; None: unknown.
        checkpoint: where the weights are our own.
    """

    name: str
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] | None
    first_level: int
    checkpoint: Checkpoint | None = None


def read_source(source: str, detector: str) -> Source:
    """Weights from a checkpoint of ours, a state dict of torchvision's RetinaNet or Faster R-CNN, or by a name.

    The names are "coco" and those of the bundled models.

    Args:
        detector: name of the detector to be trained; it decides which weights "coco" downloads.

    Raises:
        ValueError: where the file is none of these, or the download fails.
    """
    if source == "coco":
        try:
            state = _COCO[detector].get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"torchvision's COCO weights could not be downloaded ({getattr(error, 'reason', error)}); "
                f"fetch {_COCO[detector].url} elsewhere and name the file with --init FILE"
            ) from error
        return _of_torchvision(state, "torchvision's COCO weights")
    path = model_path(source, ".pth")
    if not path.is_file():
        raise ValueError(
            f"{source}: no such file; --init takes coco, a checkpoint, a file of torchvision weights, or a bundled "
            f"model ({', '.join(BUNDLED)})"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not one of its own
        raise ValueError(f"{source}: not a file of weights ({type(error).__name__}); copy it again") from error
    if isinstance(state, dict) and state.get("format") == FORMAT:
        return _of_checkpoint(load_checkpoint(path), source)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source}: neither a checkpoint of tinydet nor a state dict of tensors, as torchvision's are")
    if not any(key.startswith("backbone.fpn.") for key in state):
        raise ValueError(
            f"{source}: weights of no RetinaNet or Faster R-CNN; those of a classifier go to --weights-backbone"
        )
    return _of_torchvision(state, source)


@torch.no_grad()
def initialise(detector: Detector, source: Source, classes: Sequence[str]) -> list[str]:
    """Fill `detector` with what fits, and say what did not, a line each.

    Args:
        classes: of the detector, in the order of its labels.

    Raises:
        ValueError: where the backbone does not fit.
    """
    shift = source.first_level - (detector.first_level if isinstance(detector, RetinaNet) else 0)
    found = {_at_level(key, shift): value for key, value in source.weights.items()}
    ours = detector.state_dict()
    rows = _class_rows(detector)
    names = tuple(classes) if isinstance(detector, RetinaNet) else (BACKGROUND, *classes)
    taken: dict[str, Tensor] = {}
    shared: set[str] = set()
    for key, fresh in ours.items():
        trained = found.get(key)
        if trained is None or key.startswith(("fpn.alpha", "fpn.attention")):
            continue
        if key in rows:
            before, after = rows[key]
            if source.classes is not None and trained.shape[0] == before * len(source.classes) * after:
                common = [name for name in names if name in source.classes]
                if common and trained.shape[1:] == fresh.shape[1:]:
                    shared.update(common)
                    taken[key] = _by_class(fresh, trained, names, source.classes, before, after)
        elif trained.shape == fresh.shape:
            taken[key] = trained
    kept = [key for key in ours if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    wrong = [key for key in kept if key not in taken]
    if wrong:
        raise ValueError(
            f"{source.name}: does not fit the backbone: {len(wrong)} of {len(kept)} tensors are missing or of another "
            f"shape, e.g. {wrong[0]}; choose the --backbone and the --norm that it was trained with"
        )
    detector.load_state_dict({**ours, **taken})
    return list(_told(detector, source, ours, taken, names, shared))


def _told(
    detector: Detector,
    source: Source,
    ours: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    names: Sequence[str],
    shared: set[str],
) -> list[str]:
    """What was taken and what was not, for people."""
    counted = [key for key in ours if not key.startswith("fpn.alpha") and not key.endswith("num_batches_tracked")]
    lines = [f"{len([k for k in counted if k in taken])} of {len(counted)} tensors of {source.name}"]
    anew = sorted({key.rpartition(".")[0] for key in counted if key not in taken})
    if anew:
        lines.append(f"start anew: {', '.join(anew)}")
    fresh = [name for name in names if name not in shared and name != BACKGROUND]
    if shared - {BACKGROUND} and fresh:
        lines.append(f"classes that it does not know start anew: {', '.join(fresh)}")
    if source.checkpoint is None:
        sizes = ", ".join(f"{min(min(shape) for shape in shapes):.3g}" for shapes in detector.design.shapes)
        lines.append(f"its anchors are not taken over: ours stay (shortest sides {sizes} px, finest level first)")
    return lines


def _of_checkpoint(checkpoint: Checkpoint, name: str) -> Source:
    config = checkpoint.detector
    names = (BACKGROUND, *checkpoint.classes) if config.detector == "faster_rcnn" else checkpoint.classes
    first = RetinaNetP3P7.first_level if config.detector == "retinanet-p3p7" else 0
    return Source(name, checkpoint.weights, names, first, checkpoint)


def _of_torchvision(state: Mapping[str, Any], name: str) -> Source:
    """torchvision's weights under our names; of RetinaNet's, the anchors of a cell in our order."""
    weights: dict[str, Tensor] = {}
    old_towers = any(key == "head.classification_head.conv.0.weight" for key in state)
    for key, value in state.items():
        renamed = key
        for pattern, ours in _RENAMED:
            renamed = re.sub(pattern, ours, renamed)
        if old_towers and (match := _OLD_TOWER.match(renamed)):
            renamed = f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
        weights[renamed] = value
    one_stage = "head.regression_head.bbox_reg.weight" in weights
    if one_stage:
        for part in ("weight", "bias"):
            key = f"head.regression_head.bbox_reg.{part}"
            boxes = _scales_first(weights[key], 4)
            coder = boxes.new_tensor(CODER_WEIGHTS).repeat(len(boxes) // 4)  # torchvision's RetinaNet codes with 1
            weights[key] = boxes * coder.view(-1, *[1] * (boxes.dim() - 1))
            key = f"head.classification_head.cls_logits.{part}"
            weights[key] = _scales_first(weights[key], len(weights[key]) // 9)
        rows = len(weights["head.classification_head.cls_logits.bias"]) // 9
    else:
        rows = len(weights["roi_heads.box_predictor.cls_score.bias"])
    return Source(name, weights, _COCO_NAMES if rows == len(_COCO_NAMES) else None, int(one_stage))


def _scales_first(layer: Tensor, channels: int) -> Tensor:
    """Three ratios times three octaves, from torchvision's order (octaves fastest) to ours (ratios fastest)."""
    return layer.view(3, 3, channels, *layer.shape[1:]).transpose(0, 1).reshape(layer.shape)


def _at_level(key: str, shift: int) -> str:
    match = re.match(r"^fpn\.(inner|layer)\.(\d+)\.(.*)$", key)
    return f"fpn.{match[1]}.{int(match[2]) + shift}.{match[3]}" if match else key


def _class_rows(detector: Detector) -> dict[str, tuple[int, int]]:
    """The layers with rows for each class: (groups before it, rows of each class), as in (before * C * after, ...)."""
    if isinstance(detector, RetinaNet):
        layers = {"head.classification_head.cls_logits": (len(detector.design.shapes[0]), 1)}
    else:
        layers = {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)}
    return {f"{layer}.{part}": rows for layer, rows in layers.items() for part in ("weight", "bias")}


def _by_class(
    fresh: Tensor, trained: Tensor, ours: Sequence[str], theirs: Sequence[str], before: int, after: int
) -> Tensor:
    """`fresh` with the rows of the classes that both know taken from `trained`."""
    rows = fresh.clone().view(before, len(ours), after, *fresh.shape[1:])
    known = trained.view(before, len(theirs), after, *trained.shape[1:])
    for index, name in enumerate(ours):
        if name in theirs:
            rows[:, index] = known[:, theirs.index(name)]
    return rows.view_as(fresh)
