"""Choose the images that a model is verified on, with their annotations of the classes that the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset
from tinydet.data.source import DataSource, announce, builtin_source, find_source
from tinydet.evaluate.score_model import match_classes

if TYPE_CHECKING:
    from tinydet.models.checkpoint import Checkpoint


def choose_images(
    classes: Sequence[str], images: Sequence[Path] | None, data: Path | None, validation: DataSource | None
) -> tuple[list[Path], Dataset | None]:
    """Return `images`, else the dataset `data`, else the validation set of the checkpoint, else the built-in one.

    Args:
        classes: class names of the model.
        images: image files, which have no annotations.
        validation: validation data of the checkpoint; None if there is none.

    Raises:
        ValueError: an image does not exist; `data` is malformed or has no class in common with the model.
    """
    if images:
        for path in images:
            if not path.is_file():
                raise ValueError(f"{path}: no such image; name files with --images, or a COCO folder with --data")
        return list(images), None
    return verification_images(classes, data, validation)


def validation_source(checkpoint: Checkpoint, path: Path) -> DataSource | None:
    """Return the validation data of the checkpoint at `path`; None if there was none, or it is gone."""
    try:
        return checkpoint.val_source(path)
    except ValueError:
        return None


def find_data(data: Path | None) -> DataSource | None:
    """Return the dataset that `--data` names, None without it. Needs no torch, so call it before importing torch.

    Raises:
        ValueError: it does not exist or is not recognized.
    """
    return None if data is None else find_source(data, prefer=("val", "test"), needs_images=True)


def verification_images(
    classes: Sequence[str], data: Path | None, fallback: DataSource | None = None
) -> tuple[list[Path], Dataset | None]:
    """Return the images of a dataset, and their annotations of the classes that a model knows.

    Args:
        classes: class names of the model. Other classes are left out, as their AP would be 0 before and after.
        data: `--data`; None for `fallback`, else the built-in validation set.

    Returns:
        The dataset is None if `fallback` or the built-in set has no class in common with the model.

    Raises:
        ValueError: `data` is malformed, or has no class in common with the model.
    """
    source = find_data(data) or fallback or builtin_source("val")
    dataset = announce(source).load()
    if dataset.is_cut:
        raise ValueError(
            f"{dataset.source}: a corner file, whose images are parts of the image files; name a COCO folder of whole "
            "images, or write the parts first: "
            f"{tinydet_command('data', 'cut')} CORNERS.json --images DIR --output FOLDER"
        )
    images = [dataset.image_path(i) for i in range(len(dataset.images))]
    known = [name for name in dataset.classes if name in classes]
    if known:
        return images, source.load(categories=known)
    if data is not None:
        match_classes(classes, dataset.classes, dataset.category_ids)  # raises and lists the classes
    return images, None


def is_built_in(images: Sequence[Path]) -> bool:
    """Return whether these images belong to the built-in validation set."""
    folder = builtin_source("val").image_dir
    return folder is not None and bool(images) and images[0].is_relative_to(folder)
