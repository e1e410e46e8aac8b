"""Choose the images that a model is verified on, with their annotations of the classes that the model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.synthetic import builtin_dataset
from tinydet.evaluate.score_model import match_classes


def choose_images(
    classes: Sequence[str], images: Sequence[Path] | None, data: Path | None, config: Mapping[str, Any]
) -> tuple[list[Path], Dataset | None]:
    """Return `images`, else the COCO folder `data`, else the validation set of the checkpoint, else the built-in one.

    Args:
        classes: class names of the model.
        images: image files, which have no annotations.
        config: training configuration of the checkpoint; empty if there is none.

    Raises:
        ValueError: an image does not exist; `data` is malformed or has no class in common with the model.
    """
    if images:
        for path in images:
            if not path.is_file():
                raise ValueError(f"{path}: no such image; name files with --images, or a COCO folder with --data")
        return list(images), None
    annotations, folder = config.get("val_annotations"), config.get("val_images")
    validation = None
    if annotations and folder and Path(annotations).is_file() and Path(folder).is_dir():
        validation = Path(annotations), Path(folder)
    return verification_images(classes, data, validation)


def verification_images(
    classes: Sequence[str], data: Path | None, fallback: tuple[Path, Path] | None = None
) -> tuple[list[Path], Dataset | None]:
    """Return the images of a COCO folder, and their annotations of the classes that a model knows.

    Args:
        classes: class names of the model. Other classes are left out, as their AP would be 0 before and after.
        data: the folder; None for `fallback`, else the built-in validation set.
        fallback: annotation file and image folder.

    Returns:
        The dataset is None if `fallback` or the built-in set has no class in common with the model.

    Raises:
        ValueError: `data` is malformed, or has no class in common with the model.
    """
    source = find_dataset(data) if data is not None else fallback or find_dataset(builtin_dataset("val"))
    dataset = load_dataset(*source)
    if dataset.is_cut:
        raise ValueError(
            f"{dataset.source}: a corner file, whose images are parts of the image files; name a COCO folder of whole "
            "images, or write the parts first: tinydet data cut CORNERS.json --images DIR --output FOLDER"
        )
    images = [dataset.image_path(i) for i in range(len(dataset.images))]
    known = [name for name in dataset.classes if name in classes]
    if known:
        return images, load_dataset(*source, categories=known)
    if data is not None:
        match_classes(classes, dataset.classes, dataset.category_ids)  # raises and lists the classes
    return images, None


def is_built_in(images: Sequence[Path]) -> bool:
    """Return whether these images belong to the built-in validation set."""
    folder = find_dataset(builtin_dataset("val"))[1]
    return folder is not None and bool(images) and images[0].is_relative_to(folder)
