"""Export from Python: what `tinydet export onnx` and `tinydet export engine` do, with the same defaults."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import quoted
from tinydet.export import engine_command, onnx_command
from tinydet.export.onnx_model import read_onnx
from tinydet.export.verify import Verification
from tinydet.spec import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """Files that an export wrote.

    Attributes:
        path: the ONNX file or the engine; `description`: the JSON with its spec.
        onnx: the ONNX file that an engine was built from; `path` itself if there is no engine.
        spec: what the runtime must know about the model.
        verification: comparison of the last file with the one that it was made from; None if the engine cannot run on
            this machine.
        report: the lines that the command prints.
    """

    path: Path
    description: Path
    onnx: Path
    spec: ModelSpec
    verification: Verification | None
    report: str


def export_onnx(
    model: str | Path,
    output: str | Path | None = None,
    *,
    tile: int | None = None,
    batch: int | None = None,
    max_detections: int | None = None,
    nms_rounds: int | None = None,
    grid_rois: int | None = None,
    precision: str | None = None,
    calibration: str | Path | None = None,
    calibration_method: str | None = None,
    data: str | Path | None = None,
    images: Sequence[str | Path] | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
) -> Exported:
    """Export a checkpoint to ONNX and verify the file, or convert an ONNX file to another precision.

    The arguments are the options of `tinydet export onnx`, which docs/export.md explains; None: the command's default.

    Raises:
        ValueError: an argument is out of range, the model cannot be used, or the result failed verification; nothing is
            written then.
        OSError: a file cannot be read or written.
        ModuleNotFoundError: an extra is missing.
    """
    given = {key: value for key, value in locals().items() if value is not None}
    args, lines = _arguments(onnx_command.add_arguments, given), _Lines()
    path, verification = onnx_command.export(args, lines.add)
    return Exported(path, path.with_suffix(".json"), path, read_onnx(path).spec, verification, lines.text)


def build_engine(
    model: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    batch: Sequence[int] | None = None,
    workspace: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    compute_capability: Sequence[str] | None = None,
    timing_cache: str | Path | None = None,
    tile: int | Sequence[int] | None = None,
    max_detections: int | None = None,
    nms_rounds: int | None = None,
    grid_rois: int | None = None,
    precision: str | None = None,
    calibration: str | Path | None = None,
    calibration_method: str | None = None,
    data: str | Path | None = None,
    images: Sequence[str | Path] | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
) -> Exported:
    """Build a TensorRT or TensorRT-RTX engine from a checkpoint or an ONNX file, and verify it if it can run here.

    The arguments are the options of `tinydet export engine`, which docs/export.md explains; None: the command's
    default. `batch` is the smallest, typical and largest batch; `tile` one or several sides of tiles.

    Raises:
        ValueError: an argument is out of range, the model cannot be used, or the engine failed verification.
        OSError: a file cannot be read or written.
        ModuleNotFoundError: an extra is missing.
    """
    given = {key: value for key, value in locals().items() if value is not None}
    args, lines = _arguments(engine_command.add_arguments, given), _Lines()
    path, onnx, spec, verification = engine_command.export(args, lines.add)
    return Exported(path, path.with_suffix(".json"), onnx, spec, verification, lines.text)


@dataclass
class _Lines:
    """Collects the lines of a report, and logs them."""

    lines: list[str] = dataclasses.field(default_factory=list)

    def add(self, line: str) -> None:
        logger.info(line)
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def _arguments(add_arguments: Callable[[argparse.ArgumentParser], None], given: dict[str, Any]) -> argparse.Namespace:
    """Return the arguments of a command as its parser would: checked, with defaults for those that are not given.

    Raises:
        ValueError: names the argument, its rule and the value.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    actions = {action.dest: action for action in parser._actions}
    args = parser.parse_args([str(given["model"])])
    for name, value in given.items():
        action = actions[name]
        if isinstance(action.default, bool):
            checked: Any = bool(value)
        elif action.nargs == "+":
            if isinstance(value, str | Path) or not isinstance(value, Sequence):
                raise ValueError(f"{name}: expected a list, got {quoted(value)}")
            checked = [_checked(name, action, each) for each in value]
        else:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            checked = _checked(name, action, text)
        setattr(args, name, checked)
    return args


def _checked(name: str, action: argparse.Action, value: Any) -> Any:
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, action.choices))}, got {quoted(value)}")
    if action.type is None or isinstance(value, bool):
        if isinstance(value, bool):
            raise ValueError(f"{name}: expected a value, got {quoted(value)}")
        return value
    assert callable(action.type)
    try:
        return action.type(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
