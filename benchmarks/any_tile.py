"""Compare a model for any tile with files of fixed size: time per tile, file size, outputs and memory.

    git show 56f6ff0:tinydet/bundled/thermal.onnx > thermal-640.onnx    # of a version with anchors in the file
    python benchmarks/any_tile.py --model thermal.onnx --fixed thermal-640.onnx
    python benchmarks/any_tile.py --model model.pth --tiles 320 640 1024

Without --fixed, a checkpoint is exported once for any tile and once for each of --tiles with a graph of fixed size.
Both files are opened for the tile and run in turns on the same random tiles, in every backend for CPUs. The time is CPU
time, which other processes hardly affect. The peak memory of a new process that runs a batch is measured for
each tile, and the bytes per pixel that follow from it. Written to benchmarks/results/any_tile.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from timing import interleaved, summary, warm_up

from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.export.parity import compare as compare_outputs
from tinydet.runtime.backends import open_model
from tinydet.runtime.bundled import DEFAULT, model_path

BATCH = 4  # of the measurement of memory


@command("benchmarks/any_tile.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.measure_memory is not None:
        return print_peak_memory(args.model, args.backends[0], *args.measure_memory)
    rows: list[dict[str, Any]] = []

    def add(free: Path, fixed: Path, tile: int) -> None:
        for backend in args.backends:
            rows.append(compare(free, fixed, tile, backend, args))
            print(format_row(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        if args.fixed is not None:
            free = model_path(args.model)
            add(free, args.fixed, open_model(args.fixed, args.backends[0]).spec.tile)
        else:
            free = export(model_path(args.model, ".pth"), None, Path(folder) / "free.onnx")
            for tile in args.tiles:
                add(free, export(model_path(args.model, ".pth"), tile, Path(folder) / f"{tile}.onnx"), tile)
        memory = {tile: peak_memory(free, tile, args.backends[-1]) for tile in args.tiles}
        print(f"bytes of memory for batches of {BATCH}: {memory}")
    write_json(args.output, {"command": "python benchmarks/any_tile.py", **environment(), "batch": 1,
                             "model": str(args.model.name), "rows": rows, "memory": memory})  # fmt: skip
    print(f"wrote {args.output}")
    return 0


def export(checkpoint: Path, tile: int | None, path: Path) -> Path:
    """Export a detector for one tile, or for any; return the path."""
    import torch

    from tinydet.export.onnx_file import trace, trace_for_any_tile
    from tinydet.models.checkpoint import load_checkpoint
    from tinydet.models.graphs.inference import InferenceGraph
    from tinydet.runtime.backends import output_shapes
    from tinydet.spec import METADATA_KEY

    loaded = load_checkpoint(checkpoint)
    spec = loaded.spec(tile=tile)
    graph = InferenceGraph(loaded.build(), spec)
    if tile is None:
        model, spec = trace_for_any_tile(graph, spec)
    else:
        images = torch.zeros((2, tile, tile, 3), dtype=torch.uint8)
        model = trace(graph, (images,), ("images",), tuple(output_shapes(spec)))
    model.metadata_props.add(key=METADATA_KEY, value=replace(spec, precision="fp32").to_json())
    path.write_bytes(model.SerializeToString())
    return path


def compare(free: Path, fixed: Path, tile: int, backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time both files in turns on one tile."""
    opened = {"free": open_model(free, backend, tile=tile, threads=1), "fixed": open_model(fixed, backend, threads=1)}
    tiles = np.random.default_rng(0).integers(0, 256, (1, tile, tile, 3), dtype=np.uint8)
    outputs = [model.run(tiles) for model in opened.values()]
    found = compare_outputs(outputs[1], outputs[0], opened["free"].spec.score_floor)
    agreement = {"detections": found.detections, "unmatched": found.unmatched, "score": found.score_difference,
                 "box_px": found.box_difference}  # fmt: skip
    sides = {name: lambda model=model: model.run(tiles) for name, model in opened.items()}
    for side in sides.values():
        warm_up(side, seconds=args.warm_up)
    times = interleaved(sides, runs=args.runs, seconds=args.seconds, clock=time.process_time_ns)
    sizes = {name: {"bytes": path.stat().st_size, "cpu_ms": summary(times[name])}
             for name, path in (("free", free), ("fixed", fixed))}  # fmt: skip
    return {"tile": tile, "backend": opened["free"].name, "agreement": agreement, **sizes}


def peak_memory(model: Path, tile: int, backend: str) -> dict[str, float]:
    """Return the peak memory of a process that runs a batch of tiles, and the part of each pixel.

    The latter is what exceeds the peak of a process that runs one small tile.
    """
    peaks = []
    for of in ((64, 1), (tile, BATCH)):
        done = subprocess.run([sys.executable, __file__, "--model", model, "--backends", backend, "--measure-memory",
                               *map(str, of)], capture_output=True, text=True, check=True)  # fmt: skip
        peaks.append(int(done.stdout))
    return {"bytes": peaks[1], "bytes_per_pixel": round((peaks[1] - peaks[0]) / (BATCH * tile**2), 1)}


def print_peak_memory(model: Path, backend: str, tile: int, batch: int) -> int:
    opened = open_model(model, backend, tile=tile, threads=1)
    opened.run(np.zeros((batch, tile, tile, 3), np.uint8))
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) << 10)
    return 0


def format_row(row: dict[str, Any]) -> str:
    free, fixed = (row[name]["cpu_ms"] for name in ("free", "fixed"))
    return (
        f"tile {row['tile']:5} {row['backend'][:40]:40} free {free['median']:8.1f} ms (min {free['min']:.1f}), "
        f"fixed {fixed['median']:8.1f} ms (min {fixed['min']:.1f}); {row['free']['bytes'] / 1e6:.2f} and "
        f"{row['fixed']['bytes'] / 1e6:.2f} MB; {row['agreement']['unmatched']} of "
        f"{row['agreement']['detections']} detections unmatched"
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=Path(DEFAULT), metavar="FILE",
        help="checkpoint, or with --fixed an ONNX file (default: the bundled one)")  # fmt: skip
    add("--fixed", type=Path, metavar="FILE", help="compare an ONNX file --model with this one, of fixed size")
    add("--tiles", type=int, nargs="+", default=[320, 640, 1024], metavar="PX", help="tiles (default: 320 640 1024)")
    add("--backends", nargs="+", default=["onnx-cpu", "openvino"], help="backends (default: onnx-cpu openvino)")
    add("--warm-up", type=float, default=10, metavar="S", help="seconds of warm-up per file (default: 10)")
    add("--runs", type=int, default=60, metavar="N", help="timed runs of each file (default: 60)")
    add("--seconds", type=float, default=30, metavar="S", help="most seconds of timed runs of each file (default: 30)")
    add("--measure-memory", type=int, nargs=2, help=argparse.SUPPRESS)
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "any_tile.json", metavar="FILE",
        help="result file (default: benchmarks/results/any_tile.json)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
