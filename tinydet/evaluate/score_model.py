"""Run a model on a dataset and score its detections, with the same `detect_scenes()` as in deployment."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydet._internal.progress import Progress
from tinydet.evaluate.lost_boxes import likely_gain
from tinydet.evaluate.protocols import Protocol, choose_protocol
from tinydet.evaluate.score import Scores, score_detections
from tinydet.evaluate.sub_images import merge_sub_images

if TYPE_CHECKING:
    from tinydet.data.coco import Dataset, ImageRecord
    from tinydet.runtime.backends import Backend
    from tinydet.runtime.options import ScanOptions
    from tinydet.runtime.scan import SceneResult
    from tinydet.runtime.scenes import Scene
    from tinydet.runtime.scenes.window import Corner
    from tinydet.spec import ModelSpec

NOTED_GAIN = 0.002  # in AP50; lost boxes that cannot change it by more are not noted
SCORING_SLOTS = 30_000  # more than the boxes above the score floor on nearly any tile


@dataclass(frozen=True)
class DatasetDetections:
    """The detections of a model on a dataset.

    Attributes:
        detections: COCO results with the category ids of the dataset, image by image.
        image_ids: the images that the model ran on.
        tiles: number of tiles that the model ran on.
        saturated: number of tiles with more candidates than the model has slots.
        seconds: wall time of the whole pass.
        notes: remarks for a reader of the scores, such as classes that were left out.
        unconverged: number of proposals whose NMS in the graph had not converged.
        slots: number of boxes that the model keeps of a tile.
        cuts: for each image with saturated tiles, the score from which on no box of theirs was lost.
        coarse: number of tiles of coarse passes among `tiles`.
    """

    detections: list[dict[str, Any]]
    image_ids: tuple[int, ...]
    tiles: int
    saturated: int
    seconds: float
    notes: tuple[str, ...]
    unconverged: int = 0
    slots: int = 0
    cuts: Mapping[int, float] = field(default_factory=dict)
    coarse: int = 0


def scoring_spec(spec: ModelSpec) -> ModelSpec:
    """Return the spec with which torch scores a detector: with SCORING_SLOTS if the runtime applies the NMS.

    A young detector has thousands of overlapping boxes above the score floor. The exported graph keeps the best K of
    them before the NMS; scoring keeps them all.
    """
    if spec.nms_in_graph or spec.nms_rounds:
        return spec
    return dataclasses.replace(spec, max_detections=max(spec.max_detections, SCORING_SLOTS))


def scoring_options(spec: ModelSpec) -> ScanOptions:
    """Return the default options for scoring a model: as `ScanOptions`, but all detections of a calibrated model.

    A calibrated score of 0.05 is another score of the graph, and would cut off detections that AP counts.
    """
    from tinydet.runtime.options import ScanOptions

    return ScanOptions(score=0.0) if spec.calibration else ScanOptions()


def evaluate_backend(
    backend: Backend,
    dataset: Dataset,
    options: ScanOptions | None = None,
    *,
    protocol: str = "coco",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a model on a dataset and return its scores as JSON: `detect_dataset`, then `score_dataset`.

    The result has the keys of `tinydet evaluate --json`, see docs/evaluation.md.

    Args:
        options: how to scan the images; None for those of `scoring_options`.
        protocol: a name in `PROTOCOLS`.
        progress: called with 1 after each image.

    Raises:
        ValueError: no common class, an unreadable image, an unknown protocol.
    """
    rules = choose_protocol(protocol)
    found = detect_dataset(backend, dataset, options, progress=progress)
    return score_dataset(dataset, found, rules).to_json()


def detect_dataset(
    backend: Backend,
    dataset: Dataset,
    options: ScanOptions | None = None,
    *,
    sub_images: bool = False,
    corners: Mapping[str, Sequence[Corner]] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> DatasetDetections:
    """Run a model on every image of a dataset.

    Classes are matched by name. Detections of a class that the dataset does not have are left out, with a note.

    Args:
        options: how to scan the images; None for those of `scoring_options`.
        sub_images: run on each of the TinyPerson benchmark's sub-images as an image of its own, and merge them as the
            benchmark does.
        corners: the sub-images of each file, for `sub_images`; None for the benchmark's grid.
        limit: run only on the first `limit` images; None for all.
        progress: called with 1 after each image.

    Raises:
        ValueError: no common class, an unreadable image, or one without sub-images in `corners`.
    """
    from tinydet.runtime.scan import nms_not_converged
    from tinydet.runtime.score_calibration import calibrate, score_thresholds

    categories, notes = match_classes(backend.spec.classes, dataset.classes, dataset.category_ids)
    known = np.array([category is not None for category in categories])
    ids = [-1 if category is None else category for category in categories]
    records = dataset.images[:limit]
    detections: list[dict[str, Any]] = []
    tiles = coarse = saturated = unconverged = 0
    cuts: dict[int, float] = {}
    options = options or scoring_options(backend.spec)
    spec = backend.spec
    thresholds = score_thresholds(spec, options.score)
    lowest = calibrate(thresholds, np.arange(len(thresholds)), spec.calibration).min()
    start = time.perf_counter()
    for record, pieces, results in _scanned(backend, dataset, len(records), options, sub_images, corners):
        if (lost := max((result.cut for result in results), default=-np.inf)) >= lowest:
            cuts[record.id] = lost
        kept = [result.detections[known[result.detections.labels]] for result in results]
        if pieces is None:
            detections += kept[0].to_coco(record.id, ids)
        else:
            found = [entry for n, part in enumerate(kept) for entry in part.to_coco(n, ids)]
            cut = [{"id": n, "file_name": record.file_name, "corner": corner} for n, corner in enumerate(pieces)]
            original = [{"id": record.id, "file_name": record.file_name}]
            detections += merge_sub_images({"images": cut, "old_images": original}, found)
        tiles += sum(result.tiles for result in results)
        coarse += sum(result.coarse for result in results)
        saturated += sum(result.saturated for result in results)
        unconverged += sum(result.unconverged for result in results)
        if progress is not None:
            progress(1)
    if unconverged:
        notes.append(nms_not_converged(unconverged, backend.spec))
    seconds = time.perf_counter() - start
    image_ids = tuple(record.id for record in records)
    return DatasetDetections(
        detections,
        image_ids,
        tiles,
        saturated,
        seconds,
        tuple(notes),
        unconverged,
        slots=backend.spec.boxes_per_tile,
        cuts=cuts,
        coarse=coarse,
    )


def score_dataset(dataset: Dataset, found: DatasetDetections, protocol: Protocol) -> Scores:
    """Score the result of `detect_dataset` against the annotations as written in the dataset's file.

    The file is read again because a `Dataset` has only what training needs: boxes clipped to the image, and one ignore
    flag.

    Raises:
        ValueError: the file is malformed.
    """
    document = dataset.document()
    scores = score_detections(
        document,
        found.detections,
        protocol,
        categories=dataset.classes,
        image_ids=found.image_ids,
        sources=(str(dataset.source), "detections"),
    )
    return dataclasses.replace(scores, notes=(*found.notes, *_lost(found, scores), *scores.notes))


def _lost(found: DatasetDetections, scores: Scores) -> list[str]:
    """Note the boxes that found no slot, if they could have changed a score."""
    gain = likely_gain(scores, found.cuts)
    if not found.cuts or (gain is not None and gain < NOTED_GAIN):
        return []
    rise = "" if gain is None else f": AP50 may be up to {100 * gain:.1f} points too low"
    return [
        f"{found.saturated} of {found.tiles} tiles had more boxes than the model's {found.slots} slots{rise}; "
        "export with more (--max-detections; Grid R-CNN: --grid-rois)"
    ]


def match_classes(
    model: Sequence[str], data: Sequence[str], category_ids: Sequence[int]
) -> tuple[list[int | None], list[str]]:
    """Match the classes of a model to the categories of a dataset by name.

    Args:
        model: class names of the model.
        data: category names of the dataset.
        category_ids: ids of these categories.

    Returns:
        The category id of each class of the model, None if the dataset does not have it; and a note for each class that
        only one of them has.

    Raises:
        ValueError: no common name.

    >>> match_classes(("person", "car"), ("car", "bus"), (3, 6))[0]
    [None, 3]
    """
    ids = dict(zip(data, category_ids, strict=True))
    matched = [ids.get(name) for name in model]
    if all(category is None for category in matched):
        raise ValueError(
            f"the model and the dataset have no class in common: the model finds {', '.join(model)}, the dataset has "
            f"{', '.join(data)}; choose another dataset, or rename its categories"
        )
    notes = [f"the dataset has no class {name!r}; its detections are left out" for name in model if name not in ids]
    notes += [
        f"the model does not know the class {name!r}: its objects are missed" for name in data if name not in model
    ]
    return matched, notes


def _scanned(
    backend: Backend,
    dataset: Dataset,
    count: int,
    options: ScanOptions | None,
    sub_images: bool,
    corners: Mapping[str, Sequence[Corner]] | None,
) -> Iterator[tuple[ImageRecord, list[Corner] | None, list[SceneResult]]]:
    """Yield the first `count` images with the corners of their sub-images and the result of each of these.

    Without sub-images there are no corners, and one result.
    """
    from tinydet.data.coco import open_image
    from tinydet.runtime.scan import detect_scenes
    from tinydet.runtime.scenes.window import Window

    records = dataset.images[:count]
    stretch = backend.spec.stretch
    if sub_images:
        for i, record in enumerate(records):
            with open_image(dataset, i, stretch=stretch) as scene:
                pieces = _sub_images(record.file_name, scene, corners)
                yield (
                    record,
                    pieces,
                    list(detect_scenes(backend, (Window(scene, corner) for corner in pieces), options)),
                )
        return
    openers = (functools.partial(open_image, dataset, i, stretch=stretch) for i in range(len(records)))
    for record, result in zip(records, detect_scenes(backend, openers, options), strict=True):
        yield record, None, [result]


def _sub_images(file_name: str, scene: Scene, corners: Mapping[str, Sequence[Corner]] | None) -> list[Corner]:
    """Return the corners of the sub-images of one image."""
    from tinydet.data.sub_images import sub_image_corners

    if corners is None:
        return sub_image_corners(scene.width, scene.height)
    if file_name not in corners:
        raise ValueError(f"the corner file has no sub-image of {file_name}; give the one that belongs to this dataset")
    return list(corners[file_name])
