"""The detectors by name. Importing this module does not import torch.

A new detector is one file in this folder, one row in `DETECTORS` and one test file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinydet._internal.arguments import quoted
from tinydet._internal.console import listed
from tinydet._internal.options import check_values, flag_of
from tinydet._internal.plugins import check_same_file
from tinydet.geometry.anchors import AnchorSizes, Pyramid
from tinydet.models.level_statistics import CountRule, LevelStatistic, point_statistics
from tinydet.models.options import (
    FASTER_RCNN_ANCHORS,
    FCOS_P3P7_POINTS,
    FCOS_POINTS,
    RETINANET_ANCHORS,
    RETINANET_P3P7_ANCHORS,
    TILE_MULTIPLE,
    FasterRCNNOptions,
    FCOSOptions,
    FCOSP3P7Options,
    HeadOptions,
    LibraRCNNOptions,
    NoOptions,
    RetinaNetOptions,
)
from tinydet.spec import GRID_ROIS, NMS_ROUNDS

if TYPE_CHECKING:
    from tinydet.models.detector import Detector

SMALLEST_TILE = 64


@dataclass(frozen=True)
class DetectorInfo:
    """What the rest of tinydet needs to know about a detector without importing torch.

    Attributes:
        label: display name.
        load: imports and returns the class.
        options: dataclass of the detector's own options, each declared with `option`.
        pyramid: levels, strides and fused edges.
        anchors: sizes and ratios; None for a detector without anchors.
        statistics: what S-alpha counts, by rule: "gt" objects, "anchor" what the levels learn from. The first rule is
            the default. Empty: the best anchor of each object.
        recipe: training defaults per preset that differ from the preset's.
        coco_weights: name of the torchvision weights enum with published COCO weights, `ENUM.MEMBER`.
        nms_iou: default of `ModelSpec.nms_iou`.
        nms_rounds: rounds of suppression among proposals in the exported graph; 0 for a detector without proposals.
        grid_rois: RoIs of a tile that a grid branch runs on in the exported graph; 0 for a detector without one.
        tile_multiple: sides of tiles are multiples of it, in pixels; batches are padded to it. A multiple of 32.
    """

    label: str
    load: Callable[[], type[Detector]]
    pyramid: Pyramid
    options: type[Any] = NoOptions
    anchors: AnchorSizes | None = None
    statistics: Mapping[CountRule, LevelStatistic] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    coco_weights: str = ""
    nms_iou: float = 0.5
    nms_rounds: int = 0
    grid_rois: int = 0
    tile_multiple: int = TILE_MULTIPLE

    @property
    def design(self) -> Pyramid:
        """The levels as the network uses them, with their anchors if it has some."""
        return self.anchors.design() if self.anchors is not None else self.pyramid

    @property
    def option_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in dataclasses.fields(self.options))

    def fit_tile(self, side: int) -> int:
        """Return the smallest tile of at least `side` pixels.

        >>> DETECTORS["retinanet"].fit_tile(600)
        608
        """
        return max(-(-side // self.tile_multiple), -(-SMALLEST_TILE // self.tile_multiple)) * self.tile_multiple

    def check_tile(self, tile: int, name: str = "tile") -> None:
        """Raise ValueError, with the sizes that fit, if the detector does not take tiles of this side.

        Args:
            name: of the option or field.
        """
        above = self.fit_tile(tile)
        if tile == above:
            return
        below = above - self.tile_multiple
        near = f"the nearest are {below} and {above}" if below >= SMALLEST_TILE else f"the nearest is {above}"
        of_whom = "" if self.tile_multiple == TILE_MULTIPLE else f" for {self.label}"
        raise ValueError(
            f"{name} must be a multiple of {self.tile_multiple}{of_whom} and at least {self.fit_tile(1)}, got {tile}; "
            f"{near}"
        )


def _retinanet() -> type[Detector]:
    from tinydet.models.retinanet import RetinaNet

    return RetinaNet


def _retinanet_p3p7() -> type[Detector]:
    from tinydet.models.retinanet import RetinaNetP3P7

    return RetinaNetP3P7


def _free_anchor() -> type[Detector]:
    from tinydet.models.free_anchor import FreeAnchor

    return FreeAnchor


def _fcos() -> type[Detector]:
    from tinydet.models.fcos import FCOS

    return FCOS


def _fcos_p3p7() -> type[Detector]:
    from tinydet.models.fcos import FCOSP3P7

    return FCOSP3P7


def _faster_rcnn() -> type[Detector]:
    from tinydet.models.faster_rcnn import FasterRCNN

    return FasterRCNN


def _libra_rcnn() -> type[Detector]:
    from tinydet.models.libra_rcnn import LibraRCNN

    return LibraRCNN


def _grid_rcnn() -> type[Detector]:
    from tinydet.models.grid_rcnn import GridRCNN

    return GridRCNN


_TWO_STAGE = {"paper": {"lr": 0.01}}  # the released Faster R-CNN learns at twice the rate of RetinaNet
_THIN_HEAD = {preset: {"head_convs": convs, "head_init": "he"} for preset, convs in (("small", 2), ("nano", 1))}
# Twice that rate, the presets', teaches some detectors little or nothing at alpha = 1: docs/detectors.md.
_SLOW_THIN_HEAD = {preset: {**recipe, "lr": 0.01} for preset, recipe in _THIN_HEAD.items()}
# The best of the measured detectors: docs/detectors.md.
_RANKED_THIN_HEAD = {preset: {**r, "assign": "nwd", "assign_rank": 3} for preset, r in _SLOW_THIN_HEAD.items()}

DETECTORS: dict[str, DetectorInfo] = {
    "retinanet": DetectorInfo(
        label="RetinaNet",
        load=_retinanet,
        options=RetinaNetOptions,
        pyramid=RETINANET_ANCHORS,
        anchors=RETINANET_ANCHORS,
        recipe=_THIN_HEAD,
        coco_weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ),
    "retinanet-p3p7": DetectorInfo(
        label="RetinaNet on P3-P7",
        load=_retinanet_p3p7,
        options=RetinaNetOptions,
        pyramid=RETINANET_P3P7_ANCHORS,
        anchors=RETINANET_P3P7_ANCHORS,
        recipe=_SLOW_THIN_HEAD,
        coco_weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ),
    "free_anchor": DetectorInfo(
        label="FreeAnchor",
        load=_free_anchor,
        options=HeadOptions,
        pyramid=RETINANET_ANCHORS,
        anchors=RETINANET_ANCHORS,
        recipe={"paper": {"lr": 0.0025}, **_THIN_HEAD},  # the released FreeAnchor learns at half the rate of RetinaNet
        coco_weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ),
    "fcos": DetectorInfo(
        label="FCOS",
        load=_fcos,
        options=FCOSOptions,
        pyramid=FCOS_POINTS,
        statistics=point_statistics(FCOS_POINTS),
        recipe={"paper": {"clip_norm": 35.0}, **_RANKED_THIN_HEAD},
        coco_weights="FCOS_ResNet50_FPN_Weights.COCO_V1",
        nms_iou=0.6,
    ),
    "fcos-p3p7": DetectorInfo(
        label="FCOS on P3-P7",
        load=_fcos_p3p7,
        options=FCOSP3P7Options,
        pyramid=FCOS_P3P7_POINTS,
        statistics=point_statistics(FCOS_P3P7_POINTS),
        recipe={"paper": {"lr": 0.0025}, **_THIN_HEAD},
        coco_weights="FCOS_ResNet50_FPN_Weights.COCO_V1",
        nms_iou=0.6,
    ),
    "faster_rcnn": DetectorInfo(
        label="Faster R-CNN",
        load=_faster_rcnn,
        options=FasterRCNNOptions,
        pyramid=FASTER_RCNN_ANCHORS,
        anchors=FASTER_RCNN_ANCHORS,
        recipe=_TWO_STAGE,
        coco_weights="FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        nms_rounds=NMS_ROUNDS,
    ),
    "libra_rcnn": DetectorInfo(
        label="Libra R-CNN",
        load=_libra_rcnn,
        options=LibraRCNNOptions,
        pyramid=FASTER_RCNN_ANCHORS,
        anchors=FASTER_RCNN_ANCHORS,
        recipe=_TWO_STAGE,
        coco_weights="FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        nms_rounds=NMS_ROUNDS,
        tile_multiple=64,  # the stride of P6
    ),
    "grid_rcnn": DetectorInfo(
        label="Grid R-CNN",
        load=_grid_rcnn,
        options=FasterRCNNOptions,
        pyramid=FASTER_RCNN_ANCHORS,
        anchors=FASTER_RCNN_ANCHORS,
        recipe=_TWO_STAGE,  # no configuration was released; this is the one of Faster R-CNN
        coco_weights="FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        nms_rounds=NMS_ROUNDS,
        grid_rois=GRID_ROIS,
    ),
}
BUILT_IN = tuple(DETECTORS)


def register_detector(name: str, info: DetectorInfo) -> None:
    """Make a detector available by name, to `--detector`, to its options' flags and to checkpoints.

    A file that is run again replaces what it registered.

    Raises:
        ValueError: the name is that of a detector of tinydet or of another file, or not made of letters, digits, `_`
            and `-`; or the row has a wrong `tile_multiple`.
    """
    if name in BUILT_IN or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"detector {quoted(name)}: the name is taken, or is not made of letters, digits, _ and -")
    if info.tile_multiple < TILE_MULTIPLE or info.tile_multiple % TILE_MULTIPLE:
        raise ValueError(
            f"detector {quoted(name)}: tile_multiple must be a multiple of {TILE_MULTIPLE}, got {info.tile_multiple}"
        )
    if name in DETECTORS:
        check_same_file(f"detector {quoted(name)}", DETECTORS[name].load, info.load)
    DETECTORS[name] = info


def detector_info(name: str) -> DetectorInfo:
    """Return the row of a detector.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DETECTORS:
        raise ValueError(
            f"unknown detector {quoted(name)}; choose one of: {', '.join(DETECTORS)}, or name the file that registers "
            "it with --plugin FILE.py"
        )
    return DETECTORS[name]


def check_option_names(name: str, given: Iterable[str]) -> None:
    """Check that a detector has these options.

    Raises:
        ValueError: the detector is unknown, or has no such option. Names the flag and the detectors that have it.
    """
    if not (foreign := sorted(set(given) - set(detector_info(name).option_names))):
        return
    owners = {owner: info for owner, info in DETECTORS.items() if foreign[0] in info.option_names}
    if not owners:
        raise ValueError(f"no detector has an option {foreign[0]!r}")
    fields = dataclasses.fields(next(iter(owners.values())).options)
    flag = flag_of(next(each for each in fields if each.name == foreign[0]))
    raise ValueError(
        f"{flag} is not an option of {name}, but of {listed(list(owners))}; leave it out, or choose another --detector"
    )


def detector_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a detector: the given ones, and defaults for the others.

    Raises:
        ValueError: the detector is unknown, has no such option, or a value is out of range.
    """
    info = detector_info(name)
    if foreign := sorted(given.keys() - set(info.option_names)):
        raise ValueError(f"{name} has no option {foreign[0]!r}; it has: {', '.join(info.option_names) or 'none'}")
    try:
        options = info.options(**given)
        check_values(options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return dataclasses.asdict(options)


def recommended_options(name: str, preset: str) -> dict[str, Any]:
    """Return the options of a detector that a preset chooses; the others keep their defaults."""
    info = detector_info(name)
    recipe = info.recipe.get(preset, {})
    return {option: recipe[option] for option in info.option_names if option in recipe}


def merged_options(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the given ones in their place; another `assign` takes no rank or threshold from the first.

    >>> merged_options({"assign": "nwd", "assign_rank": 3, "head_convs": 2}, {"assign": "points"})
    {'head_convs': 2, 'assign': 'points'}
    """
    other = given.get("assign", options.get("assign")) != options.get("assign")
    return {**{name: value for name, value in options.items() if not (other and name.startswith("assign"))}, **given}


def anchors_of(name: str) -> AnchorSizes:
    """Return the anchors of a detector.

    Raises:
        ValueError: the name is unknown, or the detector has no anchors.
    """
    anchors = detector_info(name).anchors
    if anchors is None:
        raise ValueError(f"{name} has no anchors")
    return anchors
