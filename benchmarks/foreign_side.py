"""Run the detector of `foreign_detector.py` on one scene with one tool, in a process of its own; for `versus.py`.

Writes boxes, scores and labels, seconds of CPU and wall time, and the memory that the scan added.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_detector import CLASSES, load_detector
from other_tools import Boxes

from tinydet._internal.arguments import positive_int
from tinydet._internal.command import command
from tinydet.runtime import load

TOOLS = ("tinydet", "SAHI, default merge", "SAHI, NMS on IoU")
OVERLAP = 0.2  # of the tile, the default of SAHI


@command("benchmarks/foreign_side.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", type=Path, metavar="FILE", help="checkpoint of foreign_detector.py")
    parser.add_argument("scene", type=Path, metavar="IMAGE", help="image to scan")
    parser.add_argument("output", type=Path, metavar="NPZ", help="result")
    parser.add_argument("--tool", choices=TOOLS, default=TOOLS[0], help=f"tool (default: {TOOLS[0]})")
    parser.add_argument("--tile", type=positive_int, default=320, help="side of the tiles in pixels (default: 320)")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score (default: 0.3)")
    parser.add_argument("--rounds", type=positive_int, default=1, help="number of scans (default: 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    network = load_detector(args.detector)
    detect = (ours if args.tool == TOOLS[0] else sahi)(network, args)
    network([torch.zeros(3, args.tile, args.tile)])  # warms up
    before, seconds, cpu = reset_peak(), [], []
    for _ in range(args.rounds):
        wall, busy = time.perf_counter(), time.process_time()
        boxes, scores, labels = detect()
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - busy)
    memory = (_status("VmHWM") - before) / 1024
    np.savez(args.output, boxes=boxes, scores=scores, labels=labels, seconds=seconds, cpu=cpu, memory=memory)
    return 0


def ours(network: torch.nn.Module, args: argparse.Namespace) -> Callable[[], Boxes]:
    @torch.inference_mode()
    def boxes_of(tiles: np.ndarray) -> Any:
        return network(list(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255))

    overlap = round(OVERLAP * args.tile)
    model = load(boxes_of, classes=CLASSES, tile=args.tile, overlap=overlap, score=args.score, batch=1)

    def detect() -> Boxes:
        found = model.detect(args.scene)
        return found.boxes, found.scores, found.labels

    return detect


def sahi(network: torch.nn.Module, args: argparse.Namespace) -> Callable[[], Boxes]:
    """`get_sliced_prediction` without the extra prediction on the whole scene.

    Raises:
        ImportError: SAHI is not installed.
    """
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    categories = {str(label): name for label, name in enumerate(CLASSES)}
    model = AutoDetectionModel.from_pretrained(
        "torchvision", model=network, category_mapping=categories, confidence_threshold=args.score, device="cpu"
    )
    merge = {} if args.tool == TOOLS[1] else {"postprocess_type": "NMS", "postprocess_match_metric": "IOU"}

    def detect() -> Boxes:
        sides, ratios = (args.tile, args.tile), (OVERLAP, OVERLAP)
        found = get_sliced_prediction(
            str(args.scene), model, *sides, *ratios, perform_standard_pred=False, verbose=0, **merge
        ).object_prediction_list
        boxes = np.array([one.bbox.to_xyxy() for one in found], np.float32).reshape(-1, 4)
        return boxes, np.array([one.score.value for one in found]), np.array([one.category.id for one in found], int)

    return detect


def reset_peak() -> int:
    """Reset the peak of the memory of this process (Linux); return the memory in use, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert match
    return int(match[1])


if __name__ == "__main__":
    sys.exit(main())
