"""What S-alpha counts on each level of a detector. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.points import PointDesign, count_points
from tinydet.geometry.ranked import count_ranked
from tinydet.models.options import center_radius_of

CountRule = Literal["gt", "anchor"]
LevelCounts = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], Mapping[str, Any]], ArrayLike]


@dataclass(frozen=True)
class LevelStatistic:
    """What S-alpha counts on each level of a detector.

    Attributes:
        counts: (boxes, sizes, image_index, options) -> one whole number per level of the pyramid, finest first. boxes:
            (M, 4) xyxy in input pixels; sizes: (I, 2) width and height of every image; image_index: (M,) image of each
            box; options: all options of the detector by name.
        text: what is counted, for reports, such as "objects by the level that learns them".
        reason: a sentence that says why this is what the detector learns, for `tinydet salpha`.
        unit: noun for one of them.
        options: names of the detector's options that change the counts; they are flags of `tinydet salpha`.
    """

    counts: LevelCounts
    text: str
    reason: str = ""
    unit: str = "object"
    options: tuple[str, ...] = ()

    def checked(self, found: ArrayLike, levels: Sequence[str]) -> tuple[int, ...]:
        """Return what `counts` returned as integers.

        Raises:
            ValueError: it is not one whole number of at least 0 per level.
        """
        counts = np.asarray(found)
        if counts.shape != (len(levels),) or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise ValueError(
                f"`counts` of {self.text!r} must return one whole number of at least 0 for each of "
                f"{', '.join(levels)}, not {counts.dtype} {counts.tolist()}"
            )
        return tuple(counts.tolist())


def point_statistics(design: PointDesign) -> dict[CountRule, LevelStatistic]:
    """Return the statistics of a detector with these points and the options of FCOS, by rule."""

    def points(
        boxes: NDArray[np.float64], sizes: NDArray[np.int64], index: NDArray[np.int64], options: Mapping[str, Any]
    ) -> tuple[int, ...]:
        if options["assign"] != "points":
            return count_ranked(design.squares(), boxes, sizes, index, options["assign_rank"], options["assign"])
        chosen = center_radius_of(design, options["center_radius"])
        return count_points(chosen, boxes, sizes, index, every_object=options["without_point"] == "nearest")

    def objects(boxes: NDArray[np.float64], *_: Any) -> NDArray[np.intp]:
        return np.bincount(design.level_of(boxes), minlength=len(design.levels))

    return {
        "anchor": LevelStatistic(
            points,
            "positive points by level",
            "the loss of a level sums over the points that learn an object, so an object counts with all its points",
            "point",
            ("assign", "assign_rank", "center_radius", "without_point"),
        ),
        "gt": LevelStatistic(
            objects,
            "objects by the level whose range holds half their longer side",
            "that is the level of the point at the center of an object",
        ),
    }
