"""TinyPerson: COCO JSON with four additional flags per annotation.

The flags are `ignore` (crowds, reflections), `uncertain` (perhaps not a person), `logo` and `in_dense_image`. Files of
sub-images give each image a `corner` and list the uncut images as `old_images`. Ids count from 0. The classes are
sea_person and earth_person; files of a task have only one of them, or `person`. Published in ucas-vg/TinyBenchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinydet.data.coco_entries import raise_first
from tinydet.data.coco_rules import examine, normalize, read_document
from tinydet.data.readers.coco_builder import CocoBuilder

FLAGS = ("ignore", "uncertain", "logo", "in_dense_image")
TASKS = ("all", "sea", "earth")


def read(
    source: Path, images: Path | None = None, *, task: str | None = None, keep_uncertain: bool = False
) -> CocoBuilder:
    """Read an annotation file of whole images or sub-images. All fields except `ignore` stay unchanged.

    Uncertain annotations and logos become ignore regions, because the training set of the benchmark has neither. The
    evaluator of the benchmark reads `ignore` and `uncertain` but not `logo`: evaluate with the published file to
    compare with published scores.

    Args:
        images: folder of the images, to check that they exist and have the recorded sizes; None checks nothing.
        task: "all" makes one class `person`; "sea" and "earth" keep one class and turn the other into ignore regions.
            None keeps the classes of the file.
        keep_uncertain: keep uncertain annotations as objects.

    Raises:
        ValueError: the file or an entry is invalid; the message names it.
    """
    document = read_document(source)
    examine(document, raise_first(source))
    normalize(document)
    annotations: list[dict[str, Any]] = document["annotations"]
    counts = {flag: sum(bool(annotation.get(flag)) for annotation in annotations) for flag in FLAGS}
    ignored = ("ignore", "logo") if keep_uncertain else ("ignore", "uncertain", "logo")
    for annotation in annotations:
        annotation["ignore"] = int(any(annotation.get(flag) for flag in ignored))
    categories = document["categories"] if task is None else _for_task(document, task, source)
    extra = {key: value for key, value in document.items() if key not in ("images", "annotations", "categories")}
    locations = [f"annotation {annotation['id']}" for annotation in annotations]
    notes = [f"flagged in the file: {', '.join(f'{flag} {count:,}' for flag, count in counts.items())}"]
    coco = CocoBuilder(source, categories, document["images"], annotations, locations, notes, extra)
    if images is not None:
        coco.check_sizes(images)
    return coco


def _for_task(document: dict[str, Any], task: str, source: Path) -> list[dict[str, Any]]:
    """Return the categories of a task, and change the annotations in place."""
    annotations, categories = document["annotations"], document["categories"]
    if task == "all":
        for annotation in annotations:
            annotation["category_id"] = 1
        return [{"id": 1, "name": "person", "supercategory": "none"}]
    kept = [category for category in categories if category["name"] == f"{task}_person"]
    if not kept:
        names = ", ".join(category["name"] for category in categories)
        raise ValueError(f"{source}: no category {task}_person, it has {names}; leave out --task {task}")
    for annotation in annotations:
        if annotation["category_id"] != kept[0]["id"]:
            annotation.update(category_id=kept[0]["id"], ignore=1)
    return kept
