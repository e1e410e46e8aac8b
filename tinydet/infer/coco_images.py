"""The images of a COCO file, as scenes to run a model on. A sub-image of a corner file is the part that it names."""

from __future__ import annotations

from pathlib import Path

from tinydet.data.coco_file import Document
from tinydet.data.source import find_source
from tinydet.runtime.scenes.sources import Source


def load_images(annotations: Path, images: Path | None = None) -> Document:
    """Read and check a COCO file and its images, by the rules of `tinydet evaluate --annotations`.

    Args:
        annotations: COCO file, or a dataset in a known layout.
        images: folder of the image files; None for the one near the file that has them.

    Raises:
        ValueError: the file breaks a rule, or an image file is missing.
    """
    source = find_source(None, annotations, images, prefer=("val", "test"), needs_images=True)
    return source.load_document(allow_corner_file=True)


def coco_sources(annotations: Path, images: Path | None = None) -> list[Source]:
    """Return the images of a COCO file with their ids, in the order of the file; see `load_images`."""
    document = load_images(annotations, images)
    records = document.records
    return [
        Source(
            str(path),
            record.id,
            size=(record.width, record.height),
            corner=record.corner,
            file_name=record.file_name,
        )
        for record, path in ((records[image["id"]], document.image_path(image)) for image in document.images)
    ]
