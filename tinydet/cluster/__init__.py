"""Scan many or very large scenes on a Ray cluster: `infer`, the same as `tinydet infer --ray`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tinydet._internal.shell import tinydet_command
from tinydet._internal.suggestions import did_you_mean
from tinydet.infer.__main__ import infer as _infer
from tinydet.infer.__main__ import infer_parser

__all__ = ["infer"]


def infer(
    scenes: str | Path | Sequence[str | Path],
    *,
    ray: str = "local",
    workers: tuple[int, int] | int | None = None,
    gpus_per_worker: float = 0,
    **options: Any,
) -> dict[str, Any]:
    """Scan scenes with a pool of actors on Ray, and write the outputs of `tinydet infer`, byte for byte.

    A run that was interrupted continues where it stopped when it is called again.

    >>> infer("flight/", output="found/", model="model.onnx", workers=(2, 8))  # doctest: +SKIP

    Args:
        scenes: images, folders and patterns. All nodes must see them, and the model, at the same paths.
        ray: address of a cluster; "local" starts Ray on this machine. If the program has called `ray.init`, that
            connection is used.
        workers: number of actors, or its least and largest value; None: 1 to one per CPU, or GPU.
        gpus_per_worker: GPUs of each actor; a fraction shares one.
        options: the other options of `tinydet infer`, with underscores: `model="model.onnx"`, `score=0.5`,
            `format="csv,geojson"`, `skip_unreadable=True`. A list gives an option several values.

    Returns:
        For each scene its counts, files, or the reason why it was skipped; files and totals: what `--summary` writes.

    Raises:
        ValueError, OSError: an option, a scene, the model or an output is invalid; Ray cannot be reached.
        TypeError: there is no such option.
        ModuleNotFoundError: Ray is not installed.
    """
    parser = infer_parser()
    parser.error = _raise  # type: ignore[method-assign]
    known = {action.dest for action in parser._actions} - {"help", "image", "ray", "workers", "part", "join"}
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"no option {unknown[0]!r} of `{tinydet_command('infer')}`{did_you_mean(unknown[0], known)}")
    words = ["--image", *map(str, [scenes] if isinstance(scenes, str | Path) else scenes), "--ray", ray]
    if workers is not None:
        words += ["--workers", "-".join(map(str, [workers] if isinstance(workers, int) else workers))]
    for name, value in {**options, "gpus_per_worker": gpus_per_worker}.items():
        if value is not None and value is not False:
            values = value if isinstance(value, list | tuple) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        args.summary = args.summary or Path(folder) / "summary.json"
        _infer(args)
        summary: dict[str, Any] = json.loads(args.summary.read_text(encoding="utf-8"))
    return summary


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
