"""Size, accuracy, build time and latency of exported models, by detector, backbone and precision.

    python benchmarks/export.py --data val --calibration train/images --models model.pth
    python benchmarks/export.py --only latency --minutes 7     # continue one step for at most 7 minutes

Each row of the table is a detector (RetinaNet, Faster R-CNN) with a backbone, in FP32, FP16 or INT8. The checkpoints
in --models are used for their detector and backbone; other rows have random weights, with the channels of --preset.
There are three steps. Each result is recorded at once and not measured again:

convert   Export to ONNX and convert to the other precisions. A trained model is exported by `tinydet export onnx` and
          verified; in FP16 and INT8, layers stay in FP32 where AP-tiny on --data would drop too far. Of a random model,
          whose detections are noise, every layer is converted and the differences are only reported.
build     Build a TensorRT-RTX engine for batches of 1, 8 and 16, --builds times. Needs no GPU.
latency   Run one real tile, and a batch of four, on each backend of this machine, in turns of five runs (timing.py).

Models that cannot be exported are listed with the reason. Needs tinydet[train,export,rtx,openvino]. Takes about three
hours for both detectors and three backbones on two cores; --minutes divides it into parts.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from random_models import write_converted, write_random_checkpoint
from timing import interleaved, summary, warm_up

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.source import DataSource, builtin_source, find_source
from tinydet.data.synthetic import builtin_dataset
from tinydet.export.verification_images import verification_images
from tinydet.export.verify import middle_tile
from tinydet.runtime.backends import open_model
from tinydet.spec import PRECISIONS, ModelSpec

DETECTORS = ("retinanet", "faster_rcnn")
BACKBONES = ("mobilenet_v2", "resnet18", "resnet50")
SIDES = ((1, "onnx-cpu"), (1, "openvino-latency"), (4, "onnx-cpu"), (4, "openvino"), (4, "openvino-bf16"))
BATCH = (1, 8, 16)
STEPS = ("convert", "build", "latency")
NAMES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}
NAMES |= {"mobilenet_v2": "MobileNetV2", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}


@command("benchmarks/export.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    began = time.monotonic()
    result = json.loads(args.output.read_text()) if args.output.is_file() else {"cells": {}}
    result = {"command": "python benchmarks/export.py", **environment(), **result}
    for step, (model, name) in itertools.product(args.only, checkpoints(args)):
        if time.monotonic() - began > args.minutes * 60:
            print("Time limit reached. Run the same command again to resume.")
            break
        work: Callable[..., Iterator[None]] = {"convert": convert, "build": build, "latency": latency}[step]
        for _ in work(result["cells"], name, model, args):
            write_json(args.output, result)
    print(table(result), f"\nwrote {args.output}")
    return 0


def checkpoints(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """Return a checkpoint of every detector and backbone, trained or random, and the name of its rows."""
    from tinydet.models.checkpoint import load_checkpoint

    trained = {}
    for path in args.models:
        design = load_checkpoint(path).detector
        trained[design.detector, design.backbone] = path
    found = []
    for detector, backbone in itertools.product(args.detectors, args.backbones):
        name = f"{detector} {backbone} {args.preset}"
        path = trained.get((detector, backbone))
        if path is None:
            path = args.work / f"{detector}-{backbone}-{args.preset}.pth"
            if not path.is_file():
                write_random_checkpoint(path, detector, backbone, args.preset, args.tile, image_files(args)[:2])
        else:
            name += " trained"
        found.append((path, name))
    return found


# ---------------------------------------------------------------------------------------------------------- the steps


def convert(cells: dict[str, Any], name: str, model: Path, args: argparse.Namespace) -> Iterator[None]:
    """Write the ONNX files of all precisions to --work and compare each with its source."""
    for precision in PRECISIONS:
        key = f"{name} {precision}"
        known = cells.get(key, {}).get("convert", {"not_exported": "not tried"})
        if "not_exported" not in known or "layers" in known:  # what verification rejected is not tried again
            continue
        print(f"{key}: convert", flush=True)
        source, output = onnx_file(name, "fp32", args), onnx_file(name, precision, args)
        began = time.perf_counter()
        if precision == "fp32":
            made = (export_by_command if "trained" in name else export_unverified)(model, output, args)
        elif not source.is_file():
            made = {"not_exported": cells[f"{name} fp32"]["convert"]["not_exported"]}
        elif "trained" in name and precision not in args.whole:
            made = convert_verified(source, output, precision, cells[f"{name} fp32"]["convert"]["AP"], args)
        else:
            made = convert_all_layers(source, output, precision, args)
            if "trained" in name and args.data:
                made["AP"] = ap_of(output, cells[f"{name} fp32"]["convert"]["AP"], args)
        made["seconds"] = round(time.perf_counter() - began, 1)
        cells.setdefault(key, {})["convert"] = {**when(), **made}
        yield


def export_by_command(model: Path, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Export a trained model with `tinydet export onnx`."""
    words = ["export", "onnx", str(model), "--output", str(output), "--batch", str(BATCH[2]), "--tile", str(args.tile)]
    if args.data:
        words += ["--data", str(args.data), "--limit", str(args.limit)]
    else:
        words += ["--images", *map(str, image_files(args)[:8])]
    done = subprocess.run([sys.executable, "-m", "tinydet", *words], capture_output=True, text=True)
    if done.returncode:
        return {"not_exported": done.stderr.strip().splitlines()[-1].rpartition(": error: ")[2]
                .replace(str(model), model.name).replace(str(output), output.name)}  # fmt: skip
    report = json.loads(output.with_suffix(".verify.json").read_text())
    return {**parity(report), "megabytes": megabytes(output), "kept_in_fp32": []}


def export_unverified(model: Path, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Export a random model and compare it with torch as verification does, but accept any difference.

    Among proposals with equal scores, such as those of the repeated patches in the crowded tile of verification,
    rounding decides which is kept, and with random weights every one of them is a detection.
    """
    from tinydet.export.onnx_file import write_onnx
    from tinydet.export.verify import verify
    from tinydet.models.backend import TorchBackend
    from tinydet.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model)
    spec = checkpoint.spec(tile=args.tile, max_batch=BATCH[2], max_detections=1000)
    try:
        write_onnx(checkpoint.build(), spec, output)
    except ValueError as error:
        return {"not_exported": str(error).replace(str(output), output.name)}
    reference = TorchBackend(checkpoint.build(), spec)
    report = asdict(verify(reference, open_model(output, "onnx-cpu"), image_files(args)[:8]))
    return {**parity(report), "megabytes": megabytes(output), "kept_in_fp32": [], "faults": report["faults"]}


def source_of(args: argparse.Namespace) -> DataSource:
    return find_source(args.data) if args.data else builtin_source("val")


def convert_verified(
    source: Path, output: Path, precision: Any, before: dict[str, list[float]], args: argparse.Namespace
) -> dict[str, Any]:
    """Convert a trained model, keeping layers in FP32 until AP-tiny is within --max-drop; then measure AP.

    Args:
        before: AP of the FP32 file by size. The search for layers uses fewer images than AP.
    """
    from tinydet.export.precision import SEARCH_IMAGES, convert

    images, dataset = verification_images(open_model(source, "onnx-cpu").spec.classes, source_of(args))
    calibration = calibration_images(args) or images
    try:
        made = convert(source, output, precision, images, dataset, calibration=calibration, method=args.method,
                       limit=SEARCH_IMAGES, max_drop=args.max_drop)  # fmt: skip
    except ValueError as error:
        reason = str(error).replace(str(output), output.name)
        return {"not_exported": reason, "layers": "none within the allowed drop"}
    return {
        **parity(asdict(made.verification)),
        "AP": ap_of(output, before, args) if before else {},
        "images": min(args.limit, len(images)),
        "AP_of_the_search": {name: list(values) for name, values in made.verification.precision.items()},
        "images_of_the_search": made.verification.images,
        "max_drop": args.max_drop,
        "megabytes": megabytes(output),
        "layers": made.layers,
        "kept_in_fp32": list(made.kept),
        "shares": made.sensitivity,
        "calibration": {"method": args.method, "pictures": len(calibration)} if precision == "int8" else None,
        "weights": made.weights,
    }


def ap_of(model: Path, before: dict[str, list[float]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Return AP by size as pairs: of the FP32 file (`before`) and of `model`."""
    from tinydet.export.verify import precision_by_size

    opened = open_model(model, "onnx-cpu")
    _, dataset = verification_images(opened.spec.classes, source_of(args))
    assert dataset is not None
    after = precision_by_size(opened, dataset, args.limit)
    return {name: [values[1], after[name]] for name, values in before.items()}


def calibration_images(args: argparse.Namespace) -> list[Path]:
    """Return --pictures images, evenly spaced over those of --calibration."""
    files = sorted(p for p in args.calibration.iterdir() if p.is_file()) if args.calibration else []
    return files[:: max(1, len(files) // args.pictures)][: args.pictures]


def convert_all_layers(source: Path, output: Path, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Convert every layer and report the differences, whether or not they pass verification."""
    from tinydet.export.verify import verify

    trained = "trained" in source.stem
    images = image_files(args) if trained else image_files(args)[:8]
    calibration = (calibration_images(args) if trained else []) or images
    weights = write_converted(source, output, precision, calibration, args.method)
    report = asdict(verify(open_model(source, "onnx-cpu"), open_model(output, "onnx-cpu"), images))
    details = {"kept_in_fp32": [], "weights": weights, "faults": report["faults"]}
    return {**parity(report), "megabytes": megabytes(output), **details}


def build(cells: dict[str, Any], name: str, model: Path, args: argparse.Namespace) -> Iterator[None]:
    """Build a TensorRT-RTX engine of each ONNX file and delete it again."""
    from tinydet.export.engine import write_engine

    for precision, path, cell in files(cells, name, args):
        if "build" in cell:
            continue
        print(f"{name} {precision}: build", flush=True)
        specs: list[ModelSpec] = [
            write_engine(path, path.with_suffix(".engine"), target="rtx", batch=BATCH) for _ in range(args.builds)
        ]
        built = specs[-1].engine
        cell["build"] = {**when(), "seconds": [spec.engine["seconds"] for spec in specs], "bytes": built["bytes"],
                         "flavour": built["flavour"], "version": built["version"], "gpu": built["gpu"]}  # fmt: skip
        path.with_suffix(".engine").unlink()
        yield


def latency(cells: dict[str, Any], name: str, model: Path, args: argparse.Namespace) -> Iterator[None]:
    """Time all precisions, backends and batch sizes of a model in turns."""
    found = files(cells, name, args)
    if not found or all("latency" in cell for _, _, cell in found):
        return
    print(f"{name}: latency", flush=True)
    sides, names = {}, {}
    for (precision, path, _), (size, backend) in itertools.product(found, SIDES):
        if backend == "openvino-bf16" and precision != "fp32":  # bfloat16 computes the FP32 file
            continue
        try:
            opened = open_model(path, backend)
        except (OSError, ImportError) as error:
            print(f"{backend} is skipped: {error}")
            continue
        tiles = np.stack([middle_tile(path, opened.spec) for path in image_files(args)[:size]])
        names[precision, size, backend] = opened.name
        sides[precision, size, backend] = functools.partial(opened.run, tiles)
    for side in sides.values():
        warm_up(side, seconds=args.warm_up)
    times = interleaved(sides, seconds=args.seconds)
    for precision, _, cell in found:
        cell["latency"] = {**when(), "tile": args.tile} | {
            f"{backend}, batch {size}": {"runs": runs, **summary(times[of, size, backend])}
            for (of, size, backend), runs in names.items()
            if of == precision
        }
    yield


def files(cells: dict[str, Any], name: str, args: argparse.Namespace) -> list[tuple[str, Path, dict[str, Any]]]:
    """Return precision, path and cell of the existing ONNX files of a model."""
    rows = [(precision, onnx_file(name, precision, args), cells.get(f"{name} {precision}")) for precision in PRECISIONS]
    return [(precision, path, cell) for precision, path, cell in rows if cell is not None and path.is_file()]


def onnx_file(name: str, precision: str, args: argparse.Namespace) -> Path:
    stem = name.replace(" ", "-")
    folder: Path = args.work
    return folder / (f"{stem}.onnx" if precision == "fp32" else f"{stem}.{precision}.onnx")


@functools.cache
def _image_files(folder: Path) -> tuple[Path, ...]:
    dataset = load_dataset(*find_dataset(folder))
    return tuple(dataset.image_path(i) for i in range(len(dataset.images)))


def image_files(args: argparse.Namespace) -> tuple[Path, ...]:
    return _image_files(args.data or builtin_dataset("val"))


def parity(report: dict[str, Any]) -> dict[str, Any]:
    """Summarize the report of a verification over all kinds of images in it."""
    kinds = report["parity"].values()
    return {
        "detections": sum(k["detections"] for k in kinds),
        "unmatched": sum(k["unmatched"] for k in kinds),
        "score_difference": max(k["score_difference"] for k in kinds),
        "box_difference": max(k["box_difference"] for k in kinds),
        "AP": {name: [before, after] for name, (before, after) in report["precision"].items() if before >= 0},
        "images": report["images"],
    }


def when() -> dict[str, Any]:
    """Return date, commit and load, which may differ between cells."""
    now = environment()
    return {"date": now["date"], "commit": now["commit"], "load_at_start": now["machine"]["load_at_start"]}


def megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 2)


# ---------------------------------------------------------------------------------------------------------- the table


def table(result: dict[str, Any]) -> str:
    """Format the results as Markdown. Latencies are medians in ms per tile, for batches of one and of four."""
    lines = [
        "| model | weights | precision | ONNX, MB | unmatched | AP-tiny | engine, MB | build, s | "
        "batch 1: ONNX Runtime, ms | OpenVINO | batch 4: ONNX Runtime | OpenVINO | OpenVINO bf16 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    refused: dict[str, list[str]] = {}
    for key, cell in result["cells"].items():
        detector, backbone, preset, *trained, precision = key.split()
        made, built, timed = (cell.get(step, {}) for step in STEPS)
        model = f"{NAMES[detector]}, {NAMES[backbone]}, {preset}"
        if "not_exported" in made:
            refused.setdefault(made["not_exported"], []).append(f"{model}, {precision}")
            continue
        tiny = made.get("AP", {}).get("tiny")
        seconds = built.get("seconds")
        row = [
            model,
            "trained" if trained else "random",
            precision,
            f"{made['megabytes']:.1f}",
            f"{made['unmatched']} of {made['detections']}",
            f"{100 * tiny[1]:.2f}" if tiny else "–",
            f"{built['bytes'] / 1e6:.1f}" if built else "–",
            f"{sorted(seconds)[len(seconds) // 2]:.1f}" if seconds else "–",
            *(milliseconds_per_tile(timed, size, backend) for size, backend in SIDES),
        ]
        lines.append(f"| {' | '.join(row)} |")
    for reason, models in refused.items():
        lines += ["", f"Not exported ({reason}): {'; '.join(models)}."]
    return "\n".join(lines)


def milliseconds_per_tile(timed: dict[str, Any], size: int, backend: str) -> str:
    measured = timed.get(f"{backend}, batch {size}")
    return f"{measured['median'] / size:.0f}" if measured else "–"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=Path, nargs="+", default=[], metavar="MODEL.pth", help="trained checkpoints (default: none)")
    add("--data", type=Path, metavar="DIR", help="COCO folder for tiles and AP (default: built-in validation set)")
    add("--calibration", type=Path, metavar="DIR", help="folder of images for INT8 calibration (default: --data)")
    add("--pictures", type=positive_int, metavar="N", default=100, help="number of calibration images (default: 100)")
    add(
        "--method",
        choices=("max", "entropy", "percentile"),
        default="max",
        help="INT8 calibration method (default: max)",
    )
    add("--max-drop", type=float, default=0.005, help="allowed drop of AP-tiny of trained models (default: 0.005)")
    add("--whole", nargs="+", choices=PRECISIONS[1:], default=(),
        help="convert every layer of trained models, too, and skip verification (default: none)")  # fmt: skip
    add(
        "--limit", type=positive_int, metavar="N", default=1000, help="measure AP on the first N images (default: 1000)"
    )
    add("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS, help="detectors to measure (default: both)")
    add(
        "--backbones", nargs="+", choices=BACKBONES, default=BACKBONES, help="backbones to measure (default: all three)"
    )
    add(
        "--preset",
        choices=("small", "paper"),
        default="small",
        help="preset of random models: 64 or 256 channels (default: small)",
    )
    add("--tile", type=positive_int, default=640, help="tile size in pixels (default: 640)")
    add("--only", nargs="+", choices=STEPS, default=STEPS, help="run only these steps (default: all)")
    add("--minutes", type=float, default=float("inf"), help="start nothing after this time (default: no limit)")
    add("--builds", type=positive_int, metavar="N", default=3, help="builds of each engine (default: 3)")
    add("--warm-up", type=float, default=30, help="longest warm-up of each backend in seconds (default: 30)")
    add("--seconds", type=float, default=10, help="seconds of measuring of each backend (default: 10)")
    add("--work", type=Path, default=ROOT / "runs" / "export", help="folder of the models (default: runs/export)")
    add("--quick", action="store_true", help="measure MobileNetV2 at 128 pixels for a short time, without --output")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "export.json",
        help="result file, extended if it exists (default: benchmarks/results/export.json)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.quick:
        args.backbones, args.tile, args.builds, args.seconds, args.warm_up = ("mobilenet_v2",), 128, 1, 0.2, 0.2
        args.work = args.work / "quick"
        args.output = args.work / "export.json"
        args.output.unlink(missing_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    sys.exit(main())
