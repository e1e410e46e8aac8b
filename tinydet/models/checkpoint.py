"""`model.pth`: the weights, what is needed to build and deploy the detector, and its provenance.

Only tensors and plain values are stored, so a file loads with `weights_only=True`: opening a downloaded
checkpoint executes no code.
"""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tinydet
from tinydet._internal.atomic import atomic_path
from tinydet._internal.errors import reason
from tinydet._internal.json_files import checked
from tinydet._internal.shell import tinydet_command
from tinydet.data.source import DataSource
from tinydet.models.backbone import PixelNorm
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.detector import Detector
from tinydet.models.graphs.one_stage import MAX_TOPK
from tinydet.models.registry import detector_info
from tinydet.models.tensor_files import read_tensors, unusable_tensor
from tinydet.spec import Domain, ModelSpec

FORMAT = "tinydet-1"
FILTER_FORMAT = "tinydet-filter-1"  # of a tile filter, see `tile_filter`
SMALLEST_STD = 1e-3  # of pixels in 0..255


@dataclass(frozen=True)
class Checkpoint:
    """A trained detector and its provenance.

    Attributes:
        detector: what to build.
        weights: its state dict, including alpha.
        classes: class names; `category_ids`: their COCO ids in the training annotations.
        tile: side of the training tiles in pixels.
        object_sizes: sqrt(w*h) of the training objects at percentiles 1, 50 and 99, in pixels.
        domain: what the training images look like; None: unknown.
        stretch: percentiles used to stretch pixels of more than 8 bits.
        alpha_source: how alpha was chosen; `statistics`: the counts behind it, if any.
        config: the training configuration, and where its data were (`train_data`, `val_data`).
        progress: epoch, step and validation scores.
        training_state: optimizer state and position, in the file that a run resumes from.
        versions: of Python and the packages that wrote it.
        origin: `data`: a hash of the training data; `code`: the commit of the package, empty if unknown.
    """

    detector: DetectorConfig
    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    tile: int
    object_sizes: tuple[float, float, float] | None = None
    domain: Domain | None = None
    stretch: tuple[float, float] = (0.5, 99.5)
    alpha_source: str = "1 everywhere (a conventional FPN)"
    statistics: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    training_state: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def alpha(self) -> tuple[float, ...]:
        """Fusion factors, finest first: the mean over channels if each has its own; empty for attention."""
        return fusion_factors(self.weights.get("fpn.alpha"), len(detector_info(self.detector.detector).pyramid.edges))

    def train_source(self, path: Path) -> DataSource | None:
        """Return where the training data are now; None if that is not recorded.

        Args:
            path: of the checkpoint; paths relative to its folder precede absolute ones.

        Raises:
            ValueError: the data are gone, or the record is malformed.
        """
        return self._source("train_data", path)

    def val_source(self, path: Path) -> DataSource | None:
        """Return where the validation data are now, as `train_source`; None if there was no validation."""
        return self._source("val_data", path)

    def _source(self, name: str, path: Path) -> DataSource | None:
        record = self.config.get(name)
        return None if record is None else DataSource.from_json(record, Path(path).parent)

    @property
    def pixels(self) -> PixelNorm:
        """The normalization of the pixels: as stored with the weights, else that of ImageNet."""
        mean, std = (self.weights.get(f"backbone.pixel_{part}") for part in ("mean", "std"))
        if mean is None or std is None:
            return PixelNorm()
        return PixelNorm(tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))

    def check(self) -> None:
        """Check that the fields are consistent, before memory is allocated for the detector.

        Raises:
            ValueError: a value is out of range, a tensor is missing or has another shape, or is not finite.
        """
        if fault := unusable_tensor(self.weights):
            raise ValueError(fault)
        mean, std = self.pixels
        if not (len(mean) == len(std) == 3 and all(0 <= value <= 255 for value in mean) and min(std) >= SMALLEST_STD):
            raise ValueError(
                f"pixel_mean must be three values from 0 to 255, and pixel_std three above 0; got {mean}, {std}"
            )
        spec = self.spec()
        spec.to_json().encode()  # a text with an unpaired surrogate cannot be written
        if self.detector.classes != len(spec.classes):
            raise ValueError(f"the detector has {self.detector.classes} classes, and {len(spec.classes)} are named")
        detector_info(spec.detector).check_tile(spec.tile)
        with torch.device("meta"):
            expected = build_detector(self.detector).state_dict()
        for name in {**expected, **self.weights}:
            shapes = [tuple(each[name].shape) if name in each else "no tensor" for each in (expected, self.weights)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name}: the detector needs {shapes[0]}, the file has {shapes[1]}")

    def build(self) -> Detector:
        """Build the detector with its weights, on the CPU, in eval mode."""
        detector = build_detector(self.detector)
        detector.load_state_dict(self.weights)
        return detector.eval()

    def spec(
        self,
        *,
        tile: int | None = None,
        max_batch: int = 16,
        max_detections: int | None = None,
        nms_rounds: int | None = None,
        grid_rois: int | None = None,
    ) -> ModelSpec:
        """Return the spec of a deployed form of this detector.

        Args:
            tile: None: the training tile.
            max_detections: None: as many as runtimes can keep, because overlapping boxes of a one-stage detector take
                slots too; that of `ModelSpec` for a two-stage detector, `grid_rois` for one with a grid branch.
            nms_rounds: None: the detector's default.
            grid_rois: None: the detector's default, but no more than `max_detections`.

        Raises:
            ValueError: the detector has no proposals or no grid branch, or `grid_rois` is above `max_detections`.
        """
        name, info = self.detector.detector, detector_info(self.detector.detector)
        if nms_rounds and not info.nms_rounds:
            raise ValueError(f"--nms-rounds is for two-stage detectors; {name} has no proposals")
        if grid_rois and not info.grid_rois:
            raise ValueError(f"--grid-rois is for Grid R-CNN; {name} has no grid branch")
        rois = grid_rois or min(info.grid_rois, max_detections or info.grid_rois)
        return ModelSpec(
            classes=self.classes,
            category_ids=self.category_ids,
            detector=name,
            backbone=self.detector.backbone,
            tile=tile or self.tile,
            max_batch=max_batch,
            max_detections=max_detections or rois or (ModelSpec.max_detections if info.nms_rounds else MAX_TOPK),
            nms_iou=info.nms_iou,
            nms_rounds=nms_rounds or info.nms_rounds,
            grid_rois=rois,
            pad=self.pixels.pad,
            stretch=self.stretch,
            alpha=self.alpha,
            alpha_source=self.alpha_source,
            object_sizes=self.object_sizes,
            domain=self.domain,
            versions=current_versions(),
        )


def fusion_factors(alpha: Tensor | None, edges: int) -> tuple[float, ...]:
    """Return the factor of each fused edge, finest first, from an `alpha` of (1,), (edges,) or (edges, channels)."""
    if alpha is None:
        return ()
    values = alpha.detach().cpu().double()
    per_edge = values.reshape(len(values), -1).mean(dim=1).expand(edges)
    return tuple(round(a, 6) for a in per_edge.tolist())


def current_versions() -> dict[str, str]:
    return {"tinydet": tinydet.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically: a full disk or Ctrl-C leaves an older file unchanged."""
    values = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    values["detector"] = checkpoint.detector.to_dict()
    values["domain"] = None if checkpoint.domain is None else dataclasses.asdict(checkpoint.domain)
    values["versions"] = checkpoint.versions or current_versions()
    with atomic_path(path) as temporary:
        try:
            torch.save({"format": FORMAT, **values}, temporary)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(28, f"could not write the checkpoint ({str(error).splitlines()[0]})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint without executing anything in it.

    Raises:
        ValueError: the file is missing, truncated, foreign, or would run code; a field has another type or a value out
            of range; the weights do not fit the detector or are not finite. Names the file, the rule and the remedy.
    """
    path = Path(path)
    values = read_tensors(path, f"copy it again, or train one: {tinydet_command('train', '--salpha')}")
    if isinstance(values, dict) and values.get("format") == FILTER_FORMAT:
        raise ValueError(
            f"{path} is a tile filter, not a detector; export it: {tinydet_command('export', 'onnx', path)}"
        )
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not written by tinydet (expected a dict with format {FORMAT!r}); "
            "ImageNet weights go to --weights-backbone, a detector is trained with: "
            f"{tinydet_command('train', '--salpha')}"
        )
    what, remedy = "checkpoint", "train again or name another file"
    values = {**values, "detector": DetectorConfig.from_dict(values.get("detector"), source=path)}
    values["domain"] = Domain.from_dict(values.get("domain"), source=path, what=what, remedy=remedy)
    checkpoint = checked(Checkpoint, values, source=path, what=what, remedy=remedy)
    try:
        checkpoint.check()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a usable {what} ({reason(error)}); {remedy}") from error
    return checkpoint
