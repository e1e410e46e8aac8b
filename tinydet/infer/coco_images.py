"""The images of a COCO file, as scenes to run a model on. A sub-image of a corner file is the part that it names."""

from __future__ import annotations

from pathlib import Path

from tinydet.data.coco_file import Document, load_document
from tinydet.runtime.scenes.sources import Source


def load_images(annotations: Path, images: Path | None = None) -> Document:
    """Read and check a COCO file and its images, by the rules of `tinydet evaluate --annotations`.

    Args:
        annotations: `.json` or `.json.gz`.
        images: folder of the image files; None for `images` next to the file, or the file's own folder without it.

    Raises:
        ValueError: the file breaks a rule, or an image file is missing.
    """
    folder = images
    if folder is None:
        folder = annotations.parent / "images"
        folder = folder if folder.is_dir() else annotations.parent
    return load_document(annotations, folder, allow_corner_file=True)


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
