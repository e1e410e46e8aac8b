"""Find the file of an exported model, also in a store, and read its description without opening the model."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from pathlib import Path
from xml.etree import ElementTree

from tinydet._internal.cache import cache_folder
from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet._internal.stores import StorePath
from tinydet.runtime.backends.onnx_spec import read_onnx_file
from tinydet.spec import METADATA_KEY, ModelSpec

ENGINES = (".engine", ".plan")

logger = logging.getLogger("tinydet.runtime")


def size_in_bytes(path: Path) -> int:
    """Return the size of a model file, together with the weights of an OpenVINO IR, which are in its `.bin`."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.exists() else 0)


def read_spec(path: Path) -> ModelSpec:
    """Return the ModelSpec of an ONNX file, of an adopted OpenVINO IR, or of an engine from the `.json` beside it.

    Raises:
        ValueError: the file is damaged, or was not exported by tinydet. Names it.
        OSError: it is missing or unreadable.
    """
    path = local_model(path)
    if path.suffix == ".xml":
        return _read_ir(path)
    if path.suffix not in ENGINES:
        return read_onnx_file(path).spec
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise ValueError(f"{path} lacks its description {sidecar}: copy it too, or build the engine again")
    return ModelSpec.from_json(read_file(sidecar), source=sidecar)


def _read_ir(path: Path) -> ModelSpec:
    try:
        found = ElementTree.fromstring(read_file(path)).find(f"rt_info/framework/{METADATA_KEY}")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not an OpenVINO IR ({error}); adopt the original again") from error
    text = None if found is None else found.get("value")
    if text is None:
        raise ValueError(
            f"{path} is not a model of tinydet; make one of it: {tinydet_command('export', 'adopt', path)}"
        )
    return ModelSpec.from_json(text, source=path)


def local_model(path: Path) -> Path:
    """Return a local copy of a model in a store, with its companion files; a local path is returned as it is.

    The copy is in the cache, see `cache_folder`, and is fetched once for each version of the object.

    Raises:
        OSError: the store does not deliver the model, or the cache cannot be written. Names the model.
    """
    if not isinstance(path, StorePath):
        return path
    version = hashlib.sha256(f"{path} {path.info().version} {path.info().size}".encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / version
    target = folder / path.name
    if target.exists():  # the last file that is fetched
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: {path} cannot be kept there ({error.strerror}); set TINYDET_CACHE") from error
    logger.info(f"Fetching {path} ({path.info().size / 1e6:.1f} MB)")
    stems = dict.fromkeys((path.stem, path.name.partition(".")[0]))
    companions = [f"{path.stem}.skip.json", *(f"{stem}.filter.onnx" for stem in stems)]
    companions += [f"{path.stem}.json"] if path.suffix in ENGINES else [f"{path.name}.data", f"{path.name}_data"]
    companions += [f"{path.stem}.bin"] if path.suffix == ".xml" else []
    for name in companions:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # a store that hides its listing says 403
            _fetch(path.with_name(name), folder)
    _fetch(path, folder)
    return target


def _fetch(path: StorePath, folder: Path) -> None:
    temporary = folder / f".{path.name[:40]}.{secrets.token_hex(4)}"
    try:
        path.info()
        path.download(temporary)
        os.replace(temporary, folder / path.name)
    finally:
        temporary.unlink(missing_ok=True)
