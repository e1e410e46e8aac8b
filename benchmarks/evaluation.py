"""Speed of evaluation, compared with pycocotools and with the plain-Python evaluators of the tests.

    python benchmarks/evaluation.py

Each evaluator starts from the same COCO dictionaries and computes all of its scores; the largest difference between the
scores is reported. The evaluators run in turns, so that other load on the machine affects all of them. Speeds are
compared by CPU time; wall time is recorded as well.

Takes about seven minutes per round, most of them in the plain-Python evaluators. faster-coco-eval is compared too if it
is installed, for example in a separate folder: `pip install --no-deps --target faster faster-coco-eval`, then
`PYTHONPATH=faster python benchmarks/evaluation.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.evaluate import PROTOCOLS, score_detections

Precision = dict[str, dict[str, list[list[float]]]]
SCENES = {  # images, objects per image, detections per image
    "sparse": (100, 5, 10),
    "benchmark": (1000, 25, 200),
    "crowded": (5, 400, 1500),
}


@command("benchmarks/evaluation.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    result: dict[str, Any] = {
        "command": f"python benchmarks/evaluation.py --rounds {args.rounds}",
        **environment(),
        "scenes": {},
    }
    for name, (images, objects, detections) in SCENES.items():
        gt, dt = make_scene(images, objects, detections)
        rounds = [{side: measure(run, gt, dt) for side, run in SIDES.items()} for _ in range(args.rounds)]
        first = {side: scores for side, (_, _, scores) in rounds[0].items()}
        cpu = {side: [times[side][0] for times in rounds] for side in SIDES}
        result["scenes"][name] = {
            "images": images,
            "objects_per_image": objects,
            "detections_per_image": detections,
            "rounds": args.rounds,
            "cpu_seconds": {side: summary(values) for side, values in cpu.items()},
            "wall_seconds": {side: summary([times[side][1] for times in rounds]) for side in SIDES},
            "faster_than": {side: ratio(cpu[side], cpu["tinydet coco"]) for side in OTHERS if side in cpu},
            "faster_than_plain_python": ratio(cpu["plain Python tinyperson"], cpu["tinydet tinyperson"]),
            "largest_difference_from": {
                side: difference(first["tinydet coco"], first[side]) for side in OTHERS if side in cpu
            },
            "largest_difference_from_plain_python": difference(
                first["tinydet tinyperson"], first["plain Python tinyperson"]
            ),
        }
        print(table(name, result["scenes"][name]), flush=True)
    write_json(args.output, result)
    print(f"wrote {args.output}")
    return 0


def make_scene(
    images: int, objects: int, detections: int, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Create random people of 3 to 60 pixels, and detections.

    Half of the detections are near a person, possibly several near the same one; the others are anywhere.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        size, aspect = np.exp(rng.normal(np.log(12), 0.6, objects)), rng.uniform(1, 2.5, objects)
        sides = np.c_[size / np.sqrt(aspect), size * np.sqrt(aspect)]
        boxes = np.c_[rng.uniform((0, 0), np.maximum((1920, 1080) - sides, 1)), sides]
        for box, flag in zip(boxes.tolist(), rng.random(objects).tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "bbox": box}
            area = {"area": box[2] * box[3], "iscrowd": 0, "ignore": flag < 0.1, "uncertain": 0.1 <= flag < 0.2}
            annotations.append({**entry, **area})
        near = boxes[rng.integers(0, objects, detections // 2)]
        near = np.c_[
            near[:, :2] + rng.normal(0, 0.12, (len(near), 2)) * near[:, 2:], near[:, 2:] * rng.uniform(0.8, 1.25)
        ]
        far = np.c_[
            rng.uniform((0, 0), (1880, 1040), (detections - len(near), 2)),
            rng.uniform(3, 40, (detections - len(near), 2)),
        ]
        scores = np.r_[rng.beta(4, 2, len(near)), rng.beta(1, 4, len(far))]
        for box, score in zip(np.r_[near, far].tolist(), scores.tolist(), strict=True):
            found.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})
    names = [{"id": i, "file_name": f"{i}.jpg", "width": 1920, "height": 1080} for i in range(1, images + 1)]
    return {"images": names, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}, found


def pycocotools(gt: dict[str, Any], dt: list[dict[str, Any]]) -> Precision:
    """Compute precision at 101 recalls with pycocotools, in the format of `Scores.precision_json`."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = gt
        truth.createIndex()
        return precision_of(COCOeval(truth, truth.loadRes(dt), "bbox"))


def faster_coco_eval(gt: dict[str, Any], dt: list[dict[str, Any]]) -> Precision:
    """Compute the same with faster-coco-eval, whose matching is compiled."""
    import faster_coco_eval as faster

    truth = faster.COCO(gt)
    return precision_of(faster.COCOeval_faster(truth, truth.loadRes(dt), "bbox"))


def precision_of(evaluator: Any) -> Precision:
    rules = PROTOCOLS["coco"].precision
    assert rules is not None
    evaluator.params.iouThrs = np.array(rules.ious)
    evaluator.params.areaRng = [list(area) for area in rules.areas.values()]
    evaluator.params.areaRngLbl = list(rules.areas)
    evaluator.params.maxDets = [rules.max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][..., 0]
    return {
        name: {f"{iou:.2f}": precision[t, :, :, a].T.tolist() for t, iou in enumerate(rules.ious)}
        for a, name in enumerate(rules.areas)
    }


def plain() -> Any:
    """Import the plain-Python evaluators with which the tests compare ours."""
    if "evaluation_reference" not in sys.modules:
        path = ROOT / "tests" / "evaluate" / "reference.py"
        spec = importlib.util.spec_from_file_location("evaluation_reference", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["evaluation_reference"] = module
    return sys.modules["evaluation_reference"]


OTHERS = ("pycocotools", "faster-coco-eval")  # with the same scores as `tinydet coco`
SIDES: dict[str, Callable[[Any, Any], Any]] = {
    "tinydet coco": lambda gt, dt: score_detections(gt, dt, PROTOCOLS["coco"]).precision_json(),
    "pycocotools": pycocotools,
    **({"faster-coco-eval": faster_coco_eval} if importlib.util.find_spec("faster_coco_eval") else {}),
    "tinydet tinyperson": lambda gt, dt: score_detections(gt, dt, PROTOCOLS["tinyperson"]).sizes_json(),
    "plain Python tinyperson": lambda gt, dt: plain().evaluate(gt, dt, PROTOCOLS["tinyperson"]),
}


def measure(run: Callable[[Any, Any], Any], gt: Any, dt: Any) -> tuple[float, float, Any]:
    """Run an evaluator; return CPU seconds, wall seconds and its scores."""
    gt, dt = copy.deepcopy((gt, dt))  # pycocotools modifies its arguments, for example the field `ignore`
    cpu, wall = time.process_time(), time.perf_counter()
    scores = run(gt, dt)
    return time.process_time() - cpu, time.perf_counter() - wall, scores


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "fastest": round(min(values), 4),
        "slowest": round(max(values), 4),
    }


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Summarize the ratios of the times of each round."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference between the numbers of two nested structures."""
    if isinstance(a, dict):
        return max(difference(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return max(difference(x, y) for x, y in zip(a, b, strict=True))
    return abs(a - b) if isinstance(a, (int, float)) else 0.0


def table(name: str, scene: dict[str, Any]) -> str:
    lines = [f"{name}: {scene['images']} images, {scene['detections_per_image']} detections each; CPU seconds"]
    lines += [
        f"  {side:24} {t['median']:9.3f} s ({t['fastest']:.3f} to {t['slowest']:.3f})"
        for side, t in scene["cpu_seconds"].items()
    ]
    lines += [
        f"  tinydet coco is {times['median']:.1f} x as fast as {side} (largest difference "
        f"{scene['largest_difference_from'][side]:.1e})"
        for side, times in scene["faster_than"].items()
    ]
    lines.append(
        f"  tinydet tinyperson is {scene['faster_than_plain_python']['median']:.1f} x as fast as plain Python (largest "
        f"difference {scene['largest_difference_from_plain_python']:.1e})"
    )
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=3, help="runs of each evaluator (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "evaluation.json",
        help="result file (default: benchmarks/results/evaluation.json)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
