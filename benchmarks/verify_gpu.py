"""Verify an engine on the GPU that it is for: the same detections as ONNX Runtime, and how long it takes.

    python benchmarks/verify_gpu.py model.engine --data val              # a COCO folder: detections and AP
    python benchmarks/verify_gpu.py model.engine --images a.jpg b.jpg    # detections only

The reference is the ONNX file beside the engine, run by ONNX Runtime on the CPU. The comparison is the gate that every
export passes (`tinydet export verify`). Then the engine is timed on tiles of the same pictures, for each of --batches:
warm-up until the median settles, then 200 runs or 10 seconds of

    run       from pixels in memory to boxes in memory, on the host's clock, as a scene is scanned: copies included,
              one CUDA graph (TensorRT-RTX captures its own)
    copy in, execute, copy out      between CUDA events, without a graph

Clocks, temperature and what slowed them are read from nvidia-smi before and after each. Fix the clocks first
(`sudo nvidia-smi -lgc 1500,1500`), or the figures are those of a GPU that warms up.

Exit code 0: the engine agrees. 1: it does not. 2: it could not be run, for a reason on one line.
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
from tinydet.data.coco import Dataset
from tinydet.export.options import add_verification_options
from tinydet.export.verification_images import verification_images
from tinydet.export.verify import Verification, format_report, middle_tile, verify
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.tensorrt import TensorRTBackend

QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw",
         "clocks_throttle_reasons.active")  # fmt: skip
STAGES = ("copy in", "execute", "copy out")
# What nvidia-smi's mask of reasons means (nvml.h); none of them leaves a figure as it would be.
SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal",
          0x80: "power brake"}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if not args.output.parent.is_dir():
            raise ValueError(f"{args.output.parent}: no such folder, for the result; name another with --output")
        engine = open_model(args.model, "tensorrt")
        assert isinstance(engine, TensorRTBackend)
        sizes = [size for size in args.batches if size <= engine.spec.max_batch]
        if not sizes:
            raise ValueError(f"{args.model} takes at most {engine.spec.max_batch} tiles; name smaller --batches")
        reference = open_model(args.reference or args.model.with_suffix(".onnx"), "onnx-cpu")
        images, dataset = pictures(args, engine.spec.classes)
        if left_out := sorted({*args.batches} - {*sizes}):
            print(f"left out: batches of {', '.join(map(str, left_out))}; it takes {engine.spec.max_batch} at most")
        verification = verify(reference, engine, images, dataset, limit=args.limit, max_drop=args.max_drop)
        print(format_report(verification), "\n")
        tiles = np.stack([middle_tile(path, engine.spec) for path in images[: max(sizes)]])
        timed = {size: measure(engine, repeated(tiles, size), seconds=args.seconds) for size in sizes}
        write_json(args.output, described(args, engine, verification, timed))
    except (OSError, ValueError, ImportError) as error:
        print(f"verify_gpu.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(timed), f"\nwrote {args.output}")
    return 0 if verification.passed else 1


def pictures(args: argparse.Namespace, classes: Sequence[str]) -> tuple[list[Path], Dataset | None]:
    if args.images:
        return args.images, None
    return verification_images(classes, args.data)


def measure(
    engine: TensorRTBackend,
    tiles: NDArray[np.uint8],
    *,
    runs: int = RUNS,
    seconds: float = SECONDS,
    ask: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One batch size: the whole on the host's clock, the stages by CUDA events, and the clocks around it."""
    ask = ask or clocks
    warm = warm_up(lambda: engine.run(tiles), seconds=3 * seconds)
    before = ask()
    (whole,) = interleaved({"run": lambda: engine.run(tiles)}, runs=runs, seconds=seconds).values()
    after = ask()
    stages = [engine.stage_times(tiles) for _ in range(min(runs, len(whole)))]
    times = {"run": summary(whole)} | {name: summary([stage[name] for stage in stages]) for name in STAGES}
    median = times["run"]["median"]
    assert isinstance(median, float)
    return {
        "milliseconds": times,
        "tiles_per_second": round(len(tiles) / median * 1e3, 1),
        "warm_up_runs": warm,
        "clocks": {"before": before, "after": after},
    }


def clocks() -> dict[str, Any]:
    """What nvidia-smi says of the first GPU; empty where it is not there or does not say."""
    words = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_clocks(done.stdout) if done.returncode == 0 else {}


def parse_clocks(text: str) -> dict[str, Any]:
    """A line of nvidia-smi's CSV, with the mask of reasons in words.

    >>> parse_clocks("NVIDIA L4, 570.1, 1500, 6251, 2040, 51, 43.1, 0x0000000000000024\\n")["slowed_by"]
    ['power cap', 'software thermal']
    """
    values = [value.strip() for value in text.strip().split(",")]
    if len(values) != len(QUERY):
        return {}
    told: dict[str, Any] = dict(zip(QUERY, values, strict=True))
    mask = told.pop("clocks_throttle_reasons.active")
    told["slowed_by"] = slowed_by(int(mask, 16)) if mask.startswith("0x") else mask
    return told


def slowed_by(mask: int) -> list[str]:
    return [reason for bit, reason in SLOWED.items() if mask & bit]


def repeated(tiles: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`size` tiles, from the beginning again where there are fewer."""
    return np.ascontiguousarray(tiles[np.arange(size) % len(tiles)])


def described(
    args: argparse.Namespace, engine: TensorRTBackend, verification: Verification, timed: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """What is measured and what is verified is one file: its hash says so."""
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
    """Markdown: medians in milliseconds, and how far the slowest lie."""
    lines = [
        "| batch | run, ms | p95 | p99 | copy in | execute | copy out | tiles/s | slowed by |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for size, found in timed.items():
        times = found["milliseconds"]
        whole = times["run"]
        after = found["clocks"]["after"]
        slowed = after.get("slowed_by", "unknown")
        cells = [f"{whole[name]:.3f}" for name in ("median", "p95", "p99")]
        cells += [f"{times[stage]['median']:.3f}" for stage in STAGES]
        said = slowed if isinstance(slowed, str) else ", ".join(slowed) or "nothing"
        lines.append(f"| {size} | {' | '.join(cells)} | {found['tiles_per_second']:.1f} | {said} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="model.engine", help="a TensorRT or TensorRT-RTX engine, model.json beside it")
    add("--reference", type=Path, metavar="model.onnx", help="its ONNX file (default: of the same name, beside it)")
    add_verification_options(parser)
    add("--batches", type=batches, default=(1, 8, 16), metavar="A,B,C", help="to time (default: 1,8,16)")
    add("--seconds", type=positive_float, default=SECONDS, help=f"of timing for each (default: {SECONDS:g})")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "verify_gpu.json", metavar="FILE",
        help="default: benchmarks/results/verify_gpu.json")  # fmt: skip
    return parser.parse_args(argv)


def batches(text: str) -> tuple[int, ...]:
    sizes = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(sizes) != text.count(",") + 1 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes from 1 such as 1,8,16, got {text!r}")
    return tuple(sorted(set(sizes)))


if __name__ == "__main__":
    sys.exit(main())
