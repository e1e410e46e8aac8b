"""Speed of NMS (`tinydet.geometry.nms`) with a million boxes, and of torchvision's with fewer.

    python benchmarks/suppress.py

Boxes of 8 to 24 pixels in a scene of 50 000 x 50 000; each object has three boxes with a jitter of half a pixel. The
implementations run in turns on one core, and CPU time is reported, which other load on the machine affects less than
wall time. torchvision compares all pairs of boxes, so it runs only with up to --reference boxes, if it is installed.
Both must keep the same boxes. Takes about ten seconds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # NumPy and torch read it when they are imported

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.geometry.nms import suppress

IOU = 0.5
COPIES = 3  # boxes of each object


@command("benchmarks/suppress.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    counts = [args.boxes // 100, args.boxes // 10, args.boxes]
    rows = [measure(n, args.repeats, args.reference) for n in counts]
    result = {"command": "python benchmarks/suppress.py", **environment(), "repeats": args.repeats, "runs": rows}
    print("| boxes | kept | CPU seconds | µs per box | torchvision, CPU seconds |\n| --: | --: | --: | --: | --: |")
    for row in rows:
        reference = row.get("torchvision_cpu_seconds", {}).get("median", "")
        cells = row["boxes"], row["kept"], row["cpu_seconds"]["median"], row["microseconds_per_box"], reference
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else f"{cell}" for cell in cells) + " |")
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def measure(count: int, repeats: int, reference: int) -> dict[str, Any]:
    """Time both implementations with `count` boxes.

    Raises:
        AssertionError: they keep different boxes.
    """
    boxes, scores = crowd(count)
    forms: dict[str, Callable[[], Any]] = {"ours": lambda: suppress(boxes, scores, IOU)}
    if count <= reference and (theirs := torchvision_nms(boxes, scores)) is not None:
        forms["torchvision"] = theirs
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    kept: dict[str, Any] = {}
    for turn in range(repeats + 1):  # the first turn warms up
        for form, run in forms.items():
            start = time.process_time()
            kept[form] = run()
            if turn:
                seconds[form].append(time.process_time() - start)
    row = {
        "boxes": len(boxes),
        "kept": len(kept["ours"]),
        "cpu_seconds": spread(seconds["ours"]),
        "microseconds_per_box": round(statistics.median(seconds["ours"]) / len(boxes) * 1e6, 2),
    }
    if "torchvision" in forms:
        if kept["ours"].tolist() != kept["torchvision"].tolist():
            raise AssertionError(f"with {count} boxes, torchvision keeps other boxes")
        row["torchvision_cpu_seconds"] = spread(seconds["torchvision"])
    return row


def crowd(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random boxes (N, 4) and scores (N,) with the density of a million boxes in 50 000 x 50 000 pixels."""
    rng = np.random.default_rng(0)
    objects, extent = count // COPIES, 50_000 * (count / 1e6) ** 0.5
    center, side = rng.uniform(0, extent, (objects, 2)), rng.uniform(8, 24, (objects, 2))
    boxes = np.repeat(np.concatenate([center - side / 2, center + side / 2], axis=1), COPIES, axis=0)
    boxes += rng.normal(0, 0.5, boxes.shape)
    return boxes.astype(np.float32), rng.uniform(0, 1, len(boxes)).astype(np.float32)


def torchvision_nms(boxes: np.ndarray, scores: np.ndarray) -> Callable[[], np.ndarray] | None:
    try:
        import torch
        from torchvision.ops import nms
    except ImportError:
        print("torchvision is skipped because it is not installed: pip install torchvision")
        return None
    torch.set_num_threads(1)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    return lambda: nms(*tensors, IOU).numpy()


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--boxes", type=positive_int, default=1_000_000,
        help="boxes of the largest run; a hundredth and a tenth run before (default: 1000000)")  # fmt: skip
    add("--repeats", type=positive_int, default=3, help="timed runs of each implementation (default: 3)")
    add("--reference", type=int, default=10_000, help="run torchvision with up to this many boxes (default: 10000)")
    add("--quick", dest="boxes", action="store_const", const=100_000, help="same as --boxes 100000")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "suppress.json",
        help="result file (default: benchmarks/results/suppress.json)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
