"""Score a model or detections on a dataset, from Python: what `tinydet evaluate` does with its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydet._internal.arguments import quoted
from tinydet._internal.json_files import read_json
from tinydet._internal.progress import Progress
from tinydet.data.coco_rules import read_document
from tinydet.evaluate.model_data import check_unchanged, existing_model, open_for_scoring, validation_data
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.score import Scores, score_detections
from tinydet.evaluate.score_model import detect_dataset, score_dataset

if TYPE_CHECKING:
    from tinydet.data.coco import Dataset
    from tinydet.data.source import DataSource
    from tinydet.runtime import Model
    from tinydet.runtime.backends import Backend
    from tinydet.runtime.options import ScanOptions

MODEL_PROTOCOL = "coco"
_RESULTS = (".json", ".json.gz")  # suffixes of files of detections; a model has another


def evaluate(
    model: str | Path | Model | Backend | Sequence[dict[str, Any]],
    data: str | Path | DataSource | Dataset | None = None,
    *,
    split: str | None = None,
    protocol: str = MODEL_PROTOCOL,
    categories: Sequence[str] | None = None,
    options: ScanOptions | None = None,
    limit: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on a dataset, or the detections of any framework.

    Args:
        model: a checkpoint, an exported model, the name of a bundled model, or a loaded model; or detections, as a list
            of COCO results or the `.json` file with one.
        data: a dataset folder or annotation file, or a loaded dataset. None: the validation set that a checkpoint
            records.
        split: of a dataset folder with several, "train", "val" or "test".
        protocol: a name in `PROTOCOLS`.
        categories: names of the categories to score; None for all.
        options: how a model scans the images; None for the defaults of `ScanOptions`.
        limit: run the model only on the first `limit` images; None for all.
        device: torch device of a checkpoint; None for the CPU.
        progress: called with 1 after each image; `tqdm.update` fits.

    Raises:
        ValueError: a missing or damaged file, no common class, an unknown protocol, or an option that does not apply.
        OSError: a file cannot be read.
        TypeError: `model` or `data` is of another type.
    """
    rules = choose_protocol(protocol)
    if isinstance(model, list | tuple) or (isinstance(model, str | Path) and Path(model).name.endswith(_RESULTS)):
        if given := [name for name, value in (("options", options), ("limit", limit), ("device", device)) if value]:
            raise ValueError(f"{given[0]} belongs to a model; detections are scored as they are")
        from tinydet.data.coco import Dataset

        entries = read_json(Path(model)) if isinstance(model, str | Path) else list(model)
        source = _source(data, split) if data is not None else None
        if source is None:
            raise ValueError("data: detections need the annotations to score them against")
        truth = source.source if isinstance(source, Dataset) else source.annotations
        name = str(model) if isinstance(model, str | Path) else "detections"
        return score_detections(read_document(truth), entries, rules, categories=categories, sources=(str(truth), name))
    path = existing_model(model) if isinstance(model, str | Path) else None
    changed: tuple[str, ...] = ()
    if data is None:
        if path is None:
            raise ValueError("data: name the dataset to score on; a loaded model does not know its validation set")
        recorded = validation_data(path)
        dataset = recorded.source.load(categories=categories or recorded.classes, allow_absent=not categories)
        changed = check_unchanged(path, recorded, dataset)
    else:
        dataset = _dataset(data, split, categories)
    if dataset.is_cut:
        raise ValueError(f"{dataset.source} describes sub-images, and whole images are scored; give their annotations")
    found = detect_dataset(_backend(model, path, device), dataset, options, limit=limit, progress=progress)
    scores = score_dataset(dataset, found, rules)
    return dataclasses.replace(scores, notes=(*changed, *dataset.notes, *scores.notes))


def _backend(model: Any, path: Path | None, device: str | None) -> Backend:
    """Open a file; a loaded model has its backend."""
    if path is not None:
        return open_for_scoring(path, device)
    backend: Backend = getattr(model, "backend", model)
    if not hasattr(backend, "run") or not hasattr(backend, "spec"):
        raise TypeError(f"model: expected a path, a model, a backend or a list of detections, got {quoted(model)}")
    if device is not None:
        raise ValueError("device is for a checkpoint (.pth); a loaded model runs where it was opened")
    return backend


def _source(data: Any, split: str | None) -> Any:
    """Return the `DataSource` of a path; a source or a dataset is returned as it is."""
    from tinydet.data.source import find_source

    if isinstance(data, str | Path):
        return find_source(Path(data), split=split)
    return data


def _dataset(data: Any, split: str | None, categories: Sequence[str] | None) -> Dataset:
    from tinydet.data.coco import Dataset
    from tinydet.data.source import DataSource

    found = _source(data, split)
    if isinstance(found, DataSource):
        return found.load(categories=categories)
    if not isinstance(found, Dataset):
        raise TypeError(f"data: expected a path, a DataSource or a Dataset, got {quoted(data)}")
    if categories is not None:
        raise ValueError("categories: a loaded dataset has its classes already; load it with those to score")
    return found
