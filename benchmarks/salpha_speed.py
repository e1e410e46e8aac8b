"""Assign objects to pyramid levels: the closed form of `tinydet.salpha` against the dense IoU matrix.

    python benchmarks/salpha_speed.py --data DIR

DIR holds COCO annotation files. The dense form is torchvision's `box_iou` over all anchors and its arg-max, on a sample
of each file, with the anchors made beforehand; the closed form counts the whole file. Both run on one core and take
turns; the figures are seconds of processor time, which a busy machine spoils less. The JSON is read beforehand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import ROOT, environment
from torchvision.ops import box_iou

from tinydet._internal.atomic import write_json
from tinydet.data.coco import Dataset, load_dataset
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.registry import DETECTORS, anchors_of
from tinydet.salpha.counting import count_levels
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.parity import best_anchors, count_distinct_anchors

DENSE_BYTES = 1 << 26  # of one IoU matrix; the dense form works through an image's boxes in steps of this size


def main() -> int:
    args = arguments()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"command": "python benchmarks/salpha_speed.py", **environment(), "repeats": args.repeats}
    result["random"] = [
        {"boxes_per_image": n, "detector": name, **random_boxes(design, n, args)}
        for name, design in designs().items()
        for n in (20, 100)
    ]
    files = sorted(args.data.glob("*.json*")) if args.data.is_dir() else []
    if files:
        result["files"] = [row for file in files for row in real_file(file, args)]
    else:
        result["files"] = []
        result["skipped"] = "no annotation files; name a folder of COCO files with --data"
        print(f"no annotation files in {args.data}: only random boxes are measured")
    write_json(args.output, result)
    print(table(result), f"\nwrote {args.output}")
    return 0


def designs() -> dict[str, AnchorDesign]:
    """The anchors of every detector that has some."""
    return {name: anchors_of(name).design() for name, info in DETECTORS.items() if info.anchors is not None}


def random_boxes(design: AnchorDesign, per_image: int, args: argparse.Namespace) -> dict[str, Any]:
    """Log-normal boxes like TinyPerson's (median 13 pixels) on 640 x 512."""
    rng = np.random.default_rng(0)
    sides, centres = np.exp(rng.normal(np.log(13), 0.8, (args.random, 2))), rng.uniform(0, 1, (args.random, 2))
    centres *= (640, 512)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    index = np.arange(args.random) // per_image
    sizes = np.full((index[-1] + 1, 2), (640, 512))
    return compare(boxes, sizes, index, design, args)


def real_file(file: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each detector."""
    start = time.perf_counter()
    dataset = load_dataset(file)
    read = time.perf_counter() - start
    objects, sizes = dataset.objects, np.array([(image.width, image.height) for image in dataset.images])
    for name, design in designs().items():
        print(f"{file.name} {name}", flush=True)
        yield {
            "file": file.name,
            "detector": name,
            "read_seconds": round(read, 3),
            **compare(dataset.boxes[objects], sizes, dataset.image_index[objects], design, args),
            "end_to_end": end_to_end(dataset, design, args),
        }


def compare(
    boxes: np.ndarray, sizes: np.ndarray, index: np.ndarray, design: AnchorDesign, args: argparse.Namespace
) -> dict[str, Any]:
    """Both forms in turns, and whether they agree."""
    sample = Sample(boxes, sizes, index, design, args.dense)
    seconds = in_turns(
        {
            "gt": lambda: count_levels(boxes, sizes, design, image_index=index),
            "anchor": lambda: count_distinct_anchors(boxes, sizes, design, image_index=index),
            "dense": sample.dense,
        },
        args.repeats,
    )
    sample_of = {"gt": len(boxes), "anchor": len(boxes), "dense": sample.boxes}
    forms = {form: {"boxes": n, **spread(seconds[form], n)} for form, n in sample_of.items()}
    return {
        "images": len(sizes),
        "counts": count_levels(boxes, sizes, design, image_index=index),
        **forms,
        "times_faster": round(forms["gt"]["boxes_per_second"] / forms["dense"]["boxes_per_second"]),
        "differing_anchors": sample.differing(),
    }


def end_to_end(dataset: Dataset, design: AnchorDesign, args: argparse.Namespace) -> dict[str, Any]:
    """From the data set in memory to alpha, on whole images and on tiles."""
    ways = {"whole_images": {}, "tiles_of_640": {"tile": 640, "overlap": 128}}
    runs = {name: lambda how=how: statistics_of(dataset, design, **how) for name, how in ways.items()}
    seconds = in_turns(runs, args.repeats)
    return {name: spread(times, int(dataset.objects.sum())) for name, times in seconds.items()}


class Sample:
    """Some boxes of some images, spread over a data set, for the dense form."""

    def __init__(
        self, boxes: np.ndarray, sizes: np.ndarray, index: np.ndarray, design: AnchorDesign, limit: int
    ) -> None:
        self.design = design
        self.images: list[tuple[tuple[int, int], np.ndarray, torch.Tensor, torch.Tensor]] = []
        self.boxes = 0
        anchors: dict[tuple[int, int], torch.Tensor] = {}
        used = np.unique(index)
        for image in used[np.linspace(0, len(used) - 1, min(len(used), 40)).astype(int)]:
            of_image = boxes[index == image][: max(1, limit // 5)].astype(np.float32)
            width, height = (int(side) for side in sizes[image])
            if (width, height) not in anchors:
                anchors[width, height] = torch.from_numpy(np.concatenate(design.grid_anchors(height, width)))
            self.images.append(((width, height), of_image, torch.from_numpy(of_image), anchors[width, height]))
            self.boxes += len(of_image)
            if self.boxes >= limit:
                break

    def dense(self) -> list[np.ndarray]:
        """The best anchor of every box, image by image."""
        best = []
        for _, _, boxes, anchors in self.images:
            step = max(1, DENSE_BYTES // (4 * len(anchors)))
            best.append(
                np.concatenate([box_iou(part, anchors).max(dim=1).indices.numpy() for part in boxes.split(step)])
            )
        return best

    def differing(self) -> int:
        """How many boxes the closed form gives another anchor."""
        closed = (best_anchors(boxes, size, self.design).anchor for size, boxes, _, _ in self.images)
        return int(sum((ours != theirs).sum() for ours, theirs in zip(closed, self.dense(), strict=True)))


def in_turns(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time of each run; the first round warms up and is not kept."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(repeats + 1):
        for form, run in forms.items():
            start = time.process_time()
            run()
            if turn:
                seconds[form].append(time.process_time() - start)
    return seconds


def spread(seconds: list[float], boxes: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    times = {"median": round(median, 5), "least": round(min(seconds), 5), "most": round(max(seconds), 5)}
    return {"cpu_seconds": times, "boxes_per_second": round(boxes / median)}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| boxes | detector | images | objects | closed, by objects | by distinct anchors | dense | times | differ |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in result["random"] + result["files"]:
        name = row.get("file", f"random, {row.get('boxes_per_image')} an image")
        speeds = " | ".join(f"{row[form]['boxes_per_second']:,}/s" for form in ("gt", "anchor", "dense"))
        what = f"{name} | {row['detector']} | {row['images']:,} | {row['gt']['boxes']:,}"
        lines.append(f"| {what} | {speeds} | {row['times_faster']:,} | {row['differing_anchors']} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "annotations",
                        help="folder of COCO annotation files (default ../shared/data/annotations)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "salpha_speed.json",
                        help="JSON file (default benchmarks/results/salpha_speed.json)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="runs of each form that are kept (default 3)")
    parser.add_argument("--dense", type=int, default=10, help="boxes of a file for the dense form (default 10)")
    parser.add_argument("--random", type=int, default=100_000, help="random boxes for the closed form (default 100000)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
