"""A folder of images that fit one tile: one image after the other, and with tiles of several images in each batch.

    python benchmarks/small_images.py --images hituav-val/images --output benchmarks/results/small_images.json

Without --images, the images are made from the built-in synthetic dataset. In each round and for each backend, `--count`
images are run by `detect_scene` (each image alone) and by `detect_scenes` (pooled), in alternating order; both open the
files. The bundled thermal model is used. The time of the model is measured too, on the same tiles in memory and in full
batches: no program can be faster than that. The boxes of both ways are compared.

With --before FOLDER, the command `tinydet infer` of another checkout and of this one run in turn on the same images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from environment import ROOT, environment

sys.path.insert(0, str(ROOT))  # what is measured is the checkout whose commit is recorded, whatever is installed

from tinydet._internal.atomic import write_json
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.bundled import DEFAULT, model_path
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import SceneResult, detect_scene, detect_scenes
from tinydet.runtime.scenes import open_scene

SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> int:
    args = arguments()
    about = environment()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = images(args.images, args.count, Path(folder))
        for name in args.backends:
            backend = open_model(model_path(Path(DEFAULT)), name, threads=args.threads)
            rows.append({"backend": backend.name, **compare(backend, paths, args.rounds)})
            print(row_text(rows[-1]))
        commands = {} if args.before is None else compare_commands(args, paths, Path(folder))
    if args.output:
        command = "python benchmarks/small_images.py " + " ".join(sys.argv[1:])
        options = {"images": len(paths), "threads": args.threads, "rounds": args.rounds}
        write_json(args.output, {"command": command.strip(), **about, **options, "rows": rows, "commands": commands})
        print(f"wrote {args.output}")
    return 0


def compare(backend: Backend, paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Time both ways in alternating order, and the model alone."""
    options = ScanOptions(score=0.3)
    ways: dict[str, Callable[[], list[SceneResult]]] = {
        "alone": lambda: [alone(backend, path, options) for path in paths],
        "pooled": lambda: list(detect_scenes(backend, (partial(open_scene, path) for path in paths), options)),
    }
    batch = min(options.batch, backend.spec.max_batch)
    tiles = np.zeros((batch, backend.spec.tile, backend.spec.tile, 3), np.uint8)
    for n in range(batch):
        with open_scene(paths[n % len(paths)]) as scene:
            width, height = min(scene.width, backend.spec.tile), min(scene.height, backend.spec.tile)
            tiles[n, :height, :width] = scene.read(0, 0, width, height)
    backend.run(tiles)  # warm up
    seconds: dict[str, list[float]] = {"alone": [], "pooled": [], "model": []}
    found: dict[str, list[SceneResult]] = {}
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            found[way] = ways[way]()
            seconds[way].append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(0, len(paths), batch):
            backend.run(tiles)
        seconds["model"].append((time.perf_counter() - start) * len(paths) / (-(-len(paths) // batch) * batch))
    pairs = zip(found["alone"], found["pooled"], strict=True)
    differing = sum(not np.array_equal(a.detections.boxes, b.detections.boxes) for a, b in pairs)
    result: dict[str, Any] = {
        f"{way}_images_per_second": spread([len(paths) / second for second in values])
        for way, values in seconds.items()
    }
    ratios = [a / b for a, b in zip(seconds["alone"], seconds["pooled"], strict=True)]
    return {**result, "speedup": spread(ratios), "images_with_other_boxes": differing}


def alone(backend: Backend, path: Path, options: ScanOptions) -> SceneResult:
    with open_scene(path) as scene:
        return detect_scene(backend, scene, options)


def compare_commands(args: argparse.Namespace, paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Time the command of another checkout and of this one, in turn, including the start of Python."""
    source = folder / "source"
    source.mkdir()
    for n, path in enumerate(paths):
        (source / f"{n:05d}{path.suffix}").symlink_to(path.resolve())
    seconds: dict[str, dict[str, list[float]]] = {}
    for number in range(args.rounds):
        for backend in args.backends:
            for side, root in (("before", args.before.resolve()), ("now", ROOT)):
                output = folder / f"{side}-{backend}-{number}"
                output.mkdir()
                words = ["--image", str(source), "--output", f"{output}/", "--draw", f"{output}/"]
                words += ["--model", DEFAULT, "--backend", backend, "--threads", str(args.threads)]
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "tinydet", "infer", *words],
                    env={**os.environ, "PYTHONPATH": str(root)},
                    cwd=folder,
                    check=True,
                    capture_output=True,
                )
                seconds.setdefault(backend, {}).setdefault(side, []).append(time.perf_counter() - start)
    for backend, sides in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(sides["before"], sides["now"], strict=True))
        print(f"command, {backend}: {ratio:.2f} times as fast as {args.before}")
    return {backend: {side: spread(values) for side, values in sides.items()} for backend, sides in seconds.items()}


def images(folder: Path | None, count: int, work: Path) -> list[Path]:
    """Return image files that fit one tile: those of a folder, repeated if they are few, or synthetic ones."""
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{folder} has no JPEG or PNG files; name another folder")
        return [found[n % len(found)] for n in range(count)]
    from tinydet.data.coco import read_pixels
    from tinydet.data.synthetic import builtin_dataset

    dataset = builtin_dataset("val")
    paths = []
    for n in range(count):
        pixels = read_pixels(dataset, n % len(dataset.images))[:512, :640]
        paths.append(work / f"{n:05d}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return paths


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def row_text(row: dict[str, Any]) -> str:
    speeds = ", ".join(
        f"{way} {row[f'{way}_images_per_second']['median']:.2f} images/s" for way in ("alone", "pooled", "model")
    )
    return f"{row['backend']}: {speeds}; pooled is {row['speedup']['median']:.2f} times as fast"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of JPEG or PNG files of at most a tile")
    add("--count", type=int, default=100, help="images per round (default: 100)")
    add("--rounds", type=int, default=2, help="(default: 2)")
    add("--threads", type=int, default=2, help="of the backend (default: 2)")
    add("--backends", nargs="+", default=["openvino", "onnx-cpu"], help="(default: openvino onnx-cpu)")
    add("--before", type=Path, metavar="DIR", help="another checkout, whose command is timed as well")
    add("--output", type=Path, metavar="FILE", help="write the result as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
