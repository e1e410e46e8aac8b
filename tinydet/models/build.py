"""Build a detector from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinydet.models.detector import Detector
from tinydet.models.options import Fusion, Norm
from tinydet.models.registry import detector_info, detector_options


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
        object.__setattr__(self, "options", detector_options(self.detector, self.options))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as one flat dict, options included, as checkpoints store it."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "options"}
        return {**values, **self.options}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectorConfig:
        """Read what `to_dict` wrote; unknown keys are ignored."""
        names = {each.name for each in dataclasses.fields(cls)} - {"options"}
        own = {name: values[name] for name in detector_info(values["detector"]).option_names if name in values}
        return cls(**{name: values[name] for name in names}, options=own)


def build_detector(config: DetectorConfig, alpha: Sequence[float] | None = None) -> Detector:
    """Build the detector with random weights.

    Raises:
        ValueError: unknown detector, backbone or option.
    """
    return detector_info(config.detector).load()(
        config.backbone,
        config.classes,
        channels=config.channels,
        alpha=alpha,
        fusion=config.fusion,
        norm=config.norm,
        **config.options,
    )
