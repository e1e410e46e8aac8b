"""ModelSpec, the contract between training and deployment: everything the runtime must know to use a model.

It is stored in the `metadata_props` of an ONNX file, and in `model.json` next to an engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet._internal.json_files import checked, parse_json

FORMAT = 1  # version of the JSON; increased when older readers would misread it
METADATA_KEY = "tinydet"  # key of the JSON in an ONNX file's metadata_props
PRECISIONS = ("fp32", "fp16", "int8")
PAD_VALUE = (124, 116, 104)  # RGB; the mean of the normalization, so that padding becomes zero
STRETCH = (0.5, 99.5)  # percentiles
LARGEST_TILE = 1 << 14  # pixels; more is an error, and would not fit in memory
LARGEST = 1 << 16  # batch, detections and rounds, likewise
NMS_ROUNDS = 16  # default of a two-stage detector
GRID_ROIS = 100  # default of Grid R-CNN


@dataclass(frozen=True)
class Domain:
    """What the training images of a model look like; see `tinydet.runtime.domain`, which compares scenes with it.

    Ranges are percentiles 5, 50 and 95 over the images, as the model sees them: 8 bits, after the stretch.

    Attributes:
        images: number of images that were measured.
        chroma: how colorful an image is: percentile 90 of max(R, G, B) - min(R, G, B) over its pixels, 0 to 255.
        brightness: mean gray value, 0 to 255.
        contrast: standard deviation of the gray values.
        detail: mean absolute Laplacian of the gray values.
        class_sizes: for each class sqrt(w*h) of its training objects at percentiles 1, 50 and 99, in input pixels;
            three zeros for a class without objects. Empty: unknown.
        gsd: ground sample distance in meters per pixel, of the images that state one; None: none does.
    """

    images: int
    chroma: tuple[float, float, float]
    brightness: tuple[float, float, float]
    contrast: tuple[float, float, float]
    detail: tuple[float, float, float]
    class_sizes: tuple[tuple[float, float, float], ...] = ()
    gsd: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the field, the rule and the value.
        """
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")
        ranges = {name: getattr(self, name) for name in ("chroma", "brightness", "contrast", "detail")}
        ranges |= {"gsd": self.gsd or (0.0, 0.0, 0.0)}
        ranges |= {f"class_sizes[{i}]": sizes for i, sizes in enumerate(self.class_sizes)}
        for name, values in ranges.items():
            if len(values) != 3 or not 0 <= values[0] <= values[1] <= values[2] < math.inf:
                raise ValueError(f"{name} must be three increasing numbers from 0, not {values!r}")

    @classmethod
    def from_dict(cls, values: Any, *, source: Path | str, what: str, remedy: str) -> Domain | None:
        """Return the domain that `dataclasses.asdict` described, None for None.

        Raises:
            ValueError: as `json_files.checked`.
        """
        if values is None:
            return None
        return checked(cls, values, source=source, what=f"{what}: domain", remedy=remedy)


@dataclass(frozen=True)
class FilterRecord:
    """What a tile filter was made for, and how well it keeps objects; see `tinydet.runtime.tile_filter`.

    A tile filter is an exported model of two classes: `object`, whose boxes are cells of the tile that may hold a part
    of an object, and `unfamiliar`, whose box is the whole tile if it is unlike the training images. A tile is skipped
    if no box reaches the threshold of its class (`ModelSpec.thresholds`).

    Attributes:
        classes: classes of the detector that the filter was trained for.
        tiles: sides of the detector's tiles that the filter was calibrated on, in pixels.
        scale: resize factor of the images that it was trained on.
        reduction: the filter takes tiles that are reduced by this factor.
        recall: wanted share of the objects in the tiles that are kept, from 0 to 1.
        bound: lower bound of that share on images like the held-out ones; below `recall` if these have too few objects
            to prove it.
        confidence: of the bound.
        objects, missed: number of objects of the held-out images, and of those in skipped tiles.
        held_out: number of held-out tiles; `skipped` and `unfamiliar`: of those that are skipped or called unfamiliar.
        false_alarm: share of tiles like the held-out ones that are called unfamiliar, at most.
        precision: precision of the graph that was calibrated.
        source: where the held-out images come from; for display only.
    """

    classes: tuple[str, ...]
    tiles: tuple[int, ...]
    scale: float
    reduction: int
    recall: float
    bound: float
    confidence: float
    objects: int
    missed: int
    held_out: int
    skipped: int
    unfamiliar: int
    false_alarm: float
    precision: str = "fp32"
    source: str = ""

    def __post_init__(self) -> None:
        """Check the fields that the runtime relies on.

        Raises:
            ValueError: names the field, the rule and the value.
        """
        shares = ("recall", "bound", "confidence", "false_alarm")
        for name, holds, rule in (
            ("classes", bool(self.classes), "one or more names"),
            ("tiles", bool(self.tiles) and all(1 <= tile <= LARGEST_TILE for tile in self.tiles), "valid tiles"),
            ("reduction", 1 <= self.reduction <= 16, "1 to 16"),
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in shares),
            ("missed", 0 <= self.missed <= self.objects, f"0 to objects ({self.objects})"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: Any, *, source: Path | str, what: str, remedy: str) -> FilterRecord | None:
        """Return the record that `dataclasses.asdict` described, None for None.

        Raises:
            ValueError: as `json_files.checked`.
        """
        if values is None:
            return None
        return checked(cls, values, source=source, what=f"{what}: tile_filter", remedy=remedy)


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime must know to prepare the input of an exported model and to interpret its outputs.

    Attributes:
        classes: class names; a label is an index into them.
        category_ids: the COCO category id of each class, as in the training annotations.
        detector, backbone: names, for display only.
        tile: side of the square input in pixels; the default one of a model that takes several.
        tile_multiple: the model takes tiles of any multiple of it, in pixels; 0: of `tile` only.
        max_batch: largest batch that the model accepts.
        max_detections: K, the number of detection slots per tile.
        score_floor: the graph drops boxes with a lower score.
        nms_iou: two boxes of one class on one tile with a larger IoU are the same object.
        nms_in_graph: whether the graph applies `nms_iou`; if not, the runtime does.
        nms_rounds: rounds of suppression among the proposals of a two-stage detector, in the graph. If above 0, the
            model has the output `unconverged`, which is 0 when the rounds were enough.
        grid_rois: number of RoIs of a tile that the grid branch of Grid R-CNN runs on, which is the most boxes it finds
            there; 0 for other detectors.
        pad: RGB value of pixels outside the scene (the training mean, which normalizes to zero).
        stretch: percentiles of a scene that map to 0 and 255 if its pixels are wider than 8 bits.
        alpha: fusion factors used in training, finest first. They are already folded into the weights.
        alpha_source: how the fusion factors were chosen.
        object_sizes: sqrt(w*h) of the training objects at percentiles 1, 50 and 99, in input pixels.
        domain: what the training images look like; None: unknown.
        precision: fp32, fp16 or int8, as in the graph.
        thresholds: for each class, the score of the graph from which on a detection counts with `--score auto`; empty
            if none are stored.
        operating_point: what these thresholds were chosen for, and on which data; for display only.
        calibration: for each class, slope and offset of `runtime.score_calibration`, which turns scores of the graph
            into probabilities; empty for scores as they are.
        calibration_source: which data these were fitted on; for display only.
        tile_filter: of a tile filter; None for a detector.
        onnx_sha256: hash of the ONNX file that an engine was built from.
        engine: flavor, version, target and tiles of an engine; empty for an ONNX file.
        versions: versions of the packages that exported the model.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    detector: str
    backbone: str
    tile: int
    tile_multiple: int = 0
    max_batch: int = 16
    max_detections: int = 1000
    score_floor: float = 0.05
    nms_iou: float = 0.5
    nms_in_graph: bool = False
    nms_rounds: int = 0
    grid_rois: int = 0
    pad: tuple[int, int, int] = PAD_VALUE
    stretch: tuple[float, float] = STRETCH
    alpha: tuple[float, ...] = ()
    alpha_source: str = ""
    object_sizes: tuple[float, float, float] | None = None
    domain: Domain | None = None
    precision: str = "fp32"
    thresholds: tuple[float, ...] = ()
    operating_point: str = ""
    calibration: tuple[tuple[float, float], ...] = ()
    calibration_source: str = ""
    tile_filter: FilterRecord | None = None
    onnx_sha256: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields that the runtime relies on.

        Raises:
            ValueError: names the field, the rule and the value.
        """
        n = len(self.classes)
        named = isinstance(self.classes, tuple) and n > 0 and all(isinstance(name, str) for name in self.classes)
        ids = len(self.category_ids) == n and all(abs(each) < 2**63 for each in self.category_ids)
        rgb = len(self.pad) == 3 and all(0 <= value <= 255 for value in self.pad)
        rising = len(self.stretch) == 2 and 0 <= self.stretch[0] < self.stretch[1] <= 100
        sizes = self.object_sizes or (0, 0, 0)
        shares = len(self.thresholds) in (0, n) and all(0 <= each <= 1 for each in self.thresholds)
        monotone = len(self.calibration) in (0, n) and all(map(_is_increasing_line, self.calibration))
        step, tiles = self.tile_multiple, self.engine.get("tiles", [self.tile])
        tiles = tiles if isinstance(tiles, list) and tiles else [0]
        for field_name, holds, rule in (
            ("classes", named, "one or more names"),
            ("category_ids", ids, f"one id below 2**63 for each of the {n} classes"),
            ("tile", 1 <= self.tile <= LARGEST_TILE, f"1 to {LARGEST_TILE} pixels"),
            ("tile_multiple", step == 0 or (step > 0 and self.tile % step == 0), f"0, or divide {self.tile}, the tile"),
            ("engine", all(isinstance(tile, int) and 1 <= tile <= LARGEST_TILE for tile in tiles), "of valid tiles"),
            ("max_batch", 1 <= self.max_batch <= LARGEST, f"1 to {LARGEST}"),
            ("max_detections", 1 <= self.max_detections <= LARGEST, f"1 to {LARGEST}"),
            ("score_floor", 0 <= self.score_floor < 1, "at least 0 and below 1"),
            ("object_sizes", 0 <= sizes[0] <= sizes[1] <= sizes[2] < math.inf, "three increasing sizes in pixels"),
            ("nms_rounds", 0 <= self.nms_rounds <= LARGEST, f"0 to {LARGEST}"),
            ("grid_rois", 0 <= self.grid_rois <= self.max_detections, f"0 to max_detections ({self.max_detections})"),
            ("nms_iou", 0 < self.nms_iou <= 1, "above 0 and at most 1"),
            ("pad", rgb, "three values from 0 to 255"),
            ("stretch", rising, "two increasing percentiles"),
            ("thresholds", shares, f"none, or a score from 0 to 1 for each of the {n} classes"),
            ("calibration", monotone, f"none, or a slope above 0 and an offset for each of the {n} classes"),
            ("domain", self.domain is None or len(self.domain.class_sizes) in (0, n), f"of {n} class{'es' * (n > 1)}"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not holds:
                raise ValueError(f"{field_name} must be {rule}, not {getattr(self, field_name)!r}")

    @property
    def tiles(self) -> tuple[int, ...]:
        """The tiles that an engine was built for; of other models the default one."""
        return tuple(self.engine.get("tiles", (self.tile,)))

    @property
    def is_adopted(self) -> bool:
        """Whether another framework exported the detector; `tinydet export adopt` notes it in `versions`."""
        return "original" in self.versions

    @property
    def boxes_per_tile(self) -> int:
        """The most boxes that the model returns for a tile; more slots than these stay empty."""
        return self.grid_rois or self.max_detections

    def to_json(self) -> str:
        """Serialize as strict JSON, with the format version."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, source: Path | str) -> ModelSpec:
        """Parse the output of `to_json`. Unknown fields, added by a newer tinydet in the same format, are ignored.

        Raises:
            ValueError: the text is not a valid ModelSpec of this format. Names `source`.
        """
        remedy = "export the model again"
        values = parse_json(text, source=source, remedy=remedy)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError(f"{source}: not a tinydet model description; {remedy}")
        if values["format"] != FORMAT:
            raise ValueError(
                f"{source}: model description of format {values['format']!r:.20}, this tinydet reads {FORMAT}; {remedy}"
            )
        what = "model description"
        for name, record in (("domain", Domain), ("tile_filter", FilterRecord)):
            values = {**values, name: record.from_dict(values.get(name), source=source, what=what, remedy=remedy)}
        return checked(cls, values, source=source, what=what, remedy=remedy)


def _is_increasing_line(line: tuple[float, float]) -> bool:
    return len(line) == 2 and 0 < line[0] < math.inf and math.isfinite(line[1])
