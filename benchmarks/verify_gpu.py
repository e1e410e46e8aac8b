"""Verify a TensorRT engine on its GPU against ONNX Runtime, and measure its latency.

    python benchmarks/verify_gpu.py model.engine --data val              # a COCO folder: detections and AP
    python benchmarks/verify_gpu.py model.engine --images a.jpg b.jpg    # detections only

The reference is the ONNX file next to the engine, run by ONNX Runtime on the CPU. The comparison is that of `tinydet
export verify`. The engine is then timed on tiles of the same images, for each of --batches: it warms up until the
median settles, then runs 200 times or for 10 seconds. Measured are

    run       from pixels in memory to boxes in memory, on the host's clock, as in a scan: with copies and as one CUDA
              graph (TensorRT-RTX captures its own)
    copy in, execute, copy out      between CUDA events, without a graph

Clocks, temperature and reasons for throttling are read from nvidia-smi before and after each. Fix the clocks first
(`sudo nvidia-smi -lgc 1500,1500`); otherwise they change while the GPU warms up.

Needs an NVIDIA GPU and tinydet[tensorrt] or tinydet[rtx]. Takes less than a minute per batch size, plus the comparison,
which runs all images on the CPU. Exit codes: 0 the detections agree, 1 they differ, 2 the engine could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from numpy.typing import NDArray
from timing import RUNS, SECONDS, interleaved, summary, warm_up

from tinydet._internal.arguments import positive_float
from tinydet._internal.atomic import write_json
from tinydet.export.options import add_verification_options
from tinydet.export.verification_images import choose_images, own_data_of_report
from tinydet.export.verify import Verification, format_report, middle_tile, verify
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.tensorrt import TensorRTBackend

QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw",
         "clocks_throttle_reasons.active")  # fmt: skip
STAGES = ("copy in", "execute", "copy out")
# Bits of nvidia-smi's mask of throttle reasons (nvml.h) that affect the measurement.
SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal",
          0x80: "power brake"}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if not args.output.parent.is_dir():
            raise ValueError(f"{args.output.parent}: no such folder; choose another file with --output")
        engine = open_model(args.model, "tensorrt")
        assert isinstance(engine, TensorRTBackend)
        passed = check(args, engine)
    except (OSError, ValueError, ImportError) as error:
        print(f"verify_gpu.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0 if passed else 1


def check(args: argparse.Namespace, engine: TensorRTBackend) -> bool:
    """Compare an open engine with its ONNX file, time it and write the result; return whether the detections agree."""
    sizes = [size for size in args.batches if size <= engine.spec.max_batch]
    if not sizes:
        raise ValueError(f"{args.model} takes at most {engine.spec.max_batch} tiles; choose smaller --batches")
    reference = open_model(args.reference or args.model.with_suffix(".onnx"), "onnx-cpu", tile=engine.spec.tile)
    own = own_data_of_report(args.model)
    chosen = choose_images(engine.spec.classes, args.images, args.data, own, limit=args.limit)
    if skipped := sorted({*args.batches} - {*sizes}):
        print(f"batches of {', '.join(map(str, skipped))} are skipped: the engine takes {engine.spec.max_batch} tiles")
    verification = verify(reference, engine, chosen.images, chosen.dataset, limit=args.limit, max_drop=args.max_drop)
    print(format_report(verification), "\n")
    tiles = np.stack([middle_tile(path, engine.spec) for path in chosen.images[: max(sizes)]])
    timed = {size: measure(engine, repeated(tiles, size), seconds=args.seconds) for size in sizes}
    write_json(args.output, describe(args, engine, verification, timed))
    print(table(timed), f"\nwrote {args.output}")
    return verification.passed


def measure(
    engine: TensorRTBackend,
    tiles: NDArray[np.uint8],
    *,
    runs: int = RUNS,
    seconds: float = SECONDS,
    ask: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Time one batch size: the run on the host's clock, the stages by CUDA events; read the clocks before and after."""
    ask = ask or clocks
    warm = warm_up(lambda: engine.run(tiles), seconds=3 * seconds)
    before = ask()
    (times_of_run,) = interleaved({"run": lambda: engine.run(tiles)}, runs=runs, seconds=seconds).values()
    after = ask()
    stages = [engine.stage_times(tiles) for _ in range(min(runs, len(times_of_run)))]
    times = {"run": summary(times_of_run)} | {name: summary([stage[name] for stage in stages]) for name in STAGES}
    median = times["run"]["median"]
    assert isinstance(median, float)
    return {
        "milliseconds": times,
        "tiles_per_second": round(len(tiles) / median * 1e3, 1),
        "warm_up_runs": warm,
        "clocks": {"before": before, "after": after},
    }


def clocks() -> dict[str, Any]:
    """Query nvidia-smi for the first GPU; an empty dict if that fails."""
    words = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_clocks(done.stdout) if done.returncode == 0 else {}


def parse_clocks(text: str) -> dict[str, Any]:
    """Parse a line of nvidia-smi's CSV; the mask of throttle reasons becomes a list of words.

    >>> parse_clocks("NVIDIA L4, 570.1, 1500, 6251, 2040, 51, 43.1, 0x0000000000000024\\n")["slowed_by"]
    ['power cap', 'software thermal']
    """
    values = [value.strip() for value in text.strip().split(",")]
    if len(values) != len(QUERY):
        return {}
    found: dict[str, Any] = dict(zip(QUERY, values, strict=True))
    mask = found.pop("clocks_throttle_reasons.active")
    found["slowed_by"] = slowed_by(int(mask, 16)) if mask.startswith("0x") else mask
    return found


def slowed_by(mask: int) -> list[str]:
    return [reason for bit, reason in SLOWED.items() if mask & bit]


def repeated(tiles: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return `size` tiles, repeating them if there are fewer."""
    return np.ascontiguousarray(tiles[np.arange(size) % len(tiles)])


def describe(
    args: argparse.Namespace, engine: TensorRTBackend, verification: Verification, timed: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Return the result file: environment, model with its hash, verification and times."""
    return {
        "command": "python benchmarks/verify_gpu.py",
        **environment(),
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "runs": engine.name,
        "precision": engine.spec.precision,
        "tile": engine.spec.tile,
        "passed": verification.passed,
        "verification": asdict(verification),
        "batches": {str(size): found for size, found in timed.items()},
    }


def table(timed: dict[int, dict[str, Any]]) -> str:
    """Format the times as Markdown: medians, and percentiles of the run."""
    lines = [
        "| batch | run, ms | p95 | p99 | copy in | execute | copy out | tiles/s | throttled by |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for size, found in timed.items():
        times = found["milliseconds"]
        run = times["run"]
        after = found["clocks"]["after"]
        reasons = after.get("slowed_by", "unknown")
        cells = [f"{run[name]:.3f}" for name in ("median", "p95", "p99")]
        cells += [f"{times[stage]['median']:.3f}" for stage in STAGES]
        throttled = reasons if isinstance(reasons, str) else ", ".join(reasons) or "nothing"
        lines.append(f"| {size} | {' | '.join(cells)} | {found['tiles_per_second']:.1f} | {throttled} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="model.engine", help="TensorRT or TensorRT-RTX engine, with model.json next to it")
    add("--reference", type=Path, metavar="model.onnx", help="ONNX file of the engine (default: model.onnx next to it)")
    add_verification_options(parser)
    add("--batches", type=batches, default=(1, 8, 16), metavar="A,B,C", help="batch sizes to time (default: 1,8,16)")
    add(
        "--seconds", type=positive_float, default=SECONDS, help=f"longest timing of a batch size (default: {SECONDS:g})"
    )
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "verify_gpu.json", metavar="FILE",
        help="result file (default: benchmarks/results/verify_gpu.json)")  # fmt: skip
    return parser.parse_args(argv)


def batches(text: str) -> tuple[int, ...]:
    """Parse batch sizes separated by commas; return them in ascending order."""
    sizes = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(sizes) != text.count(",") + 1 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected batch sizes from 1 up, such as 1,8,16; got {text!r}")
    return tuple(sorted(set(sizes)))


if __name__ == "__main__":
    sys.exit(main())
