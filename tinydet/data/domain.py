"""Measure what the images of a dataset look like, for `ModelSpec.domain`."""

from __future__ import annotations

import statistics

import numpy as np

from tinydet.data.coco import Dataset, open_image
from tinydet.data.scale_match import sizes_of
from tinydet.runtime.domain import gsd_of, look_at, percentiles
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.spec import STRETCH, Domain

FEWEST, MOST = 8, 64  # images to look at
PIXELS = 200_000_000  # that are decoded for it, in about two seconds


def measure_domain(dataset: Dataset, *, stretch: tuple[float, float] = STRETCH) -> Domain | None:
    """Return the domain of a model that is trained on this dataset; None if no image can be read.

    Up to 64 images are looked at, evenly spread over the dataset; fewer if they are large.

    Args:
        stretch: as for `open_scene`.
    """
    count = len(dataset.images)
    if dataset.image_dir is None or not count:
        return None
    pixels = statistics.median(record.width * record.height for record in dataset.images)
    most = min(max(int(PIXELS / max(pixels, 1)), FEWEST), MOST, count)
    looks, gsds = [], []
    for i in np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist():
        try:
            with open_image(dataset, i, stretch=stretch) as scene:
                look, gsd = look_at(scene), gsd_of(scene, read_camera(dataset.image_path(i)))
        except (ValueError, OSError):
            continue  # training reports it, or skips it
        if look is not None:
            looks.append(look)
        if gsd is not None:
            gsds.append(gsd)
    if not looks:
        return None
    chroma, brightness, contrast, detail = (percentiles(values) for values in zip(*looks, strict=True))
    sizes, objects = sizes_of(dataset.boxes), dataset.objects
    by_class = [sizes[objects & (dataset.labels == label)] for label in range(len(dataset.classes))]
    return Domain(
        len(looks),
        chroma,
        brightness,
        contrast,
        detail,
        class_sizes=tuple(percentiles(of, (1, 50, 99)) if len(of) else (0.0, 0.0, 0.0) for of in by_class),
        gsd=percentiles(gsds) if gsds else None,
    )
