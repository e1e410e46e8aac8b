"""Speed of assigning objects to pyramid levels: the closed form of `tinydet.salpha` and the dense IoU matrix.

    python benchmarks/salpha_speed.py --data DIR

DIR contains COCO annotation files. The dense form is the argmax of torchvision's `box_iou` over all anchors, which are
created beforehand; it runs on a sample of each file, the closed form on the complete file. Both run in turns on one
core. CPU time is reported, which other load on the machine affects less than wall time; reading the files is not
included.

Takes about three minutes for the files of CONTRIBUTING.md, and a few seconds without files.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import ROOT, environment
from torchvision.ops import box_iou

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.data.coco import Dataset, load_dataset
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.registry import DETECTORS, anchors_of
from tinydet.salpha.counting import count_levels
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import anchor_counting
from tinydet.salpha.parity import best_anchors, count_distinct_anchors

DENSE_BYTES = 1 << 26  # largest IoU matrix; the dense form divides the boxes of an image into parts


@command("benchmarks/salpha_speed.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
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
        result["skipped"] = "no annotation files; choose a folder of COCO files with --data"
        print(f"{args.data} has no annotation files; only random boxes are measured")
    write_json(args.output, result)
    print(table(result), f"\nwrote {args.output}")
    return 0


def designs() -> dict[str, AnchorDesign]:
    """Return the anchors of every detector that has anchors."""
    return {name: anchors_of(name).design() for name, info in DETECTORS.items() if info.anchors is not None}


def random_boxes(design: AnchorDesign, per_image: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure log-normal boxes like those of TinyPerson (median 13 pixels) in images of 640 x 512."""
    rng = np.random.default_rng(0)
    sides, centers = np.exp(rng.normal(np.log(13), 0.8, (args.random, 2))), rng.uniform(0, 1, (args.random, 2))
    centers *= (640, 512)
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    index = np.arange(args.random) // per_image
    sizes = np.full((index[-1] + 1, 2), (640, 512))
    return compare(boxes, sizes, index, design, args)


def real_file(file: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one file; yield a row for each detector."""
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
    """Time both forms in turns and count the boxes for which they differ."""
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
    """Time S-alpha from the dataset in memory to the factors, on whole images and on tiles."""
    ways = {"whole_images": {}, "tiles_of_640": {"tile": 640, "overlap": 128}}
    runs = {name: lambda how=how: statistics_of(dataset, anchor_counting(design), **how) for name, how in ways.items()}
    seconds = in_turns(runs, args.repeats)
    return {name: spread(times, int(dataset.objects.sum())) for name, times in seconds.items()}


class Sample:
    """A sample of boxes from images spread over a dataset, for the dense form."""

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
        """Return the index of the best anchor of every box, image by image."""
        best = []
        for _, _, boxes, anchors in self.images:
            step = max(1, DENSE_BYTES // (4 * len(anchors)))
            best.append(
                np.concatenate([box_iou(part, anchors).max(dim=1).indices.numpy() for part in boxes.split(step)])
            )
        return best

    def differing(self) -> int:
        """Count the boxes to which the closed form assigns another anchor."""
        closed = (best_anchors(boxes, size, self.design).anchor for size, boxes, _, _ in self.images)
        return int(sum((ours != theirs).sum() for ours, theirs in zip(closed, self.dense(), strict=True)))


def in_turns(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each run; the first round warms up and is not counted."""
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
        "| boxes | detector | images | objects | closed form | distinct anchors | dense form | speedup | different |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in result["random"] + result["files"]:
        name = row.get("file", f"random, {row.get('boxes_per_image')} per image")
        speeds = " | ".join(f"{row[form]['boxes_per_second']:,}/s" for form in ("gt", "anchor", "dense"))
        what = f"{name} | {row['detector']} | {row['images']:,} | {row['gt']['boxes']:,}"
        lines.append(f"| {what} | {speeds} | {row['times_faster']:,} | {row['differing_anchors']} |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "annotations",
                        help="folder of COCO annotation files (default: ../shared/data/annotations)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "salpha_speed.json",
                        help="result file (default: benchmarks/results/salpha_speed.json)")  # fmt: skip
    parser.add_argument("--repeats", type=positive_int, default=3, help="timed runs of each form (default: 3)")
    parser.add_argument(
        "--dense", type=positive_int, default=10, help="boxes per file for the dense form (default: 10)"
    )
    parser.add_argument("--random", type=positive_int, default=100_000, help="number of random boxes (default: 100000)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
