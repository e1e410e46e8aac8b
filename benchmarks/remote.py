"""Compare a model in this process with the same model on servers: throughput, and CPU time of the client.

    tinydet export triton thermal --repository models --threads 2 && tritonserver --model-repository=models
    python benchmarks/remote.py http://127.0.0.1:8000/v2/models/tinydet --model thermal

All take turns on the same scene of noise, and must find the same boxes. Throughput depends on the server's machine;
with a server on this machine, it shows the cost of the network protocol. The CPU time of this process shows what the
client still has to do when the model runs elsewhere.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # NumPy reads it when it is imported

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

from tinydet._internal.arguments import batch_size, positive_int, threads
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.runtime import Model, load
from tinydet.runtime.backends import backend_name


@command("benchmarks/remote.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    side = args.side
    scene = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    options: dict[str, Any] = {"overlap": 0, "batch": args.batch, "score": 0.05}
    models = {"here": load(args.model, backend=args.here, threads=args.threads, **options)}
    models |= {url: load(backend=url, threads=args.in_flight, **options) for url in args.servers}
    rows = measure(models, scene, args.rounds)
    print("| side | tiles/s, median (lowest to highest) | CPU of this process, ms per tile |\n| --- | --: | --: |")
    for row in rows:
        rate, cpu = row["tiles_per_second"], row["client_cpu_ms_per_tile"]
        print(f"| {row['side']} | {rate['median']} ({rate['lowest']} to {rate['highest']}) | {cpu['median']} |")
    result = {"command": "python benchmarks/remote.py", **environment(), "scene": side, "batch": args.batch}
    write_json(args.output, {**result, "in_flight": args.in_flight or 4, "runs": rows})
    print(f"wrote {args.output}")
    return 0


def measure(models: dict[str, Model], scene: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Scan the scene in turns.

    Raises:
        ValueError: a side finds other boxes than the first one.
    """
    rates: dict[str, list[float]] = {name: [] for name in models}
    costs: dict[str, list[float]] = {name: [] for name in models}
    boxes: dict[str, np.ndarray] = {}
    tiles = 0
    for turn in range(rounds + 1):  # the first turn warms up
        for name, model in models.items():
            start, cpu = time.perf_counter(), time.process_time()
            found = model.detect(scene)
            seconds, used, tiles = time.perf_counter() - start, time.process_time() - cpu, found.result.tiles
            boxes[name] = found.boxes
            if turn:
                rates[name].append(tiles / seconds)
                costs[name].append(1000 * used / tiles)
    for name, array in boxes.items():
        if not np.array_equal(array, boxes["here"]):
            raise ValueError(f"{name} finds other boxes than the model in this process")
    return [
        {
            "side": name,
            "server": "" if name == "here" else models[name].backend.name,
            "tiles": tiles,
            "boxes": len(boxes[name]),
            "tiles_per_second": spread(rates[name]),
            "client_cpu_ms_per_tile": spread(costs[name]),
        }
        for name in models
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "lowest": round(min(values), 2),
        "highest": round(max(values), 2),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("servers", nargs="+", type=backend_name, metavar="URL", help="addresses of the served model")
    parser.add_argument("--model", default="thermal", metavar="FILE", help="the same model here (default: thermal)")
    parser.add_argument("--here", default="onnx-cpu", metavar="NAME", help="backend here (default: onnx-cpu)")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads here (default: all)")
    parser.add_argument("--in-flight", type=threads, metavar="N", help="requests at a time (default: 4)")
    parser.add_argument("--batch", type=batch_size, default=4, metavar="N", help="tiles per request (default: 4)")
    parser.add_argument(
        "--side", type=positive_int, default=6400, metavar="PX", help="side of the scene (default: 6400)"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="measured rounds, after a warm-up (default: 5)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "remote.json", metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
