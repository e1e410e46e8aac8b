"""How fast a million boxes are suppressed: `tinydet.geometry.nms` by itself, and against torchvision's NMS.

    python benchmarks/suppress.py

Boxes of 8 to 24 pixels on 50 000 x 50 000, each object found three times with a jitter of half a pixel. Everything runs
on one core and takes turns; the figures are seconds of processor time, which a busy machine spoils less. torchvision,
where it is installed, compares all pairs: it is given as many boxes as --reference says, and both must keep the same.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch read it

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

from tinydet._internal.atomic import write_json
from tinydet.geometry.nms import suppress

IOU = 0.5
VIEWS = 3


def main() -> int:
    args = arguments()
    counts = [args.boxes // 100, args.boxes // 10, args.boxes]
    rows = [measured(n, args.repeats, args.reference) for n in counts]
    result = {"command": "python benchmarks/suppress.py", **environment(), "repeats": args.repeats, "runs": rows}
    print("| boxes | kept | seconds | µs a box | torchvision, seconds |\n| --: | --: | --: | --: | --: |")
    for row in rows:
        reference = row.get("torchvision_cpu_seconds", {}).get("median", "")
        cells = row["boxes"], row["kept"], row["cpu_seconds"]["median"], row["microseconds_per_box"], reference
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else f"{cell}" for cell in cells) + " |")
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def measured(count: int, repeats: int, reference: int) -> dict[str, Any]:
    boxes, scores = crowd(count)
    forms: dict[str, Callable[[], Any]] = {"ours": lambda: suppress(boxes, scores, IOU)}
    if count <= reference and (theirs := torchvision_nms(boxes, scores)) is not None:
        forms["torchvision"] = theirs
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    kept: dict[str, Any] = {}
    for turn in range(repeats + 1):  # the first warms up
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
            raise AssertionError(f"{count} boxes: torchvision keeps others")
        row["torchvision_cpu_seconds"] = spread(seconds["torchvision"])
    return row


def crowd(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes at the density of a million on 50 000 x 50 000."""
    rng = np.random.default_rng(0)
    objects, extent = count // VIEWS, 50_000 * (count / 1e6) ** 0.5
    centre, side = rng.uniform(0, extent, (objects, 2)), rng.uniform(8, 24, (objects, 2))
    boxes = np.repeat(np.concatenate([centre - side / 2, centre + side / 2], axis=1), VIEWS, axis=0)
    boxes += rng.normal(0, 0.5, boxes.shape)
    return boxes.astype(np.float32), rng.uniform(0, 1, len(boxes)).astype(np.float32)


def torchvision_nms(boxes: np.ndarray, scores: np.ndarray) -> Callable[[], np.ndarray] | None:
    try:
        import torch
        from torchvision.ops import nms
    except ImportError:
        print("torchvision is not installed: only ours is measured")
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--boxes", type=int, default=1_000_000, help="the largest run; a tenth and a hundredth before (default 1000000)"
    )
    add("--repeats", type=int, default=3, help="runs of each that are kept (default 3)")
    add("--reference", type=int, default=10_000, help="most boxes that torchvision is given (default 10000)")
    add("--quick", dest="boxes", action="store_const", const=100_000, help="the same as --boxes 100000")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "suppress.json",
        help="JSON file (default benchmarks/results/suppress.json)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
