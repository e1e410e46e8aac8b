"""Build an assigner from options."""

from __future__ import annotations

from tinydet.models.assign import Assigner
from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.assign.rank import RankAssigner
from tinydet.models.assign.similarity import SIMILARITIES
from tinydet.models.options import Assignment, AssignOptions, thresholds_of


def build_assigner(
    assign: Assignment = "iou",
    rank: int = 0,
    background: float | None = None,
    *,
    iou_thresholds: tuple[float, float] = AssignOptions.iou_thresholds,
) -> Assigner:
    """Return the assigner of `AssignOptions`; the arguments are its options.

    By IoU and threshold it follows torchvision's `Matcher`, under which an object may lose its best anchor to a more
    similar one. With all others every object has an anchor.

    Args:
        iou_thresholds: foreground and background of the detector's published rule.
    """
    foreground, low = thresholds_of(assign, rank, background, iou_thresholds)
    if rank:
        return RankAssigner(SIMILARITIES[assign], rank, low)
    return MaxIoUAssigner(foreground, low, SIMILARITIES[assign], every_object=assign != "iou")
