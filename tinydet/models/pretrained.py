"""Pretrained weights to start training from: of another detector, ours or torchvision's, as far as they fit.

What fits is copied level by level and class by class; the rest starts from random weights and is named. Anchors and
alpha are not weights: they stay as the run has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import detection

from tinydet._internal.errors import reason
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.backbone_registry import build_backbone
from tinydet.models.checkpoint import FORMAT, Checkpoint, load_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.options import TORCHVISION_BACKBONES, Architecture
from tinydet.models.registry import DETECTORS, DetectorInfo, detector_info
from tinydet.models.tensor_files import as_state_dict, read_tensors
from tinydet.runtime.bundled import BUNDLED, model_path

BACKGROUND = "__background__"
_LABELS = ", ".join(info.label for info in DETECTORS.values() if info.coco_weights)
_COCO_NAMES = tuple(detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
# torchvision's names, old and new, of what has another name here.
_RENAMED = (
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"fpn.\1.\2.\3"),
    (r"^backbone\.fpn\.extra_blocks\.", "fpn.top."),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
_OLD_TOWER = re.compile(r"^(head\.\w+\.conv)\.(\d+)\.(weight|bias)$")  # with a ReLU between any two


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        name: for people.
        weights: under our names; the pyramid starts at C2 or C3, as `first_level` says.
        classes: what each row of the class layers stands for, with the background if there is one; None: unknown.
        architecture: the network that the weights fit; None: unknown.
        checkpoint: set if the weights are our own.
    """

    name: str
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] | None
    first_level: int
    architecture: Architecture | None = None
    checkpoint: Checkpoint | None = None


def read_source(source: str, detector: str) -> Source:
    """Read weights from a checkpoint, from a state dict of a torchvision detector, or by name.

    The names are "coco" and those of the bundled models.

    Args:
        detector: name of the detector to be trained; it decides which weights "coco" downloads.

    Raises:
        ValueError: the file is none of these, or the download fails.
    """
    if source == "coco":
        return _download(detector_info(detector))
    path = model_path(source, ".pth")
    if not path.is_file():
        raise ValueError(
            f"{source}: no such file; --init takes coco, a checkpoint, a file of torchvision weights, or a bundled "
            f"model ({', '.join(BUNDLED)})"
        )
    state = read_tensors(path, "copy it again")
    if isinstance(state, dict) and state.get("format") == FORMAT:
        return _of_checkpoint(load_checkpoint(path), source)
    return _of_torchvision(as_state_dict(state, source), source)


@torch.no_grad()
def initialize(detector: Detector, source: Source, classes: Sequence[str]) -> list[str]:
    """Copy the weights that fit into `detector` and return a report, one line per entry.

    Args:
        classes: of the detector, in the order of its labels.

    Raises:
        ValueError: the backbone does not fit.
    """
    shift = source.first_level - detector.first_level
    found = {_at_level(key, shift): value for key, value in source.weights.items()}
    ours = detector.state_dict()
    rows = {
        f"{layer}.{part}": groups for layer, groups in detector.class_layers().items() for part in ("weight", "bias")
    }
    names = (BACKGROUND, *classes) if detector.background else tuple(classes)
    same_kind = source.architecture is not None and detector_info(source.architecture.detector).load() is type(detector)
    skipped = ("fpn.alpha", "fpn.attention", *(() if same_kind else detector.own_tensors))
    copied: dict[str, Tensor] = {}
    shared: set[str] = set()
    for key, fresh in ours.items():
        trained = found.get(key)
        if trained is None or key.startswith(skipped):
            continue
        if key in rows:
            before, after = rows[key]
            if source.classes is not None and trained.shape[0] == before * len(source.classes) * after:
                common = [name for name in names if name in source.classes]
                if common and trained.shape[1:] == fresh.shape[1:]:
                    shared.update(common)
                    copied[key] = _by_class(fresh, trained, names, source.classes, before, after)
        elif trained.shape == fresh.shape:
            copied[key] = trained
    needed = [key for key in ours if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    wrong = [key for key in needed if key not in copied]
    if wrong:
        raise ValueError(
            f"{source.name}: does not fit the backbone: {len(wrong)} of {len(needed)} tensors are missing or have "
            f"another shape, e.g. {wrong[0]}; choose the --backbone and the --norm that it was trained with"
        )
    detector.load_state_dict({**ours, **copied})
    return list(_report(detector, source, ours, copied, names, shared))


def _report(
    detector: Detector,
    source: Source,
    ours: Mapping[str, Tensor],
    copied: Mapping[str, Tensor],
    names: Sequence[str],
    shared: set[str],
) -> Iterator[str]:
    counted = [key for key in ours if not key.startswith("fpn.alpha") and not key.endswith("num_batches_tracked")]
    yield f"{len([key for key in counted if key in copied])} of {len(counted)} tensors of {source.name}"
    copied_layers = {key.rpartition(".")[0] for key in counted if key in copied}
    fresh_layers = sorted({key.rpartition(".")[0] for key in counted if key not in copied} - copied_layers)
    alone = [key for key in counted if key not in copied and key.rpartition(".")[0] in copied_layers]
    if fresh_layers:
        yield f"randomly initialized: {', '.join(fresh_layers)}"
    if alone:
        yield f"initialized as without --init: {', '.join(alone)}"
    fresh_classes = [name for name in names if name not in shared and name != BACKGROUND]
    if shared - {BACKGROUND} and fresh_classes:
        yield f"classes it does not know, randomly initialized: {', '.join(fresh_classes)}"
    if source.checkpoint is None and isinstance(detector.design, AnchorDesign):
        sizes = ", ".join(f"{min(min(shape) for shape in shapes):.3g}" for shapes in detector.design.shapes)
        yield f"its anchors are not used: ours stay (shortest sides {sizes} px, finest level first)"


def _of_checkpoint(checkpoint: Checkpoint, name: str) -> Source:
    built = checkpoint.detector
    kind = detector_info(built.detector).load()
    names = (BACKGROUND, *checkpoint.classes) if kind.background else checkpoint.classes
    overlap, preset = checkpoint.config.get("overlap"), checkpoint.config.get("preset")
    architecture = Architecture(
        built.detector,
        built.backbone,
        built.channels,
        built.options,
        checkpoint.tile,
        overlap if isinstance(overlap, int) and 0 <= overlap < checkpoint.tile else None,
        preset if isinstance(preset, str) else None,
    )
    return Source(name, checkpoint.weights, names, kind.first_level, architecture, checkpoint)


def _download(info: DetectorInfo) -> Source:
    enum, _, member = info.coco_weights.partition(".")
    if not enum:
        raise ValueError(f"--init coco: there are no COCO weights of {info.label}; name a file or leave --init out")
    weights = getattr(getattr(detection, enum), member)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision's COCO weights could not be downloaded ({getattr(error, 'reason', error)}); "
            f"fetch {weights.url} elsewhere and name the file with --init FILE"
        ) from error
    return _of_torchvision(state, "torchvision's COCO weights")


def _of_torchvision(state: Mapping[str, Any], name: str) -> Source:
    """Rename torchvision's weights and convert them with the detector that recognizes them."""
    weights: dict[str, Tensor] = {}
    first, second = (f"head.classification_head.conv.{i}.weight" for i in (0, 1))
    old_towers = first in state and second not in state  # FCOS has a norm after each convolution
    for key, value in state.items():
        renamed = key
        for pattern, ours in _RENAMED:
            renamed = re.sub(pattern, ours, renamed)
        if old_towers and (match := _OLD_TOWER.match(renamed)):
            renamed = f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
        weights[renamed] = value
    for detector, info in DETECTORS.items():
        try:
            converted = info.load().from_torchvision(weights)
        except (IndexError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{name}: tensors are missing or have unexpected shapes ({reason(error)}); get the weights again"
            ) from error
        if converted is not None:
            classes = _COCO_NAMES if converted.class_rows == len(_COCO_NAMES) else None
            architecture = _architecture(detector, converted.weights)
            return Source(name, converted.weights, classes, converted.first_level, architecture)
    raise ValueError(
        f"{name}: not the weights of a torchvision detector that tinydet knows ({_LABELS}); "
        "those of a classifier go to --weights-backbone"
    )


def _architecture(detector: str, weights: Mapping[str, Tensor]) -> Architecture | None:
    """Return the network of torchvision's weights; None if no backbone of ours has tensors of these shapes."""
    pyramid = weights.get("fpn.inner.0.weight")
    found = _shapes({key: value for key, value in weights.items() if key.startswith("backbone.")})
    for backbone in TORCHVISION_BACKBONES:
        with torch.device("meta"):
            expected = _shapes(build_backbone(backbone).state_dict(prefix="backbone."))
        if pyramid is not None and found == expected:
            return Architecture(detector, backbone, len(pyramid), preset="paper")
    return None


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def _at_level(key: str, shift: int) -> str:
    match = re.match(r"^fpn\.(inner|layer)\.(\d+)\.(.*)$", key)
    return f"fpn.{match[1]}.{int(match[2]) + shift}.{match[3]}" if match else key


def _by_class(
    fresh: Tensor, trained: Tensor, ours: Sequence[str], theirs: Sequence[str], before: int, after: int
) -> Tensor:
    """Return `fresh` with the rows of the classes that both know copied from `trained`."""
    rows = fresh.clone().view(before, len(ours), after, *fresh.shape[1:])
    known = trained.view(before, len(theirs), after, *trained.shape[1:])
    for index, name in enumerate(ours):
        if name in theirs:
            rows[:, index] = known[:, theirs.index(name)]
    return rows.view_as(fresh)
