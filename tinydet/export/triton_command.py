"""`tinydet export triton`: write a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tinydet._internal.arguments import batch_size, side, threads, whole
from tinydet._internal.shell import command_line, tinydet_command
from tinydet.export.triton_repository import (
    PLATFORMS,
    QUEUE_DELAY,
    TritonOptions,
    read_served_file,
    write_repository,
)
from tinydet.runtime.backends.contract import spec_for_tile
from tinydet.runtime.bundled import model_path
from tinydet.spec import METADATA_KEY

logger = logging.getLogger("tinydet.export")

EXAMPLES = (
    "model.onnx --repository models/",
    "model.engine --repository models/ --name ships",
    "model.onnx --repository models/ --platform openvino --threads 4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the folder of a model for Triton: its configuration with dynamic batching and warm-up, the model file, "
        "and the description by which tinydet clients recognize the model. The folder appears complete or not at all; "
        "one that this command wrote before is replaced. No server is needed."
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="model.onnx|model.engine",
        help="exported or adopted model, also an OpenVINO IR (.xml), or a bundled model",
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="model repository to write to")
    parser.add_argument(
        "--name",
        default=METADATA_KEY,
        metavar="NAME",
        help=f"name of the served model (default: {METADATA_KEY})",
    )
    parser.add_argument(
        "--platform",
        choices=tuple(PLATFORMS),
        help="Triton backend that runs the model (default: tensorrt for an engine, openvino for an .xml, else "
        "onnxruntime)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        help="device of the ONNX Runtime backend (default: cpu; an engine runs on the GPU, OpenVINO on the CPU)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="PX|free",
        help="side of the tiles in pixels, fixed in the served graph of an ONNX file, so that its outputs equal those "
        "of a local run bit for bit; free leaves it to the clients (default: the model's tile)",
    )
    parser.add_argument(
        "--instances",
        type=whole(1, 256),
        default=1,
        metavar="N",
        help="copies of the model that run at a time, each with its own memory (default: 1)",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads of each instance: cores of the server / instances (default: all cores; required with several "
        "instances on the CPU)",
    )
    parser.add_argument(
        "--batch", type=batch_size, metavar="N", help="largest batch that the server forms (default: that of the model)"
    )
    parser.add_argument(
        "--queue-delay",
        type=whole(0, 10_000_000),
        default=QUEUE_DELAY,
        metavar="US",
        help=f"microseconds that a request waits for others to share its batch (default: {QUEUE_DELAY})",
    )


def _tile(text: str) -> int | str:
    try:
        return text if text == "free" else side(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace(", got ", " or free, got ", 1)) from None


def run(args: argparse.Namespace) -> int:
    file, platform = read_served_file(model_path(args.model), args.platform)
    fixed = {"tensorrt": "gpu", "openvino": "cpu"}.get(platform)
    if args.device is not None and fixed is not None and fixed != args.device:
        raise ValueError(
            f"--device {args.device}: Triton's {platform} backend runs on the {fixed.upper()}; leave it out"
        )
    device = fixed or args.device or "cpu"
    if args.instances > 1 and args.threads is None and device == "cpu":
        raise ValueError(
            f"--instances {args.instances} needs --threads: each instance would take all cores; give the cores of the "
            f"server / {args.instances}"
        )
    if args.batch is not None and args.batch > file.spec.max_batch:
        raise ValueError(f"--batch {args.batch}: {args.model} takes at most {file.spec.max_batch} tiles; choose fewer")
    if args.batch is not None and (platform == "openvino" or not file.takes_batches):
        why = (
            "OpenVINO's backend does not join batches"
            if platform == "openvino"
            else "the model takes one tile at a time"
        )
        raise ValueError(f"--batch {args.batch}: {why}; leave it out")
    if file.spec.precision == "int8" and platform == "onnxruntime" and device == "cpu":
        logger.warning(
            "ONNX Runtime computes INT8 wrongly on processors without VNNI, and Triton cannot switch that off; use "
            "--platform openvino there"
        )
    can_fix = bool(file.spec.tile_multiple) and file.path.suffix == ".onnx"
    if args.tile is not None and not can_fix:
        tiles = ", ".join(map(str, file.spec.tiles))
        raise ValueError(f"--tile {args.tile}: {args.model} takes tiles of {tiles} pixels; leave the option out")
    tile = None if args.tile == "free" or not can_fix else spec_for_tile(file.spec, args.tile, args.model).tile
    options = TritonOptions(
        platform,
        tile=tile,
        gpu=device == "gpu",
        instances=args.instances,
        threads=args.threads or 0,
        max_batch=args.batch,
        queue_delay=args.queue_delay,
    )
    for path in write_repository(file, args.repository, options, name=args.name):
        print(f"wrote   {path}")
    engine = file.spec.engine
    server = ["tritonserver", f"--model-repository={args.repository}"]
    if engine.get("version_compatible"):
        server.append("--backend-config=tensorrt,version-compatible=true")
    print(f"serve   {command_line(*server)}")
    if engine:
        print(f"        built by TensorRT {engine.get('version')} for {engine.get('gpu')}; the server needs the same")
    address = f"http://127.0.0.1:8000/v2/models/{args.name}"
    print(f"use     {tinydet_command('infer', 'scene.tif', '--backend', address)}")
    return 0
