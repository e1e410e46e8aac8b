"""The settings of a run of `tinydet infer`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tinydet.infer.auto_options import choose_scale, object_pixels
from tinydet.infer.contrast_filter import ContrastFilter
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.read_ahead import TileFilter
from tinydet.runtime.scenes import Scene
from tinydet.runtime.tile_filter import FilterFile
from tinydet.spec import ModelSpec


@dataclass(frozen=True)
class Settings:
    """How a run processes its scenes.

    Attributes:
        options: how a scene is scanned.
        tile: side of the tiles that the model was opened for, in pixels.
        auto_scale: choose the scale of each scene from `object_size`, in place of the scale in `options`.
        object_size: side of a typical object, see `auto_options.object_pixels`.
        gsd: meters per pixel; None for the ground sample distance that a scene states.
        contrast_filter: decides by contrast which tiles the model must run on; None for all.
        tile_filter: a learned filter that decides it; None for all. At most one of the two is given.
        gps: place the detections of photos by their camera metadata.
        bands: 1-based band indices of the scenes; None for the RGB bands of the file.
        resume: continue from journals, and keep them.
        skip_unreadable: skip damaged scenes.
        verbose: report each of several scenes.
        every, frames, reconnect: of a video, see `Video`; the run stops after `frames`.
        track: number the objects of a video, see `tracking`.
    """

    options: ScanOptions
    tile: int = 0
    auto_scale: bool = False
    object_size: str = ""
    gsd: float | None = None
    gps: bool = False
    contrast_filter: ContrastFilter | None = None
    tile_filter: FilterFile | None = None
    bands: tuple[int, ...] | None = None
    resume: bool = False
    skip_unreadable: bool = False
    verbose: bool = False
    every: int = 1
    frames: int | None = None
    reconnect: float = 30.0
    track: bool = False

    @property
    def needs_gsd(self) -> bool:
        """Whether the scale of a scene depends on its ground sample distance."""
        return self.auto_scale and self.gsd is None and self.object_size.strip().endswith("m")

    def open_filter(self, tile: int) -> TileFilter | None:
        """Return the filter of the tiles, ready to run; None to run all.

        Args:
            tile: side of the tiles.

        Raises:
            ValueError, OSError, ImportError: the filter cannot run here.
        """
        if self.tile_filter is not None:
            return self.tile_filter.open(tile, self.options.readers)
        return self.contrast_filter

    @property
    def filters_coarse(self) -> bool:
        """Whether the filter decides about the tiles of a coarse pass, too. The learned one knows only one scale."""
        return self.tile_filter is None

    def options_for(self, scene: Scene, spec: ModelSpec) -> ScanOptions:
        """Return the options for a scene.

        Raises:
            ValueError: the scale depends on a ground sample distance that the scene does not state, or the filter was
                calibrated at another scale, or for another model.
        """
        options = self.options
        if self.auto_scale:
            gsd = self.gsd if self.gsd is not None else scene.gsd
            scale = choose_scale(spec, object_pixels(self.object_size, gsd, scene.name))
            options = dataclasses.replace(options, scale=scale)
        if self.contrast_filter is not None:
            self.contrast_filter.check(spec.tile, options.scale, self.bands)
        if self.tile_filter is not None:
            self.tile_filter.check(spec, options.scale)
        return options

    def identity(self, spec: ModelSpec) -> dict[str, Any]:
        """Return everything that the results of a scene depend on, except graph, scene and scale, as JSON values."""
        return {
            "gps": self.gps,
            "bands": self.bands,
            "tile": self.tile,
            "overlap": self.options.overlap,
            # The thresholds and the calibration of an engine are in its description, not in the file that is hashed.
            "score": list(spec.thresholds) if self.options.score == "auto" else self.options.score,
            "calibration": [list(line) for line in spec.calibration],
            "merge": self.options.merge,
            "agnostic": self.options.agnostic,
            "skip": self._skip_identity(),
        }

    def _skip_identity(self) -> dict[str, Any] | None:
        if self.tile_filter is not None:
            return self.tile_filter.identity()
        return None if self.contrast_filter is None else dataclasses.asdict(self.contrast_filter)

    def scale_identity(self) -> dict[str, Any]:
        """Return everything that the scale of a scene depends on, except the scene, as JSON values."""
        scale = None if self.auto_scale else self.options.scale
        return {"scale": scale, "object_size": self.object_size, "gsd": self.gsd}
