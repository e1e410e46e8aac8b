"""How scenes are scanned, as a user asked for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tinydet.infer.auto_options import choose_scale, object_pixels
from tinydet.infer.contrast_filter import ContrastFilter
from tinydet.runtime.scenes import Scene
from tinydet.runtime.stitch import Merge
from tinydet.spec import ModelSpec


@dataclass(frozen=True)
class Settings:
    """How scenes are scanned.

    Attributes:
        scale: resize factor; None for that of each scene by `object_size`.
        object_size: side of a typical object, see `choosing.object_pixels`.
        gsd: metres for each pixel; None for what a scene says.
        gate: which tiles are worth running; None for all.
        bands: of the scenes; None for those that call themselves red, green and blue.
        resume: go on from journals, and keep them.
        skip_unreadable: go on with the next scene where one is damaged.
        every, frames, reconnect: of a video, see `Video`; `frames` ends it.
        merge, agnostic: how the tiles' boxes become the scene's, see `pipeline.scan`.
    """

    overlap: int
    score: float
    batch: int
    readers: int
    scale: float | None = 1.0
    object_size: str = ""
    gsd: float | None = None
    gate: ContrastFilter | None = None
    bands: tuple[int, ...] | None = None
    resume: bool = False
    skip_unreadable: bool = False
    every: int = 1
    frames: int | None = None
    reconnect: float = 30.0
    merge: Merge = "seam"
    agnostic: bool = False

    def scale_of(self, scene: Scene, spec: ModelSpec) -> float:
        """The resize factor for a scene.

        Raises:
            ValueError: it depends on what the scene does not say, or the gate was not measured at it.
        """
        scale = self.scale
        if scale is None:
            gsd = self.gsd if self.gsd is not None else scene.gsd
            scale = choose_scale(spec, object_pixels(self.object_size, gsd, scene.name))
        if self.gate is not None:
            self.gate.check(spec.tile, scale, self.bands)
        return scale

    def identity(self) -> dict[str, Any]:
        """What the boxes of a scene depend on, beside the model, the scene and its scale; plain JSON values."""
        return {
            "bands": self.bands,
            "overlap": self.overlap,
            "score": self.score,
            "merge": self.merge,
            "agnostic": self.agnostic,
            "skip": None if self.gate is None else dataclasses.asdict(self.gate),
        }
