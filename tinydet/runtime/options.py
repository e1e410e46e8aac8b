"""ScanOptions: how a scene is scanned. The one set of options of `scan`, `Model`, `load` and the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tinydet._internal import arguments
from tinydet._internal.arguments import check_number, quoted
from tinydet._internal.suggestions import did_you_mean
from tinydet.geometry.tiles import MOST_TILES
from tinydet.runtime.coarse import CoarsePass
from tinydet.runtime.read_ahead import READERS
from tinydet.runtime.stitch import MERGES, Merge

_HABITS = {"conf": "score", "confidence": "score", "threshold": "score", "batch_size": "batch"}  # of other tools
RULES: dict[str, Callable[[str], Any]] = {
    "overlap": arguments.overlap,
    "scale": arguments.scale,
    "score": arguments.share,
    "batch": arguments.batch_size,
    "readers": arguments.readers,
    "max_tiles": arguments.positive_int,
}


@dataclass(frozen=True)
class ScanOptions:
    """How a scene is scanned.

    Attributes:
        overlap: pixels that adjacent tiles share at least, after rescaling, as the model sees them. An object no larger
            lies whole inside at least one tile; larger ones are joined from their parts. None: 128, or half a tile if
            that is less.
        scale: resize factor of the scene; 0.5 halves it. Detections are in pixels of the original scene.
        score: detections with a lower score are dropped; "auto": lower than the threshold of their class that is stored
            in the model. Of a calibrated model, it is the calibrated score.
        batch: tiles per run of the model; never more than the model accepts.
        merge: how boxes of several tiles become one. "seam" is the method of `stitch`; the others are for comparison.
        agnostic: boxes of different classes may be one object.
        coarse: a first pass at a smaller scale, for objects larger than the overlap. "auto": if the model was trained
            on such objects (`choose_coarse_pass`). None: no coarse pass.
        readers: threads that read a scene, if its format allows more than one.
        max_tiles: a scan of more tiles is refused before it starts.

    Raises:
        ValueError: a value has another type or is out of range, as on the command line. `plan_scan` checks
            whether `overlap` and `scale` fit the model's tile.
    """

    overlap: int | None = None
    scale: float = 1.0
    score: float | Literal["auto"] = 0.05
    batch: int = 4
    merge: Merge = "seam"
    agnostic: bool = False
    coarse: CoarsePass | Literal["auto"] | None = "auto"
    readers: int = READERS
    max_tiles: int = MOST_TILES

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if name == "score" and isinstance(value, str) and value != "auto":
                raise ValueError(f"score: expected a number or 'auto', got {quoted(value)}")
            if (value is not None or name != "overlap") and value != "auto":
                object.__setattr__(self, name, check_number(name, value, rule))
        if not isinstance(self.agnostic, bool):
            raise ValueError(f"agnostic must be True or False, got {quoted(self.agnostic)}")
        if not (self.coarse is None or self.coarse == "auto" or isinstance(self.coarse, CoarsePass)):
            raise ValueError(f"coarse must be None, 'auto' or a CoarsePass, got {quoted(self.coarse)}")
        if self.merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {quoted(self.merge)}")

    def changed(self, changes: Mapping[str, Any]) -> ScanOptions:
        """Return a copy with other values of some fields.

        Raises:
            TypeError: there is no such field. ValueError: a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in known]:
            hint = did_you_mean(_HABITS.get(unknown[0], unknown[0]), known)
            raise TypeError(f"no option {unknown[0]!r}; there are {', '.join(known)}{hint}")
        return dataclasses.replace(self, **changes)
