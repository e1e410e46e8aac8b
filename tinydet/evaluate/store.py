"""Store score thresholds and a calibration in an exported model: in an ONNX file, or in the `.json` of an engine.

Only the description changes, not the graph. Files are written atomically.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import atomic_path, write_text
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet.evaluate.calibration import Calibration, composed
from tinydet.evaluate.operating_point import OperatingPoints
from tinydet.runtime.backends.external_data import check_external_data
from tinydet.runtime.bundled import FOLDER, model_path
from tinydet.runtime.score_calibration import IDENTITY, Line, graph_score
from tinydet.spec import METADATA_KEY, ModelSpec


@dataclass(frozen=True)
class Target:
    """An exported model that can be changed.

    Attributes:
        path: the file to write.
        source: the file to read: `path`, or the model to copy to it.
        spec: the description of `source`.
    """

    path: Path
    source: Path
    spec: ModelSpec


def open_target(path: Path, model: Path | None) -> Target:
    """Return the model to store in: an existing file, else a copy of `model`.

    Args:
        path: an ONNX file or an engine.
        model: the model that is scored; None for detections of an unknown one.

    Raises:
        ValueError: it is not an exported model of tinydet, or there is nothing to copy.
        OSError: a file cannot be read.
        ModuleNotFoundError: the package `onnx` is not installed.
    """
    if path.resolve().is_relative_to(FOLDER.resolve()):
        raise ValueError(
            f"--store {path} belongs to the installation; name a new file, which becomes a copy: --store {path.name}"
        )
    source = path
    if not path.exists():
        if model is None:
            raise ValueError(
                f"--store {path}: no such model; to copy the one that made the detections, name it with --model"
            )
        source = model_path(model)
        if source.suffix in (".pth", ".pt"):
            export = tinydet_command("export", "onnx", model)
            raise ValueError(f"--store {path}: no such model; export the checkpoint first: {export}")
        if source.suffix != path.suffix:
            raise ValueError(f"--store {path} would be a copy of {source}; end its name in {source.suffix}")
    if source != path and source.suffix == ".onnx":
        check_external_data(source)
    return Target(path, source, description_of(source))


def description_of(model: Path) -> ModelSpec:
    """Return the description of an exported model, which is not run.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_target`.
    """
    path = model_path(model)
    if path.suffix == ".engine":
        sidecar = path.with_suffix(".json")
        return ModelSpec.from_json(read_file(sidecar), source=sidecar)
    if path.suffix != ".onnx":
        raise ValueError(f"{model}: expected an exported model, .onnx or .engine")
    return _read_spec(path)[1]


def stored_spec(
    target: ModelSpec, evaluated: ModelSpec, points: OperatingPoints | None, calibration: Calibration | None, data: str
) -> tuple[ModelSpec, list[str]]:
    """Return the description of a model with thresholds and a calibration, and notes for the reader.

    Thresholds are converted to scores of the graph, so a calibration that is stored later does not change which boxes
    are kept.

    Args:
        target: the description to change.
        evaluated: the description of the model that made the detections; its calibration is in their scores.
        data: which images were scored, for display.

    Raises:
        ValueError: the classes differ, or a class does not reach the wanted value.
    """
    check_classes(target, evaluated)
    notes: list[str] = []
    present = evaluated.calibration or (IDENTITY,) * len(evaluated.classes)
    lines: Mapping[str, Line] = dict(zip(evaluated.classes, present, strict=True))
    changes: dict[str, Any] = {}
    if points is not None:
        if points.missed or points.together.score is None:
            missed = ", ".join(each.name for each in (points.missed or (points.together,)))
            raise ValueError(
                f"nothing was stored, because {points.wanted} is not reached by: {missed}. Choose a value that is "
                "reached, as listed above, or leave these classes out with --categories"
            )
        chosen = {each.name: each.score for each in points.classes}
        common = points.together.score
        new = {name: common if (own := chosen.get(name)) is None else own for name in target.classes}
        thresholds = {name: graph_score(score, lines[name]) for name, score in new.items()}
        changes["operating_point"] = f"{points.wanted} on {data}"
        if others := [name for name in target.classes if name not in chosen]:
            if target.thresholds:
                thresholds |= {name: target.thresholds[target.classes.index(name)] for name in others}
                changes["operating_point"] += f" ({', '.join(chosen)}; the others were stored earlier)"
                which = "its older threshold stays" if len(others) == 1 else "their older thresholds stay"
            else:
                which = f"the threshold of all classes together, {common:g}, is stored"
            notes.append(f"no threshold was chosen for {', '.join(others)}: {which}")
        changes["thresholds"] = tuple(thresholds.values())
    if calibration is not None:
        fitted = dict(zip(calibration.names, calibration.lines, strict=True))
        changes["calibration"] = tuple(
            composed(lines[name], fitted[name])
            if name in fitted
            else (lines[name] if evaluated.calibration else calibration.together)
            for name in target.classes
        )
        changes["calibration_source"] = f"fitted on {data}"
    return dataclasses.replace(target, **changes), notes


def check_classes(target: ModelSpec, evaluated: ModelSpec) -> None:
    """Check that a model has the classes of the one that is scored.

    Raises:
        ValueError: it has not.
    """
    if target.classes != evaluated.classes:
        raise ValueError(
            f"--store names a model that finds {', '.join(target.classes)}, but the one that is scored finds "
            f"{', '.join(evaluated.classes)}; name an export of the same model"
        )


def store(target: Target, spec: ModelSpec) -> list[Path]:
    """Write the model with another description; return the files.

    The `.json` that an export wrote next to an ONNX file is kept in step; that of an engine belongs to the engine.

    Raises:
        OSError: a file cannot be written.
    """
    sidecar = target.path.with_suffix(".json")
    if target.source.suffix == ".engine":
        if target.source != target.path:
            content = read_file(target.source)
            with atomic_path(target.path) as temporary:
                temporary.write_bytes(content)
        write_text(sidecar, spec.to_json() + "\n")
        return [sidecar] if target.source == target.path else [target.path, sidecar]
    model, _ = _read_spec(target.source)
    old = hashlib.sha256(read_file(target.source)).hexdigest()
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = dataclasses.replace(spec, onnx_sha256=None).to_json()
    content = model.SerializeToString()
    with atomic_path(target.path) as temporary:
        temporary.write_bytes(content)
    if sidecar.is_file() and _describes(sidecar, old):
        described = dataclasses.replace(spec, onnx_sha256=hashlib.sha256(content).hexdigest())
        write_text(sidecar, described.to_json() + "\n")
        return [target.path, sidecar]
    return [target.path]


def _read_spec(path: Path) -> tuple[Any, ModelSpec]:
    """Return an ONNX file as a protocol buffer, without external weights, and its description."""
    with needs_extra("export"):
        import onnx
    try:
        model = onnx.load_model_from_string(read_file(path))
    except Exception as error:  # protobuf's DecodeError is not a public name
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path} is not an ONNX file; name an exported model") from error
    text = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} was not exported by tinydet; name an exported model")
    return model, ModelSpec.from_json(text, source=path)


def _describes(sidecar: Path, sha256: str) -> bool:
    """Return whether a `.json` is the description of the ONNX file with this hash."""
    try:
        spec = ModelSpec.from_json(read_file(sidecar), source=sidecar)
    except ValueError:
        return False
    return not spec.engine and spec.onnx_sha256 == sha256
