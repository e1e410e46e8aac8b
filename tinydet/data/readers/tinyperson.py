"""TinyPerson: COCO JSON with four flags of its own for each annotation.

`ignore` (crowds, reflections), `uncertain` (a person or not?), `logo` and `in_dense_image`; sub-images have a `corner`,
and their file the `old_images` that they were cut from. Ids count from 0. The classes are sea_person and earth_person,
or, in the files of a task, one of them alone or `person`. Published in ucas-vg/TinyBenchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinydet.data.coco import refusing
from tinydet.data.coco_rules import examine, read_document
from tinydet.data.readers.collection import Collection

FLAGS = ("ignore", "uncertain", "logo", "in_dense_image")
TASKS = ("all", "sea", "earth")


def read(source: Path, *, task: str | None = None, keep_uncertain: bool = False) -> Collection:
    """Any annotation file of the set, whole images or sub-images; every field stays as it is, but for `ignore`.

    What is uncertain or a logo becomes an ignore region, as the benchmark's training set has neither. Its evaluator
    reads `ignore` and `uncertain` but no `logo`: to compare with published scores, score the published file itself.

    Args:
        task: "all" makes one class `person`; "sea" and "earth" keep one class, and the other becomes ignore regions.
            None leaves the classes of the file.
        keep_uncertain: uncertain annotations stay objects.

    Raises:
        ValueError: naming the file and the entry.
    """
    document = read_document(source)
    examine(document, refusing(source))
    annotations: list[dict[str, Any]] = document["annotations"]
    for annotation in annotations:
        for flag in FLAGS[1:]:
            if type(annotation.get(flag, 0)) not in (int, bool) or annotation.get(flag, 0) not in (0, 1):
                what = f"annotation {annotation['id']} has {flag} {annotation[flag]!r}"
                raise ValueError(f"{source}: {what}; expected true or false, as in the files of TinyPerson")
    counts = {flag: sum(bool(annotation.get(flag)) for annotation in annotations) for flag in FLAGS}
    hidden = ("ignore", "logo") if keep_uncertain else ("ignore", "uncertain", "logo")
    for annotation in annotations:
        annotation["ignore"] = int(any(annotation.get(flag) for flag in hidden))
    categories = document["categories"] if task is None else _for_task(document, task, source)
    extra = {key: value for key, value in document.items() if key not in ("images", "annotations", "categories")}
    places = [f"annotation {annotation['id']}" for annotation in annotations]
    notes = [f"flagged in the file: {', '.join(f'{flag} {count:,}' for flag, count in counts.items())}"]
    return Collection(source, categories, document["images"], annotations, places, notes, extra)


def _for_task(document: dict[str, Any], task: str, source: Path) -> list[dict[str, Any]]:
    """The categories of a task; annotations are changed to it."""
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
