"""Compare a model for any tile with files of fixed size: time per tile, file size, outputs and memory.

    python benchmarks/any_tile.py --model model.pth --tiles 320 640 1024

The detector is exported once for any tile and once for each tile with a graph of fixed size, whose anchors are
constants. Both are opened for the tile and run in turns on the same random tiles, in every backend for CPUs. The time
is CPU time, which other processes hardly affect. The peak memory of a new process that runs a batch is measured for
each tile, and the bytes per pixel that follow from it. Written to benchmarks/results/any_tile.json.
"""

from __future__ import annotations

import argparse
import resource
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        free = export(args.model, None, Path(folder) / "free.onnx")
        for tile in args.tiles:
            fixed = export(args.model, tile, Path(folder) / f"{tile}.onnx")
            rows += [compare(free, fixed, tile, backend, args) for backend in args.backends]
            rows[-1]["memory"] = memory(free, tile, args.backends[-1])
            print(*(format_row(row) for row in rows[-len(args.backends) :]), sep="\n", flush=True)
    write_json(args.output, {"command": "python benchmarks/any_tile.py", **environment(), "batch": 1,
                             "model": str(args.model.name), "rows": rows})  # fmt: skip
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


def memory(model: Path, tile: int, backend: str) -> dict[str, float]:
    """Return the peak memory of a process that runs one small tile, and of one that runs a batch of tiles."""
    peaks = []
    for of in ((64, 1), (tile, BATCH)):
        done = subprocess.run([sys.executable, __file__, "--model", model, "--backends", backend, "--measure-memory",
                               *map(str, of)], capture_output=True, text=True, check=True)  # fmt: skip
        peaks.append(int(done.stdout))
    return {"bytes": peaks[1], "bytes_per_pixel": round((peaks[1] - peaks[0]) / (BATCH * tile**2), 1)}


def print_peak_memory(model: Path, backend: str, tile: int, batch: int) -> int:
    opened = open_model(model, backend, tile=tile, threads=1)
    opened.run(np.zeros((batch, tile, tile, 3), np.uint8))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
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
    add("--model", type=Path, default=model_path(DEFAULT, ".pth"), metavar="FILE",
        help="checkpoint (default: the bundled one)")  # fmt: skip
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
