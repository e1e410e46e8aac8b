"""Build a detector from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import MAX_CHANNELS, quoted
from tinydet._internal.json_files import checked
from tinydet.models.detector import Detector
from tinydet.models.options import Fusion, Norm
from tinydet.models.registry import DETECTORS, detector_info, detector_options

LARGEST = {"channels": MAX_CHANNELS, "classes": 10_000}  # more is an error, and would not fit in memory


@dataclass(frozen=True)
class DetectorConfig:
    """Everything that shapes the network. The value of alpha is not here: it is saved with the weights.

    Attributes:
        options: values of the detector's own options (see its registry row); missing ones have their defaults.
    """

    backbone: str = "resnet50"
    channels: int = 256
    norm: Norm = "frozen"
    classes: int = 1
    detector: str = "retinanet"
    fusion: Fusion = "fixed"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("channels", self.channels), ("classes", self.classes)):
            if not 1 <= value <= LARGEST[name]:
                raise ValueError(f"{name} must be 1 to {LARGEST[name]}, not {value}")
        object.__setattr__(self, "options", detector_options(self.detector, self.options))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as one flat dict, options included, as checkpoints store it."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "options"}
        return {**values, **self.options}

    @classmethod
    def from_dict(cls, values: object, *, source: Path | str) -> DetectorConfig:
        """Build a config from the output of `to_dict`; unknown keys are ignored.

        Raises:
            ValueError: a field is missing, or has another type or an unknown value. Names `source`.
        """
        given = values if isinstance(values, dict) else {}
        name = given.get("detector")
        if isinstance(name, str) and name not in DETECTORS:
            raise ValueError(
                f"{source}: its detector {quoted(name)} is not registered; name the file that registers it with "
                "--plugin FILE.py, or import it first in Python (a checkpoint never imports code itself)"
            )
        info = DETECTORS.get(str(given.get("detector")))
        own = {name: given[name] for name in info.option_names if name in given} if info else {}
        arguments = {**given, "options": own} if isinstance(values, dict) else values
        return checked(cls, arguments, source=source, what="detector", remedy="train again or name another file")


def build_detector(config: DetectorConfig, alpha: Sequence[float] | None = None) -> Detector:
    """Build the detector with random weights.

    Raises:
        ValueError: unknown detector, backbone or option.
    """
    info = detector_info(config.detector)
    detector = info.load()(
        config.backbone,
        config.classes,
        channels=config.channels,
        alpha=alpha,
        fusion=config.fusion,
        norm=config.norm,
        **config.options,
    )
    detector.tile_multiple = info.tile_multiple
    return detector
