"""Score a model or detections on a dataset. `tinydet evaluate` parses its options, calls this module and prints."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tinydet._internal.arguments import quoted
from tinydet._internal.console import plural
from tinydet._internal.json_files import read_json
from tinydet._internal.progress import Progress
from tinydet.data.coco_rules import read_document
from tinydet.evaluate.model_data import (
    BUILTIN,
    ModelData,
    check_builtin_classes,
    existing_model,
    open_for_scoring,
    validation_data,
)
from tinydet.evaluate.protocols import Protocol, choose_protocol
from tinydet.evaluate.score import Scores, score_detections
from tinydet.evaluate.score_model import DatasetDetections, detect_dataset, score_dataset, scoring_options
from tinydet.evaluate.sub_images import corners_by_file, merge_sub_images

if TYPE_CHECKING:
    from tinydet.data.coco import Dataset
    from tinydet.data.source import DataSource
    from tinydet.runtime import Model
    from tinydet.runtime.backends import Backend, TileChoice
    from tinydet.runtime.options import ScanOptions

logger = logging.getLogger(__name__)

MODEL_PROTOCOL = "coco"
RESULTS_PROTOCOL = "tinyperson"  # results of other frameworks are usually compared with the benchmark's tables
_RESULTS = (".json", ".json.gz")  # suffixes of files of detections; a model has another


def evaluate(
    model: str | Path | Model | Backend | Sequence[dict[str, Any]] | dict[str, Any],
    data: str | Path | DataSource | Dataset | None = None,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
    iod: bool = True,
    keep_uncertain: bool = False,
    max_detections: int | None = None,
    categories: Sequence[str] | None = None,
    options: ScanOptions | None = None,
    sub_images: bool = False,
    corner_gt: str | Path | None = None,
    limit: int | None = None,
    device: str | None = None,
    tile: int | Literal["auto"] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on a dataset, or the detections of any framework, as `tinydet evaluate` does.

    Args:
        model: a checkpoint, an exported model, the name of a bundled model, or a loaded model; or detections: a list of
            COCO results, the COCO file that inference writes, or the path of either.
        data: a dataset folder or annotation file, "builtin" for the built-in scenes, or a loaded dataset. None: the
            validation set that a checkpoint records.
        images: image folder of an annotation file.
        split: of a dataset folder with several: "train", "val" or "test". None: "val", else "test".
        protocol: a name in `PROTOCOLS`. None: "coco" for a model, "tinyperson" for detections.
        iod, keep_uncertain, max_detections: switches of the protocol, see `choose_protocol`.
        categories: names of the categories to score; None for all.
        options: how a model scans the images. None: the options of a loaded `Model`, else the defaults of
            `ScanOptions`; in both cases with its minimum score of 0.05.
        sub_images: run the model on the TinyPerson benchmark's sub-images and merge them as the benchmark does.
        corner_gt: corner file of the benchmark, whose sub-images the model or the detections belong to.
        limit: run the model only on the first `limit` images; None for all.
        device: torch device of a checkpoint; None for the CPU.
        tile: side of the tiles that a model file is opened for; "auto" chooses it; None for the model's own.
        progress: called with 1 after each image; `tqdm.update` fits.

    Raises:
        ValueError: a missing or damaged file, no common class, an unknown protocol, or an option that does not apply.
        OSError: a file cannot be read.
        TypeError: `model` or `data` is of another type.
    """
    is_results = isinstance(model, list | tuple | dict) or (
        isinstance(model, str | Path) and str(model).endswith(_RESULTS)
    )
    name = protocol or (RESULTS_PROTOCOL if is_results else MODEL_PROTOCOL)
    rules = choose_protocol(name, iod=iod, keep_uncertain=keep_uncertain, max_detections=max_detections)
    if is_results:
        belongs = {"images": images, "options": options, "sub_images": sub_images or None, "limit": limit}
        if given := [key for key, value in {**belongs, "device": device, "tile": tile}.items() if value is not None]:
            raise ValueError(f"{given[0]} belongs to a model; detections are scored as they are")
        if data is None:
            raise ValueError("data: detections need the annotations to score them against")
        truth, source = _annotations(data, split)
        return score_results(truth, model, rules, source=source, categories=categories, corner_gt=corner_gt)
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a number of images, 1 or more, got {quoted(limit)}")
    found_data = find_data(model, data, images, split=split)
    overlap, scale = (None, 1.0) if options is None else (options.overlap, options.scale)
    evaluation = prepare(
        model, found_data, categories=categories, device=device, tile=tile, overlap=overlap, scale=scale
    )
    if options is not None and options.overlap is None:
        options = dataclasses.replace(options, overlap=evaluation.options.overlap)
    for line in evaluation.describe(limit):
        logger.info(line)
    found = evaluation.detect(options, sub_images=sub_images, corner_gt=corner_gt, limit=limit, progress=progress)
    return evaluation.score(found, rules)


@dataclass(frozen=True)
class Evaluation:
    """A model and the dataset to score it on, both checked and opened.

    Attributes:
        model: its name, for messages.
        data: what the dataset is, for messages.
        options: how it scans by default.
    """

    model: str
    backend: Backend
    data: str
    dataset: Dataset
    options: ScanOptions

    def describe(self, limit: int | None = None) -> tuple[str, str]:
        """Return two lines: the model and the data."""
        images = plural(len(self.dataset.images[:limit]), "image")
        return (
            f"model: {self.model}, {self.backend.name}",
            f"data: {self.data}; {images}, {', '.join(self.dataset.classes)}",
        )

    def detect(
        self,
        options: ScanOptions | None = None,
        *,
        sub_images: bool = False,
        corner_gt: str | Path | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> DatasetDetections:
        """Run the model on the images; see `detect_dataset`. Sub-images are those of a corner file or of the grid."""
        corners = None if corner_gt is None else corners_by_file(read_json(Path(corner_gt)), source=str(corner_gt))
        return detect_dataset(
            self.backend,
            self.dataset,
            self.options if options is None else options,
            sub_images=sub_images or corners is not None,
            corners=corners,
            limit=limit,
            progress=progress,
        )

    def score(self, found: DatasetDetections, protocol: Protocol) -> Scores:
        """Score the result of `detect`, with the notes of the dataset."""
        scores = score_dataset(self.dataset, found, protocol)
        return dataclasses.replace(scores, notes=(*self.dataset.reading_notes, *scores.notes))


def find_data(
    model: object,
    data: object,
    images: str | Path | None = None,
    *,
    split: str | None = None,
    needs_images: bool = True,
) -> ModelData | Dataset:
    """Return the dataset that a user names, by default the validation set of the model's training.

    Raises:
        ValueError: it does not exist, or the model records none.
        TypeError: `data` is of another type.
    """
    from tinydet.data.coco import Dataset
    from tinydet.data.source import DataSource, builtin_source, find_source

    if data is None:
        if not isinstance(model, str | Path):
            raise ValueError("data: name the dataset to score on; a loaded model does not know its validation set")
        existing_model(model)
        return validation_data(Path(model))
    if isinstance(data, str | Path):
        path = Path(data)
        if str(data) == BUILTIN and not path.exists():
            return ModelData(builtin_source("val"))
        folder = None if images is None else Path(images)
        prefer = ("val", "test")
        return ModelData(find_source(path, None, folder, split=split, prefer=prefer, needs_images=needs_images))
    if images is not None or split is not None:
        raise ValueError(f"{'split' if images is None else 'images'} belongs to a path; {quoted(data)} is loaded")
    if isinstance(data, DataSource):
        return ModelData(data)
    if isinstance(data, Dataset):
        return data
    raise TypeError(f"data: expected a path, a DataSource or a Dataset, got {quoted(data)}")


def prepare(
    model: object,
    data: ModelData | Dataset,
    *,
    categories: Sequence[str] | None = None,
    device: str | None = None,
    backend: str = "auto",
    tile: int | Literal["auto"] | None = None,
    overlap: int | None = None,
    scale: float = 1.0,
) -> Evaluation:
    """Load the dataset, then open the model.

    Args:
        model: as for `evaluate`, but no detections; None for the model of a server.
        backend: of an exported model file, or the address of a server, see `open_model`.
        tile: to open a model file for; "auto": as `AutoTile` chooses it for the images.
        overlap, scale: how a model file scans by default; None: as of `ScanOptions`, or as "auto" needs it.

    Raises:
        ValueError, OSError, TypeError: as `evaluate`.
    """
    from tinydet.runtime.auto_tile import AutoTile, auto_overlap
    from tinydet.runtime.options import ScanOptions

    path = existing_model(model) if isinstance(model, str | Path) else None
    name = str(model) if path is not None else backend if model is None else ""
    if isinstance(data, ModelData):
        wanted = data.classes if categories is None else categories
        dataset = data.source.load(categories=wanted, allow_absent=categories is None)
        described = f"{data.role}{data.source.describe()}"
    else:
        if categories is not None:
            raise ValueError("categories: a loaded dataset has its classes already; load it with those to score")
        dataset, described = data, str(data.source)
    if dataset.is_cut:
        raise ValueError(
            f"{dataset.source} describes sub-images, and the benchmark scores whole images; give their annotations, "
            "and this file as --corner-gt"
        )
    if name:
        chosen: TileChoice = None if tile == "auto" else tile
        if tile == "auto":
            longest = max((max(image.width, image.height) for image in dataset.images), default=0)
            chosen = AutoTile(overlap, longest=math.ceil(longest * scale) or None)
        opened = open_for_scoring(None if model is None else Path(name), device, chosen, backend)
        if tile == "auto" and overlap is None:
            overlap = auto_overlap(opened.spec, opened.spec.tile)
        options = dataclasses.replace(scoring_options(opened.spec), overlap=overlap, scale=scale)
    else:
        opened = cast("Backend", getattr(model, "backend", model))
        if not hasattr(opened, "run") or not hasattr(opened, "spec"):
            raise TypeError(f"model: expected a path, a model, a backend or a list of detections, got {quoted(model)}")
        if tile is not None:
            raise ValueError("tile is for a model file; a loaded model has its tile: load(…, tile=)")
        if device is not None:
            raise ValueError("device is for a checkpoint (.pth); a loaded model runs where it was opened")
        options = scoring_options(opened.spec)
        if isinstance(own := getattr(model, "options", None), ScanOptions):
            options = dataclasses.replace(own, score=options.score)
    if isinstance(data, ModelData) and data.source.is_builtin:
        check_builtin_classes(name or opened.name, opened.spec.classes, dataset.classes)
    return Evaluation(name or opened.name, opened, described, dataset, options)


def score_results(
    truth: dict[str, Any],
    results: object,
    protocol: Protocol,
    *,
    source: str,
    categories: Sequence[str] | None = None,
    corner_gt: str | Path | None = None,
) -> Scores:
    """Score COCO results, loaded or a file, against a COCO document.

    Args:
        source: name of the document, for messages.
        corner_gt: corner file of the benchmark, if the results were made on its sub-images.

    Raises:
        ValueError, OSError: as `evaluate`.
    """
    name = str(results) if isinstance(results, str | Path) else "detections"
    detections: Any = read_json(Path(results)) if isinstance(results, str | Path) else results
    if isinstance(detections, tuple):
        detections = list(detections)
    if corner_gt is not None:
        detections = merge_sub_images(read_json(Path(corner_gt)), detections, sources=(str(corner_gt), name))
    return score_detections(truth, detections, protocol, categories=categories, sources=(source, name))


def _annotations(data: object, split: str | None) -> tuple[dict[str, Any], str]:
    """Return the COCO document of a file, a dataset or its source, and its name."""
    if isinstance(data, str | Path) and str(data).endswith(_RESULTS):
        return read_document(Path(data)), str(data)
    found = find_data(None, data, split=split, needs_images=False)
    if isinstance(found, ModelData):
        return found.source.read(), str(found.source.annotations)
    return found.document(), str(found.source)
