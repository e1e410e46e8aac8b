"""ModelSpec: what a deployed model says about itself. It travels as `model.json` and as ONNX `metadata_props`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAD_VALUE = (124, 116, 104)  # RGB beyond the scene: the mean that pixels are normalised with, so that it becomes zero
FORMAT = 1  # of the JSON; raised when a reader of the old one would go wrong
PRECISIONS = ("fp32", "fp16", "int8")
NMS_ROUNDS = 16  # of suppression among proposals, where nobody asks for another number


@dataclass(frozen=True)
class ModelSpec:
    """What the host must know to feed an exported model and to read its answers.

    Attributes:
        classes: class names; a label is an index into them.
        category_ids: the COCO category id of each class, as in the training annotations.
        detector, backbone: names, for people.
        tile: side of the square input in pixels.
        max_batch: largest batch that the model takes.
        max_detections: K, the slots for each tile.
        score_floor: boxes below it were dropped inside the graph.
        nms_iou: IoU above which two boxes of one class on one tile are the same object; the runtime applies it
            where `nms_in_graph` is false.
        nms_rounds: of the suppression among the proposals of a two-stage detector, inside its graph; where above 0 the
            model has an output more, `unconverged`, which must be 0.
        pad: RGB value of the pixels beyond the scene (the training mean, so that they normalise to zero).
        stretch: percentiles of a scene that map to 0 and 255 where its pixels are wider than 8 bits.
        alpha: fusion factors, finest first; they are folded into the weights and say how the model was trained.
        alpha_source: how they were chosen.
        object_sizes: sqrt(w*h) of the training objects at percentiles 1, 50 and 99, in input pixels.
        precision: fp32, fp16 or int8, as in the graph.
        onnx_sha256: hash of the ONNX file that an engine was built from.
        engine: flavour, version and target of an engine; empty for an ONNX file.
        versions: of the packages that wrote the model.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    detector: str
    backbone: str
    tile: int
    max_batch: int = 16
    max_detections: int = 1000
    score_floor: float = 0.05
    nms_iou: float = 0.5
    nms_in_graph: bool = False
    nms_rounds: int = 0
    pad: tuple[int, int, int] = PAD_VALUE
    stretch: tuple[float, float] = (0.5, 99.5)
    alpha: tuple[float, ...] = ()
    alpha_source: str = ""
    object_sizes: tuple[float, float, float] | None = None
    precision: str = "fp32"
    onnx_sha256: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would make the host feed or read the model wrongly.

        Raises:
            ValueError: which field, its rule and its value.
        """
        n = len(self.classes)
        named = isinstance(self.classes, tuple) and n > 0 and all(isinstance(name, str) for name in self.classes)
        rgb = len(self.pad) == 3 and all(0 <= value <= 255 for value in self.pad)
        rising = len(self.stretch) == 2 and 0 <= self.stretch[0] < self.stretch[1] <= 100
        for field_name, holds, rule in (
            ("classes", named, "one or more names"),
            ("category_ids", len(self.category_ids) == n, f"one id for each of the {n} classes"),
            ("tile", self.tile >= 1, "pixels, 1 or more"),
            ("max_batch", self.max_batch >= 1, "1 or more"),
            ("max_detections", self.max_detections >= 1, "1 or more"),
            ("score_floor", 0 <= self.score_floor < 1, "at least 0 and below 1"),
            ("nms_rounds", self.nms_rounds >= 0, "at least 0"),
            ("nms_iou", 0 < self.nms_iou <= 1, "above 0 and at most 1"),
            ("pad", rgb, "three values from 0 to 255"),
            ("stretch", rising, "two rising percentiles"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not holds:
                raise ValueError(f"{field_name} must be {rule}, not {getattr(self, field_name)!r}")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: Path | str) -> ModelSpec:
        """Parse what `to_json` wrote; fields that a newer tinydet added within the same format are passed over.

        Raises:
            ValueError: naming `source`, where it is not such a text.
        """
        try:
            values = json.loads(text)
            written = values.pop("format")
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{source}: not a tinydet model description ({error}); export the model again") from error
        if written != FORMAT:
            raise ValueError(
                f"{source}: model description of format {written}, this tinydet reads {FORMAT}; export the model again"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known
        }
        try:
            return cls(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: not a usable model description ({error}); export the model again") from error
