"""The annotated pictures that a model is verified on, of the classes that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.synthetic import embedded_dataset
from tinydet.evaluate.score_model import match_classes


def gate_images(
    classes: Sequence[str], data: Path | None, other: tuple[Path, Path] | None = None
) -> tuple[list[Path], Dataset | None]:
    """The pictures of a COCO folder, and their annotations of the classes that a model knows.

    Args:
        classes: of the model.
        data: the folder; None: `other`, else the embedded data.
        other: annotation file and image folder.

    Returns:
        Without annotations where no class is known: pictures without AP. A class that the model does not know is left
        out, for it would be a zero in the mean, before and after.

    Raises:
        ValueError: where `data` is malformed, or has no class in common with the model.
    """
    source = find_dataset(data) if data is not None else other or find_dataset(embedded_dataset("val"))
    dataset = load_dataset(*source)
    pictures = [dataset.image_path(i) for i in range(len(dataset.images))]
    known = [name for name in dataset.classes if name in classes]
    if known:
        return pictures, load_dataset(*source, categories=known)
    if data is not None:
        match_classes(classes, dataset.classes, dataset.category_ids)  # says so
    return pictures, None


def is_embedded(pictures: Sequence[Path]) -> bool:
    """Whether these are of the embedded validation scenes, which stand in where nothing was named."""
    folder = find_dataset(embedded_dataset("val"))[1]
    return folder is not None and bool(pictures) and pictures[0].is_relative_to(folder)
