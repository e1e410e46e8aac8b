"""Choose the images that a model is verified on and those that INT8 is calibrated on.

Both are the model's own: its validation images verify, its training images calibrate, and no image does both. Where the
data of a model are unknown or gone, a warning says what is used instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinydet._internal.console import plural
from tinydet._internal.json_files import read_json
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset
from tinydet.data.image_files import list_images
from tinydet.data.source import DataSource, announce, builtin_source, find_source
from tinydet.evaluate.score_model import match_classes
from tinydet.export.verify import report_paths

if TYPE_CHECKING:
    from tinydet.models.checkpoint import Checkpoint

CALIBRATION_IMAGES = 200  # upper limit; more images change the ranges little and take minutes
REMEDY = "name data with --data"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnData:
    """Where the data of a model are, as recorded when it was trained.

    Attributes:
        model: file with the record, for messages.
        val, train: None: not recorded, there was none, or it is gone.
        gone: why recorded data cannot be used, by "val" and "train". `lost`: their records.
    """

    model: Path | None = None
    val: DataSource | None = None
    train: DataSource | None = None
    gone: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the record for a report in `folder`, from which `own_data_of_report` reads it again."""
        sources = {"val": self.val, "train": self.train}
        return {
            f"{name}_data": self.lost.get(name) if source is None else source.to_json(folder)
            for name, source in sources.items()
        }


@dataclass(frozen=True)
class VerificationImages:
    """Images to verify a model on.

    Attributes:
        images: files. `spare`: more files of the same source, which do not verify.
        dataset: annotations of the classes that the model knows, of all files in order; None if there are none. AP is
            measured on the first `len(images)`.
        source: where they come from, for display and reports.
        own: data of the model.
        calibration: images to calibrate INT8 on, which do not verify; None: INT8 is not wanted.
    """

    images: list[Path]
    spare: list[Path]
    dataset: Dataset | None
    source: str
    own: OwnData
    calibration: CalibrationImages | None = None

    def record(self, folder: Path) -> dict[str, Any]:
        """Return which images were used, for a report in `folder`."""
        record: dict[str, Any] = {"verified_on": [str(path) for path in self.images]}
        if self.calibration is not None:
            record |= {
                "calibrated_on": [str(path) for path in self.calibration.images],
                "calibration_source": self.calibration.source,
            }
        return {"images_used": record, "data": self.own.to_json(folder)}


class CalibrationImages(NamedTuple):
    """Images to measure INT8 activation ranges on, and where they come from."""

    images: list[Path]
    source: str


def own_data_of_checkpoint(checkpoint: Checkpoint, path: Path) -> OwnData:
    """Return the data that the checkpoint at `path` was trained with."""
    return own_data_of_config(path, checkpoint.config)


def own_data_of_config(model: Path, config: Mapping[str, Any]) -> OwnData:
    """Return the data that are recorded in the training configuration of a checkpoint."""
    return _own_data(model, config, model.parent)


def own_data_of_report(model: Path) -> OwnData:
    """Return the data of an exported model from the report of its export; it needs no checkpoint and no torch."""
    report = report_paths(model)[0]
    try:
        values = read_json(report) if report.is_file() else {}
    except ValueError:
        values = {}
    records = values.get("data") if isinstance(values, dict) else None
    return _own_data(model, records if isinstance(records, dict) else {}, report.parent)


def find_data(data: Path | None) -> DataSource | None:
    """Return the dataset that `--data` names, None without it. Needs no torch, so call it before importing torch.

    Raises:
        ValueError: it does not exist or is not recognized.
    """
    return None if data is None else find_source(data, prefer=("val", "test"), needs_images=True)


def choose_images(
    classes: Sequence[str],
    images: Sequence[Path] | None,
    data: Path | None,
    own: OwnData,
    *,
    limit: int,
) -> VerificationImages:
    """Return `images`, else the dataset `data`, else the validation images of the model, else its training images.

    If the model has none of them, the built-in validation images are used, and a warning says so.

    Args:
        classes: class names of the model. Other classes are left out, as their AP would be 0 before and after.
        images: image files, which have no annotations.
        limit: number of images of a dataset to use.

    Raises:
        ValueError: an image does not exist; `data` is malformed or has no class in common with the model.
    """
    if images:
        for path in images:
            if not path.is_file():
                raise ValueError(f"{path}: no such image; name files with --images, or a dataset with --data")
        return VerificationImages(list(images), [], None, f"{plural(len(images), 'image')} of --images", own)
    if (source := find_data(data)) is not None:
        files, dataset = verification_images(classes, source)
        if dataset is None:
            whole = source.load()
            match_classes(classes, whole.classes, whole.category_ids)  # raises and lists the classes
        return VerificationImages(files[:limit], files[limit:], dataset, f"--data, {source.describe()}", own)
    problems = [own.gone["val"]] if "val" in own.gone else []
    for name, candidate in (("validation", own.val), ("training", own.train)):
        if candidate is None:
            continue
        try:
            files, dataset = verification_images(classes, candidate)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        text = f"the {name} images of {own.model}: {candidate.describe()}"
        if name == "training" and problems:
            logger.warning(
                f"warning: the validation data of {own.model} are gone ({problems[0]}); verifying on {text}; {REMEDY}"
            )
        return VerificationImages(files[:limit], files[limit:], dataset, text, own)
    problems += [own.gone["train"]] if "train" in own.gone else []
    files, dataset = verification_images(classes, builtin_source("val"))
    text = "the built-in synthetic scenes, which are not data of this model"
    why = f"its data are gone ({problems[0]})" if problems else "it has no record of its own data"
    logger.warning(f"warning: {own.model or 'the model'}: verifying on {text}, because {why}; {REMEDY}")
    return VerificationImages(files[:limit], files[limit:], dataset, text, own)


def with_calibration(chosen: VerificationImages, folder: Path | None) -> VerificationImages:
    """Add images to calibrate INT8 on, which do not verify; fewer images verify if there are no others.

    The first of these that there is: the images in `folder`; the training images of the model; half of the images that
    were to verify, and a warning says so.

    Raises:
        ValueError: there are no images besides those that verify.
    """
    if folder is not None:
        found = [folder / name for name in list_images(folder)] if folder.is_dir() else []
        if not found:
            raise ValueError(f"{folder} contains no images; name another folder with --calibration")
        apart = _apart(found, chosen.images)
        if not apart:
            raise ValueError(f"{folder}: all of its images verify the model; name others with --calibration")
        return replace(chosen, calibration=CalibrationImages(apart, f"--calibration {folder}"))
    own, problem = chosen.own, chosen.own.gone.get("train", "")
    if own.train is not None:
        try:
            files = _files(own.train.load())
        except (ValueError, OSError) as error:
            problem = str(error)
        else:
            verifying = chosen
            if len(_apart(files, chosen.images)) < len(files):  # verified on the training images
                verifying = _half(chosen)
            if apart := _apart(files, verifying.images):
                kept = _spaced(apart)
                text = f"the training images of {own.model}: {own.train.describe()}"
                return replace(verifying, calibration=CalibrationImages(kept, text))
    verifying = _half(chosen)
    kept = _spaced(_apart(verifying.spare, verifying.images))
    if not kept:
        raise ValueError(
            "INT8 needs images to calibrate on besides the one that verifies; name a folder with --calibration"
        )
    why = f"the training data of {own.model} are gone ({problem})" if problem else "there is no record of training data"
    text = f"{plural(len(kept), 'image')} that do not verify, of {chosen.source}"
    logger.warning(f"warning: INT8 is calibrated on {text}, because {why}; name training images with --calibration DIR")
    return replace(verifying, calibration=CalibrationImages(kept, text))


def verification_images(classes: Sequence[str], source: DataSource) -> tuple[list[Path], Dataset | None]:
    """Return the images of a dataset and their annotations of the classes that a model knows; None: of none of them.

    Raises:
        ValueError: the dataset is malformed, or a corner file.
    """
    dataset = announce(source).load()
    if dataset.is_cut:
        raise ValueError(
            f"{dataset.source}: a corner file, whose images are parts of the image files; name a COCO folder of whole "
            "images, or write the parts first: "
            f"{tinydet_command('data', 'cut')} CORNERS.json --images DIR --output FOLDER"
        )
    known = [name for name in dataset.classes if name in classes]
    return _files(dataset), replace(source, recorded=None).load(categories=known) if known else None


def _own_data(model: Path, records: Mapping[str, Any], folder: Path) -> OwnData:
    """Return the data of `records`, whose paths are relative to `folder`."""
    found: dict[str, DataSource] = {}
    gone: dict[str, str] = {}
    lost: dict[str, Any] = {}
    for name in ("val", "train"):
        record = records.get(f"{name}_data")
        try:
            if record is not None:
                found[name] = DataSource.from_json(record, folder)
        except ValueError as error:
            gone[name], lost[name] = str(error), record
    return OwnData(model, found.get("val"), found.get("train"), gone, lost)


def _files(dataset: Dataset) -> list[Path]:
    return [dataset.image_path(i) for i in range(len(dataset.images))]


def _apart(files: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """Return the files that are not among `others`."""
    taken = {os.path.realpath(path) for path in others}
    return [path for path in files if os.path.realpath(path) not in taken]


def _half(chosen: VerificationImages) -> VerificationImages:
    """Verify on at most half of the files of the source, so that the others are free."""
    files = [*chosen.images, *chosen.spare]
    count = min(len(chosen.images), (len(files) + 1) // 2)
    return replace(chosen, images=files[:count], spare=files[count:])


def _spaced(files: Sequence[Path]) -> list[Path]:
    """Return at most `CALIBRATION_IMAGES`, evenly spaced."""
    return list(files[:: max(-(-len(files) // CALIBRATION_IMAGES), 1)])
