"""Write a model repository for NVIDIA's Triton Inference Server.

    REPOSITORY/tinydet/config.pbtxt      inputs, outputs, batches, threads, warm-up, and the ModelSpec for clients
    REPOSITORY/tinydet/1/model.onnx      or model.plan, or model.xml with model.bin

The format is described by `model_config.proto` and docs/user_guide of Triton's server.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinydet._internal.arguments import quoted
from tinydet._internal.atomic import claim
from tinydet._internal.input_files import check_file, hash_file, read_file
from tinydet._internal.shell import tinydet_command
from tinydet.export.onnx_model import fixed_size
from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, output_shapes
from tinydet.runtime.backends.external_data import external_files
from tinydet.runtime.backends.kserve import DATATYPES, SHA256_KEY
from tinydet.runtime.backends.model_files import read_spec
from tinydet.runtime.backends.onnx_spec import read_onnx_file
from tinydet.runtime.backends.tensorrt import PRODUCTS, plan_flavour, read_description
from tinydet.spec import METADATA_KEY, ModelSpec

logger = logging.getLogger("tinydet.export")

CONFIG = "config.pbtxt"
VERSION = "1"  # of the model in its folder
PLATFORMS = {"onnxruntime": (".onnx",), "tensorrt": (".engine", ".plan"), "openvino": (".onnx", ".xml")}  # takes
FILES = {".onnx": "model.onnx", ".engine": "model.plan", ".plan": "model.plan", ".xml": "model.xml"}
QUEUE_DELAY = 2000  # microseconds
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class TritonOptions:
    """How Triton runs a model.

    Attributes:
        platform: one of PLATFORMS.
        gpu: run it on NVIDIA GPUs; TensorRT always does.
        instances: how many copies of the model run at a time.
        threads: CPU threads of each instance; 0 for all cores.
        max_batch: largest batch; None for the model's.
        queue_delay: microseconds that a request may wait for others to share its batch.
        tile: side of the tiles in pixels, which is fixed in the graph of an ONNX file: backends then compute what
            depends on it once, and the outputs are bit for bit those of a local run. None: any that the file takes.
    """

    platform: str
    gpu: bool = False
    instances: int = 1
    threads: int = 0
    max_batch: int | None = None
    queue_delay: int = QUEUE_DELAY
    tile: int | None = None


@dataclass(frozen=True)
class ServedFile:
    """A model file that can be served.

    Attributes:
        spec: its description.
        takes_batches: whether the batch axis of the graph is free.
        companions: files with its weights, which must lie next to it under the same names.
    """

    path: Path
    spec: ModelSpec
    takes_batches: bool = True
    companions: tuple[Path, ...] = ()


def read_served_file(path: Path, platform: str | None = None) -> tuple[ServedFile, str]:
    """Read the description of a model file, and return it with the platform that runs the file.

    Args:
        platform: one of PLATFORMS; None for the usual one of this kind of file.

    Raises:
        ValueError: the file is damaged, is not an exported model, or not one that this platform of Triton runs.
        OSError: it cannot be read.
    """
    check_file(path, "name an exported model")
    usual = next((name for name, suffixes in PLATFORMS.items() if path.suffix in suffixes), None)
    if usual is None:
        read_spec(path)  # says what a checkpoint needs
        raise ValueError(f"{path}: expected a model that ends in .onnx, .engine or .xml; rename it")
    platform = platform or usual
    if path.suffix not in PLATFORMS[platform]:
        fitting = {"onnxruntime": "onnx", "tensorrt": "engine", "openvino": "onnx"}[platform]
        raise ValueError(
            f"{path}: Triton's {platform} backend runs {' or '.join(PLATFORMS[platform])} files; make one: "
            f"{tinydet_command('export', fitting, 'model.pth')}, or leave out --platform"
        )
    if path.suffix in PLATFORMS["tensorrt"]:
        return ServedFile(path, _engine_spec(path)), platform
    if path.suffix == ".xml":
        weights = path.with_suffix(".bin")
        check_file(weights, "the weights of an OpenVINO IR must be next to its .xml")
        return ServedFile(path, read_spec(path), companions=(weights,)), platform
    file = read_onnx_file(path)
    return ServedFile(path, file.spec, file.takes_batches, external_files(path)), platform


def write_repository(
    file: ServedFile, repository: Path, options: TritonOptions, *, name: str = METADATA_KEY
) -> list[Path]:
    """Write the folder of a model into a repository, and return its files. An older folder of this name is replaced.

    The folder appears complete or not at all: it is written under another name on the same file system, and renamed.

    Raises:
        ValueError: the name is not one for a model, or the folder exists and is not from this function.
        OSError: a file cannot be written.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {quoted(name)}: expected letters, digits, and '_', '-' or '.' after the first")
    folder = repository / name
    _check_replaceable(folder)
    with claim(folder, folder=True):
        # Triton takes each folder of the repository for a model, so the temporary one lies beside the repository.
        beside = repository.resolve().parent
        place = (
            beside if beside.stat().st_dev == repository.stat().st_dev and os.access(beside, os.W_OK) else repository
        )
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=place))
        try:
            new, old = temporary / "new", temporary / "old"
            version = new / VERSION
            version.mkdir(parents=True)
            if options.tile is not None:
                (version / FILES[".onnx"]).write_bytes(fixed_size(file.path, options.tile))
            else:
                shutil.copyfile(file.path, version / FILES[file.path.suffix])
            for companion in file.companions:
                inside = companion.relative_to(file.path.parent) if file.path.suffix != ".xml" else Path("model.bin")
                (version / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(companion, version / inside)
            text = config_text(file, options, name=name, sha256=hash_file(file.path))
            (new / CONFIG).write_text(text, encoding="utf-8")
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        except OSError as error:
            unchanged = "; the older folder is unchanged" if folder.exists() else ""
            text = f"{folder} was not written ({error.strerror or error}){unchanged}"
            raise OSError(error.errno, text) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def config_text(file: ServedFile, options: TritonOptions, *, name: str, sha256: str) -> str:
    """Return the content of `config.pbtxt`, a `ModelConfig` in the text format of protocol buffers.

    Args:
        sha256: hash of the file, by which clients recognize the model.
    """
    spec, platform = dataclasses.replace(file.spec, tile=options.tile or file.spec.tile), options.platform
    # OpenVINO's backend compiles for exactly the largest batch if the server batches; as an ordinary axis it is free.
    batched = platform != "openvino" and file.takes_batches
    largest = min(spec.max_batch, options.max_batch or spec.max_batch)
    free = options.tile is None and (bool(spec.tile_multiple) or len(spec.tiles) > 1)
    batch = [] if batched else [-1 if file.takes_batches else 1]
    side = -1 if free else spec.tile
    outputs = []
    for output, shape in output_shapes(spec).items():
        kind = f"data_type: TYPE_{DATATYPES[OUTPUT_TYPES[output]]}"
        # The protobuf has no tensors without axes, so a number per tile is declared as one of length 1.
        dims = _dims([*batch, *shape]) if batch or shape else "[ 1 ] reshape { shape: [ ] }"
        outputs.append(f'  {{ name: "{output}" {kind} dims: {dims} }}')
    lines = [
        f'name: "{name}"',
        'platform: "tensorrt_plan"' if platform == "tensorrt" else f'backend: "{platform}"',
        f'default_model_filename: "{FILES[file.path.suffix]}"',
        f"max_batch_size: {largest if batched else 0}",
        f'input [ {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: {_dims([*batch, side, side, 3])} }} ]',
        "output [",
        ",\n".join(outputs),
        "]",
        f"instance_group [ {_instances(spec, options)} ]",
    ]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {options.queue_delay} }}")
    if platform == "tensorrt" and len(spec.tiles) == 1:
        sizes = sorted({size for size in (*spec.engine.get("batch", ()), largest) if size <= largest})
        graphs = ", ".join(f"{{ batch_size: {size} }}" for size in sizes)
        lines.append(f"optimization {{ cuda {{ graphs: true graph_spec [ {graphs} ] output_copy_stream: true }} }}")
    for key, value in _parameters(spec, options, sha256).items():
        lines.append(f"parameters {{ key: {_string(key)} value {{ string_value: {_string(value)} }} }}")
    warm = _dims([*([] if batched else [1]), spec.tile, spec.tile, 3])
    for size in sorted({1, largest} if batched and options.gpu else {1}):
        tensor = f'inputs {{ key: "{INPUT}" value {{ data_type: TYPE_UINT8 dims: {warm} random_data: true }} }}'
        lines.append(f'model_warmup [ {{ name: "batch of {size}" batch_size: {size} {tensor} }} ]')
    return "\n".join(lines) + "\n"


def _instances(spec: ModelSpec, options: TritonOptions) -> str:
    kind = "KIND_GPU" if options.gpu else "KIND_CPU"
    profiles = ", ".join(f'"{number}"' for number in range(len(spec.tiles)))  # one for each tile of an engine
    profile = f" profile: [ {profiles} ]" if options.platform == "tensorrt" and len(spec.tiles) > 1 else ""
    return f"{{ count: {options.instances} kind: {kind}{profile} }}"


def _parameters(spec: ModelSpec, options: TritonOptions, sha256: str) -> dict[str, str]:
    """Return options of the platform's backend, and what `runtime.backends.remote` reads."""
    parameters = {}
    if options.platform == "onnxruntime":
        parameters["intra_op_thread_count"] = str(options.threads)
    elif options.platform == "openvino":
        parameters["NUM_STREAMS"] = "1"  # the server has instances for that
        if options.threads:
            parameters["INFERENCE_NUM_THREADS"] = str(options.threads)
    described = json.dumps(json.loads(spec.to_json()), separators=(",", ":"))
    return {**parameters, METADATA_KEY: described, SHA256_KEY: sha256}


def _dims(sizes: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, sizes))} ]"


def _string(text: str) -> str:
    r"""Return a string literal of the text format.

    >>> print(_string('{"name":"a\\nb"}'))
    "{\"name\":\"a\\nb\"}"
    """
    assert text.isascii()
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _engine_spec(path: Path) -> ModelSpec:
    """Return the description of an engine that Triton can run.

    Raises:
        ValueError: it is no TensorRT engine, or needs batches of several tiles.
    """
    plan = read_file(path)
    flavour = plan_flavour(plan)
    if flavour is None:
        raise ValueError(f"{path} is not a TensorRT engine: it begins with {plan[:4]!r}")
    if flavour == "rtx":
        build = tinydet_command("export", "engine", "model.onnx", "--target", "tensorrt")
        raise ValueError(
            f"{path} is an engine of {PRODUCTS[flavour]}, which Triton does not run; build one of TensorRT: {build}, "
            "or serve the ONNX file"
        )
    spec = read_description(path, plan, flavour)
    smallest = int(spec.engine.get("batch", (1,))[0])
    if smallest > 1:
        build = tinydet_command("export", "engine", "model.onnx", "--batch", f"1,8,{max(8, spec.max_batch)}")
        raise ValueError(
            f"{path} takes batches of at least {smallest} tiles, but Triton also sends single tiles; build it again: "
            f"{build}"
        )
    return spec


def _check_replaceable(folder: Path) -> None:
    """Raise ValueError if a folder exists and has other content than a model that was written here."""
    config = folder / CONFIG
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not config.is_file() or f'key: "{SHA256_KEY}"' not in config.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder} exists and was not written by this command; choose another --name, or remove it")
