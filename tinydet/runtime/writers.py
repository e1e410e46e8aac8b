"""Files of detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinydet._atomic import write_json
from tinydet.runtime.detections import Detections


def write_coco(path: Path, detections: Mapping[int, Detections], category_ids: Sequence[int]) -> None:
    """Write COCO results, one list for all images.

    Args:
        detections: by COCO image id, in pixels of that image.
        category_ids: the COCO id of each class.
    """
    write_json(
        path, [row for image_id, of in detections.items() for row in of.to_coco(image_id, category_ids)], indent=None
    )
