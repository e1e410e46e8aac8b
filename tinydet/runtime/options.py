"""ScanOptions: how a scene is scanned. The one set of options of `scan`, `Model`, `load` and the commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinydet.runtime.coarse import CoarsePass
from tinydet.runtime.read_ahead import READERS
from tinydet.runtime.stitch import MERGES, Merge


@dataclass(frozen=True)
class ScanOptions:
    """How a scene is scanned.

    Attributes:
        overlap: pixels that adjacent tiles share at least, after rescaling, as the model sees them. An object no larger
            lies whole inside at least one tile; larger ones are joined from their parts. None: 128, or half a tile if
            that is less.
        scale: resize factor of the scene; 0.5 halves it. Detections are in pixels of the original scene.
        score: detections with a lower score are dropped.
        batch: tiles per run of the model; never more than the model accepts.
        merge: how boxes of several tiles become one. "seam" is the method of `stitch`; the others are for comparison.
        agnostic: boxes of different classes may be one object.
        coarse: a first pass at a smaller scale, for objects larger than the overlap. "auto": if the model was trained
            on such objects (`choose_coarse_pass`). None: no coarse pass.
        readers: threads that read a scene, if its format allows more than one.

    Raises:
        ValueError: a value is out of range. `plan_scan` checks `overlap` and `scale`, which depend on the model's tile.
    """

    overlap: int | None = None
    scale: float = 1.0
    score: float = 0.05
    batch: int = 4
    merge: Merge = "seam"
    agnostic: bool = False
    coarse: CoarsePass | Literal["auto"] | None = "auto"
    readers: int = READERS

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score must be between 0 and 1, got {self.score}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.readers < 1:
            raise ValueError(f"readers must be at least 1, got {self.readers}")
        if not (self.coarse in (None, "auto") or isinstance(self.coarse, CoarsePass)):
            raise ValueError(f"coarse must be None, 'auto' or a CoarsePass, got {self.coarse!r}")
        if self.merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {self.merge!r}")
