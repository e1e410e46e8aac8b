"""The steps of `gpu.py`. Each is a generator that yields its results by name as soon as it has them.

`gpu.py` runs each step in a process of its own and stops it after its time limit, so what a step has yielded is never
lost. Without a GPU, an engine is replaced by `engine_stand_in.py`.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

from tinydet.runtime.bundled import model_path

Results = Iterator[tuple[str, Any]]
MODELS = ("thermal", "retinanet", "faster_rcnn")
PRECISIONS = ("fp32", "fp16", "int8")
BATCHES = (1, 8, 16)
SCORE = 0.5  # of the scan; seeded weights give hundreds of boxes per tile above 0.05
MOST_EPOCHS = 500


@dataclass(frozen=True)
class Options:
    """What all steps share.

    Attributes:
        work: folder of models and intermediate results.
        data, val: datasets to train on and to validate on.
        init: weights that the real training starts from, as in `tinydet train --init`; None: random weights.
        cpu: use no GPU; engines are stand-ins.
        rehearsal: sizes so small that every step ends within seconds.
        made: `data` and `val` are to be written, because no dataset was named.
        threads: CPU threads of each process that runs models.
    """

    work: Path
    data: Path
    val: Path
    init: str | None
    cpu: bool
    rehearsal: bool
    threads: int
    made: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.cpu else "cuda"

    @property
    def tile(self) -> int:
        return 64 if self.rehearsal else 640

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.rehearsal else BATCHES

    @property
    def max_batch(self) -> int:
        return 4 if self.rehearsal else max(BATCHES)

    def checkpoint(self, model: str) -> Path:
        return self.work / f"{model}.pth"

    def onnx(self, model: str, precision: str) -> Path:
        return self.work / f"{model}.{precision}.onnx"


# ---------------------------------------------------------------------------------------------------------- the machine


def machine(options: Options, seconds: float) -> Results:
    """Yield the versions and properties of the machine, and draw a dataset if none was named."""
    yield "environment", environment()
    yield "nvidia_smi", output_of("nvidia-smi") or "not found"
    yield "nvidia_smi_query", output_of("nvidia-smi", "-q", "-i", "0")
    yield "imports", {name: import_of(name) for name in ("tensorrt_rtx", "tensorrt", "cuda.bindings.runtime")}
    import torch

    yield "torch", {"cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield "gpu", {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
                      "multiprocessors": properties.multi_processor_count,
                      "capability": f"{properties.major}.{properties.minor}"}  # fmt: skip
    if options.made and not options.val.exists():  # an earlier run with the same --work may have drawn it
        from tinydet.data.synthetic import write_dataset

        counts, side = ((4, 2), 96) if options.rehearsal else ((60, 20), 384)
        for folder, count, seed in zip((options.data, options.val), counts, (1, 2), strict=True):
            write_dataset(folder, count=count, width=side, height=side, seed=seed, density=120 * 384**2 / side**2)
    yield "val_images", len(images_of(options)[0])


def output_of(*words: str) -> str:
    """Return what a program prints; empty if there is none."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def import_of(name: str) -> str:
    """Return the version of a module, or why it cannot be imported."""
    import importlib

    try:
        return str(getattr(importlib.import_module(name), "__version__", "imported"))
    except Exception as error:  # a library that lacks its driver may raise anything
        return f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------------------------------------------------- (a) engines


def engines(options: Options, seconds: float, model: str) -> Results:
    """Build the engine of a model in each precision, run it by our backend, and compare it with ONNX Runtime."""
    images, dataset = images_of(options)
    chosen = images[:: max(1, len(images) // 8)][:8]
    if model != "thermal":
        dataset = None  # of random weights
    order = ("fp16", "fp32", "int8") if model == "thermal" else PRECISIONS  # the bundled file has FP16, as it ships
    brief = options.rehearsal and model != "thermal"  # FP16, and building in FP32, are rehearsed with the small model
    if brief:
        order = ("fp32", "int8")
    for precision in order:
        path = options.onnx(model, precision)
        if model == "thermal" and precision == "fp16":
            shutil.copyfile(model_path(model), path)
            shutil.copyfile(model_path(model, ".pth"), options.checkpoint(model))
        elif precision == "fp32":
            yield from attempt("fp32, onnx", partial(write_fp32, options, model, chosen))
        elif options.onnx(model, "fp32").is_file():
            yield from attempt(f"{precision}, onnx", partial(write_precision, options, model, precision, chosen))
        if not path.is_file():
            continue
        if precision == "fp32" and not options.cpu:
            yield from attempt("fp32, PyTorch on the GPU", partial(compare_torch, options, model, chosen))
        if not brief or precision == "int8":
            yield from attempt(f"{precision}, build", partial(build, path, options))
        if options.cpu or path.with_suffix(".engine").is_file():
            ((name, found),) = attempt(f"{precision}, engine", partial(compare_engine, options, path, chosen, dataset))
            yield name, found
            if "error" in found and not options.cpu:  # TensorRT-RTX does not build for Hopper by default
                yield from attempt(f"{precision}, build for this GPU", partial(build, path, options, ("current",)))
                compare = partial(compare_engine, options, path, chosen, dataset)
                yield from attempt(f"{precision}, engine for this GPU", compare)


def write_fp32(options: Options, model: str, images: Sequence[Path]) -> dict[str, Any]:
    """Export the bundled model, or a detector with seeded weights, to ONNX."""
    from random_models import write_random_checkpoint

    from tinydet.export.onnx_file import write_onnx
    from tinydet.models.checkpoint import load_checkpoint

    path = options.checkpoint(model)
    if model != "thermal":
        network = ("mobilenet_v2", "small") if options.rehearsal else ("resnet50", "paper")
        write_random_checkpoint(path, model, *network, options.tile, images[:2])
    checkpoint = load_checkpoint(path)
    spec = checkpoint.spec(tile=options.tile, max_batch=options.max_batch)
    report = write_onnx(checkpoint.build(), spec, options.onnx(model, "fp32"))
    return {"backbone": spec.backbone, "bytes": report.bytes, "parity_with_torch": asdict(report.parity)}


def write_precision(options: Options, model: str, precision: str, images: Sequence[Path]) -> dict[str, Any]:
    from random_models import write_converted

    path = options.onnx(model, precision)
    weights = write_converted(options.onnx(model, "fp32"), path, precision, images[:4], "max")
    return {"bytes": path.stat().st_size, "weights": weights}


def build(path: Path, options: Options, capabilities: Sequence[str] = ()) -> dict[str, Any]:
    """Build an engine next to an ONNX file. TensorRT-RTX needs no GPU for it."""
    from tinydet.export.engine import write_engine

    sizes = 1, options.max_batch // 2, options.max_batch
    engine = path.with_suffix(".engine")
    return write_engine(path, engine, batch=sizes, tiles=(options.tile,), compute_capabilities=capabilities).engine


def compare_engine(options: Options, path: Path, images: Sequence[Path], dataset: Any) -> dict[str, Any]:
    """Compare an engine with its ONNX file in ONNX Runtime on the CPU, as sets of detections and by AP."""
    from tinydet.export.verify import verify
    from tinydet.runtime.backends import open_model

    engine = open_engine(options, path)
    reference = open_model(path, "onnx-cpu", tile=engine.spec.tile, threads=options.threads)
    limit = 2 if options.rehearsal else 50
    found = verify(reference, engine, images[:2] if options.rehearsal else images, dataset, limit=limit)
    return {"passed": found.passed, **asdict(found)}


def compare_torch(options: Options, model: str, images: Sequence[Path]) -> dict[str, Any]:
    """Compare the network in PyTorch on the GPU with ONNX Runtime on the CPU."""
    import torch

    from tinydet.export.verify import verify
    from tinydet.runtime.backends import open_model

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # FP32, as in the reference
    reference = open_model(options.onnx(model, "fp32"), "onnx-cpu", tile=options.tile, threads=options.threads)
    found = verify(reference, open_torch(options, model), images)
    return {"passed": found.passed, **asdict(found)}


def open_engine(options: Options, path: Path, *, cuda_graph: bool = True) -> Any:
    """Open the engine next to an ONNX file, or without a GPU its stand-in."""
    if options.cpu:
        from engine_stand_in import open_stand_in

        return open_stand_in(path, tile=options.tile, cuda_graph=cuda_graph)
    from tinydet.runtime.backends import tensorrt

    return tensorrt.open_engine(path.with_suffix(".engine"), cuda_graph=cuda_graph)


def open_torch(options: Options, model: str) -> Any:
    """Open the checkpoint of a model in PyTorch, as it is exported."""
    from tinydet.models.backend import TorchBackend
    from tinydet.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.checkpoint(model))
    spec = checkpoint.spec(tile=options.tile, max_batch=options.max_batch)
    return TorchBackend(checkpoint.build(), spec, device=options.device)


# ---------------------------------------------------------------------------------------------------------- (b) latency


def latency(options: Options, seconds: float) -> Results:
    """Time batches with and without CUDA graph, and a scan of a large scene; without an engine, PyTorch."""
    from tinydet.export.verify import middle_tile

    images, _ = images_of(options)
    measured = set()
    for model, precision in itertools.product(MODELS, ("fp16", "fp32")):
        path = options.onnx(model, precision)
        if model in measured or not (path if options.cpu else path.with_suffix(".engine")).is_file():
            continue
        try:
            engine = open_engine(options, path)
        except Exception as error:
            yield f"{model}, {precision}", {"error": one_line(error)}
            continue
        measured.add(model)
        tiles = np.stack([middle_tile(each, engine.spec) for each in images[: max(options.batches)]])
        plain = open_engine(options, path, cuda_graph=False)
        for name, side in (("CUDA graph", engine), ("no CUDA graph", plain)):
            yield from attempt(f"{model}, {precision}, {name}", partial(timed, options, side, tiles, with_stages=True))
        yield from attempt(f"{model}, {precision}, scene", partial(scan_scene, options, engine, images))
    if options.checkpoint("thermal").is_file():
        backend = open_torch(options, "thermal")
        tiles = np.stack([middle_tile(each, backend.spec) for each in images[: max(options.batches)]])
        yield from attempt("thermal, fp32, PyTorch", lambda: timed(options, backend, tiles))
        if not measured:
            yield from attempt("thermal, fp32, PyTorch, scene", lambda: scan_scene(options, backend, images))


def timed(options: Options, backend: Any, tiles: np.ndarray[Any, Any], *, with_stages: bool = False) -> dict[str, Any]:
    """Time a backend for each batch size, from pixels in memory to boxes in memory."""
    from timing import interleaved, summary, warm_up
    from verify_gpu import measure, repeated

    seconds = 0.05 if options.rehearsal else 0.5
    found = {}
    for size in options.batches:
        batch = repeated(tiles, size)
        if with_stages:
            found[str(size)] = measure(backend, batch, seconds=seconds)
            continue

        def run(batch: np.ndarray[Any, Any] = batch) -> object:
            return backend.run(batch)

        warm_up(run, seconds=seconds)
        times = summary(interleaved({"run": run}, seconds=seconds)["run"])
        found[str(size)] = {"milliseconds": {"run": times}, "tiles_per_second": round(size / times["median"] * 1e3, 1)}
    return found


def scan_scene(options: Options, backend: Any, images: Sequence[Path]) -> dict[str, Any]:
    """Scan a scene in memory from end to end: tiles per second, and the shares of the backend and of the GPU."""
    from tinydet.runtime.options import ScanOptions
    from tinydet.runtime.plan import plan_scan
    from tinydet.runtime.scan import scan
    from tinydet.runtime.scenes import open_scene

    side = 150 if options.rehearsal else 20_000
    scene = open_scene(scene_of(images[:16], side))
    plan = plan_scan(scene, backend.spec, ScanOptions(batch=options.max_batch, score=SCORE, coarse=None))
    began = time.perf_counter()
    tiles, boxes, busy = 0, 0, 0.0
    for step in scan(backend, scene, plan):
        tiles, boxes, busy = tiles + step.tiles, boxes + len(step.detections), busy + step.busy
    wall = time.perf_counter() - began
    found = {"side": side, "tiles": tiles, "detections": boxes, "seconds": round(wall, 3),
             "tiles_per_second": round(tiles / wall, 1), "host_share": round(1 - busy / wall, 4)}  # fmt: skip
    if hasattr(backend, "stage_times"):  # the host share above leaves out what the backend itself does on the host
        size = options.max_batch
        batch = np.zeros((size, backend.spec.tile, backend.spec.tile, 3), np.uint8)
        repeats = 2 if options.rehearsal else 10
        execute = float(np.median([backend.stage_times(batch)["execute"] for _ in range(repeats)]))
        found["gpu_share"] = round(execute * tiles / size / (wall * 1e3), 4)
    return found


def scene_of(images: Sequence[Path], side: int) -> np.ndarray[Any, Any]:
    """Return a square scene (side, side, 3) that repeats images, cut to the size of the smallest."""
    from tinydet.runtime.scenes import read_image

    pictures = [read_image(path) for path in images]
    height, width = (min(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    row = np.concatenate([picture[:height, :width] for picture in pictures], 1)
    return np.ascontiguousarray(np.tile(row, (side // height + 1, side // row.shape[1] + 1, 1))[:side, :side])


# ------------------------------------------------------------------------------------------------ (c) speed of training


def training_speed(options: Options, seconds: float) -> Results:
    """Measure images/s and memory of the preset paper against torchvision's loop, both in bfloat16."""
    import json

    import training_speed as benchmark

    from tinydet.train.config import PRESETS

    preset = PRESETS["small" if options.rehearsal else "paper"]
    classes = classes_of(options.data)
    for batch in (2,) if options.rehearsal else (preset["batch"], 16):
        output = options.work / f"training_speed-{batch}.json"
        words = ["--data", str(options.data), "--categories", ",".join(classes), "--output", str(output)]
        words += ["--backbone", preset["backbone"], "--channels", str(preset["channels"]), "--batch", str(batch)]
        words += ["--head-convs", "2" if options.rehearsal else "4", "--device", options.device, "--sides", "3,2"]
        words += ["--rounds", "1" if options.rehearsal else "5", "--steps", "1" if options.rehearsal else "10"]
        words += ["--threads", str(options.threads), "--workers", "0" if options.rehearsal else "8"]

        def measure(words: list[str] = words, output: Path = output) -> Any:
            if benchmark.main(words):
                raise RuntimeError("the benchmark failed; its message is in the log of the step")
            return json.loads(output.read_text())["cases"]

        yield from attempt(f"batch {batch}", measure)


# ---------------------------------------------------------------------------------------------------- (d) real training


def real_training(options: Options, seconds: float) -> Results:
    """Train for the time of the step: one epoch and three, which show how long one takes, then as many as fit."""
    import signal

    ends = time.monotonic() + seconds
    short = run_training(options, 1, "short.pth")
    yield "one epoch", short
    epoch = short["seconds"]  # with the start and the validations
    if not options.rehearsal and epoch < seconds / 10:
        longer = run_training(options, 3, "short.pth")
        yield "three epochs", longer
        epoch = max(0.1, (longer["seconds"] - short["seconds"]) / 2)
    left = ends - time.monotonic() - 5
    epochs = 1 if options.rehearsal else max(1, min(MOST_EPOCHS, int(0.85 * (left - short["seconds"]) / epoch)))
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, after which the best weights are kept
    signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
    yield "training", run_training(options, epochs, "trained.pth")
    signal.setitimer(signal.ITIMER_REAL, 0)


def run_training(options: Options, epochs: int, name: str) -> dict[str, Any]:
    from tinydet.models.checkpoint import load_checkpoint
    from tinydet.train import TrainConfig, train

    output = options.work / name
    config = TrainConfig(
        data=options.data, val=options.val, init=options.init, output=output, epochs=epochs, device=options.device,
        categories=classes_of(options.data), tile=options.tile if options.rehearsal else None,
        weights_backbone=None if options.init else "none", tensorboard=False,
        validate_every=max(1, epochs // 6), threads=options.threads if options.cpu else None,
    )  # fmt: skip
    began = time.monotonic()
    try:
        result = train(config)
        history, stopped = list(result.history), False
    except KeyboardInterrupt:
        history, stopped = [load_checkpoint(output).progress] if output.is_file() else [], True
    rows = [row for row in history if row]
    return {
        "epochs": epochs,
        "stopped": stopped,
        "seconds": round(time.monotonic() - began, 1),
        "before": next((row for row in rows if row.get("epoch") == 0), "no AP: the weights know none of the classes"),
        "after": rows[-1] if rows else None,
        "history": rows,
    }


# ------------------------------------------------------------------------------------------------------- (e) verify_gpu


def verification(options: Options, seconds: float) -> Results:
    """Run `verify_gpu.py` on the engines of the bundled model: detections, AP, stages, clocks and throttling."""
    import json

    import verify_gpu

    for precision in PRECISIONS:
        path = options.onnx("thermal", precision)
        if not path.is_file():
            continue
        output = options.work / f"verify_gpu-{precision}.json"
        words = [str(path if options.cpu else path.with_suffix(".engine")), "--data", str(options.val)]
        words += ["--output", str(output), "--limit", "2" if options.rehearsal else "50"]
        words += ["--seconds", "0.05" if options.rehearsal else "0.5"]

        def run(words: list[str] = words, path: Path = path, output: Path = output) -> Any:
            verify_gpu.check(verify_gpu.arguments(words), open_engine(options, path))
            return json.loads(output.read_text())

        yield from attempt(precision, run)


# --------------------------------------------------------------------------------------------------------------- shared

STEPS: dict[str, Callable[..., Results]] = {
    "machine": machine,
    "engines": engines,
    "latency": latency,
    "training speed": training_speed,
    "real training": real_training,
    "verify_gpu": verification,
}


def attempt(name: str, work: Callable[[], Any]) -> Results:
    """Yield the result of `work` with the seconds that it took, or its error, or the package that it lacks."""
    began = time.monotonic()
    try:
        found = work()
    except ModuleNotFoundError as error:
        found = {"skipped": one_line(error)}
    except Exception as error:
        traceback.print_exc()
        found = {"error": one_line(error)}
    yield name, {"took": round(time.monotonic() - began, 2), **found}


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000]


def images_of(options: Options) -> tuple[list[Path], Any]:
    """Return the validation images and their annotations of the classes of the bundled model."""
    from tinydet.data.source import find_source
    from tinydet.export.verification_images import verification_images
    from tinydet.runtime.backends import open_model

    spec = open_model(Path("thermal"), "onnx-cpu", tile=options.tile).spec
    return verification_images(spec.classes, find_source(options.val, prefer=("val", "test"), needs_images=True))


def classes_of(data: Path) -> tuple[str, ...]:
    """Return the classes of a dataset that the bundled model knows too, or all of them."""
    from tinydet.data.source import find_source

    classes = find_source(data, prefer=("train",), needs_images=True).load().classes
    return tuple(name for name in classes if name in ("person", "car")) or tuple(classes)
