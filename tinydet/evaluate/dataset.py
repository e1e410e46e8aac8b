"""Score a model on a data set: through the same `detect()` that a deployment runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from tinydet.data.sub_images import Corner, sub_image_corners
from tinydet.evaluate.protocols import Protocol, choose_protocol
from tinydet.evaluate.score import Scores, score_detections
from tinydet.evaluate.sub_images import merge_sub_images
from tinydet.evaluate.tables import read_json

if TYPE_CHECKING:
    from tinydet.data.coco import Dataset
    from tinydet.runtime.backends import Backend
    from tinydet.runtime.scenes import Scene

Merge = Literal["seam", "nms", "tinyperson"]


@dataclass(frozen=True)
class DatasetDetections:
    """What a model found.

    Attributes:
        detections: COCO results in the data set's category ids, by image.
        image_ids: the images looked at.
        tiles: how many the images were cut into.
        saturated: how many of these had more candidates than the model has slots.
        seconds: of the whole pass.
        notes: what a reader of the scores should know.
        unconverged: proposals whose suppression in the graph had not settled.
    """

    detections: list[dict[str, Any]]
    image_ids: tuple[int, ...]
    tiles: int
    saturated: int
    seconds: float
    notes: tuple[str, ...]
    unconverged: int = 0


def evaluate_backend(
    backend: Backend,
    dataset: Dataset,
    *,
    score: float = 0.05,
    overlap: int | None = None,
    protocol: str = "coco",
    progress: bool = False,
) -> dict[str, Any]:
    """Run a model over a data set and score it: `detect_dataset`, then `score_dataset`, as JSON.

    Args:
        score: detections below it are dropped.
        overlap: of neighbouring tiles, pixels; None for 128, or half a tile where that is less.
        protocol: name, see `PROTOCOLS`.
        progress: show a bar on stderr.

    Raises:
        ValueError: no class in common, an unreadable image, an unknown protocol.
    """
    rules = choose_protocol(protocol)
    found = detect_dataset(backend, dataset, score=score, overlap=overlap, progress=progress)
    return score_dataset(dataset, found, rules).to_json()


def detect_dataset(
    backend: Backend,
    dataset: Dataset,
    *,
    score: float = 0.05,
    overlap: int | None = None,
    scale: float = 1.0,
    merge: Merge = "seam",
    corners: Mapping[str, Sequence[Corner]] | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> DatasetDetections:
    """Find objects in every image of a data set.

    Classes are matched by name. Those of the model that the data set does not have are left out, with a note.

    Args:
        score: detections below it are dropped.
        overlap: of neighbouring tiles, pixels; None for 128, or half a tile where that is less.
        scale: resize factor of the images; boxes are in pixels of the images all the same.
        merge: how the tiles of an image are joined: "seam" or "nms", see `tinydet.runtime.scan.detect`, or
            "tinyperson": each of the benchmark's sub-images is an image of its own, and the benchmark's merge joins.
        corners: for "tinyperson", the sub-images of each file; None for the benchmark's cut.
        limit: look at the first so many images only; None for all.
        progress: show a bar on stderr.

    Raises:
        ValueError: no class in common, an unreadable image, or one that `corners` does not have.
    """
    from tinydet.evaluate.window import Window
    from tinydet.runtime.scan import detect, unsettled
    from tinydet.runtime.scenes import open_scene

    categories, notes = match_classes(backend.spec.classes, dataset.classes, dataset.category_ids)
    known = np.array([category is not None for category in categories])
    ids = [-1 if category is None else category for category in categories]
    if overlap is None:
        overlap = min(128, backend.spec.tile // 2)
    within: Literal["seam", "nms"] = "seam" if merge == "tinyperson" else merge
    records = dataset.images[:limit]
    detections: list[dict[str, Any]] = []
    tiles = saturated = unconverged = 0
    begun = time.perf_counter()
    for i, record in enumerate(tqdm(records, desc="evaluate", unit="image", disable=None if progress else True)):
        with open_scene(dataset.image_path(i), stretch=backend.spec.stretch) as scene:
            _check_size(scene, dataset, i)
            pieces = _pieces(record.file_name, scene, corners) if merge == "tinyperson" else None
            views = [scene] if pieces is None else [Window(scene, corner) for corner in pieces]
            results = [detect(backend, view, overlap=overlap, scale=scale, score=score, merge=within) for view in views]
        kept = [result.detections[known[result.detections.labels]] for result in results]
        if pieces is None:
            detections += kept[0].to_coco(record.id, ids)
        else:
            found = [entry for n, part in enumerate(kept) for entry in part.to_coco(n, ids)]
            cut = [{"id": n, "file_name": record.file_name, "corner": corner} for n, corner in enumerate(pieces)]
            whole = [{"id": record.id, "file_name": record.file_name}]
            detections += merge_sub_images({"images": cut, "old_images": whole}, found)
        tiles += sum(result.tiles for result in results)
        saturated += sum(result.saturated for result in results)
        unconverged += sum(result.unconverged for result in results)
    if saturated:
        notes.append(
            f"{saturated} of {tiles} tiles had more boxes than the model's {backend.spec.max_detections} slots, some "
            "were lost: raise --score, or export with more slots"
        )
    if unconverged:
        notes.append(unsettled(unconverged, backend.spec))
    seconds = time.perf_counter() - begun
    looked_at = tuple(record.id for record in records)
    return DatasetDetections(detections, looked_at, tiles, saturated, seconds, tuple(notes), unconverged)


def score_dataset(dataset: Dataset, found: DatasetDetections, protocol: Protocol) -> Scores:
    """Score what `detect_dataset` found against the annotations as written in the data set's file.

    They are read again because a `Dataset` holds what training needs: boxes clipped to the image and one ignore flag.

    Raises:
        ValueError: the file is one of sub-images, or malformed.
    """
    document = read_json(dataset.source)
    if "old_images" in document:
        raise ValueError(
            f"{dataset.source} describes sub-images, and the benchmark scores whole images; give their annotations, "
            "and this file as --corner-gt"
        )
    scores = score_detections(
        document,
        found.detections,
        protocol,
        categories=dataset.classes,
        image_ids=found.image_ids,
        sources=(str(dataset.source), "detections"),
    )
    return dataclasses.replace(scores, notes=found.notes + scores.notes)


def match_classes(
    model: Sequence[str], data: Sequence[str], category_ids: Sequence[int]
) -> tuple[list[int | None], list[str]]:
    """The data set's category id for each class of a model, by name; None where it has no such class. And notes.

    >>> match_classes(("person", "car"), ("car", "bus"), (3, 6))[0]
    [None, 3]

    Raises:
        ValueError: no name in common.
    """
    ids = dict(zip(data, category_ids, strict=True))
    matched = [ids.get(name) for name in model]
    if all(category is None for category in matched):
        raise ValueError(
            f"the model and the data set have no class in common: the model finds {', '.join(model)}, the data set has "
            f"{', '.join(data)}; choose another data set, or rename its categories"
        )
    notes = [f"the data set has no class {name!r}; these detections are left out" for name in model if name not in ids]
    notes += [f"the model does not know the class {name!r}: its AP is 0" for name in data if name not in model]
    return matched, notes


def _pieces(file_name: str, scene: Scene, corners: Mapping[str, Sequence[Corner]] | None) -> list[Corner]:
    """The sub-images of one image."""
    if corners is None:
        return sub_image_corners(scene.width, scene.height)
    if file_name not in corners:
        raise ValueError(
            f"the corner file has no sub-image of {file_name}; give the one that was cut from this data set"
        )
    return list(corners[file_name])


def _check_size(scene: Scene, dataset: Dataset, i: int) -> None:
    record = dataset.images[i]
    if (scene.width, scene.height) != (record.width, record.height):
        raise ValueError(
            f"{dataset.image_path(i)} is {scene.width}x{scene.height} pixels, but image {record.id} of "
            f"{dataset.source} is {record.width}x{record.height}; correct the one that is wrong"
        )
