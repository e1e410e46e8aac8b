"""Training and inference alone, and beside other processes, with waiting threads that spin and that sleep.

    python benchmarks/busy_machine.py

Each workload runs in two processes: one whose threads spin as torch's libgomp and ONNX Runtime do by default, one as
tinydet sets them (`tinydet/_internal/threads.py`). In each round every process has one turn of --seconds on the
otherwise idle machine and one beside --busy processes that do nothing but compute. Only one of them works at a time;
the others are blocked and use no CPU. On an idle machine the two should be equally fast; beside other work a workload
should keep its share of the CPU, so the CPU time per image should not grow.

Training is a step of RetinaNet with MobileNetV2 and 64 channels; inference is the bundled model in torch, ONNX Runtime
and OpenVINO, which has no setting for this and shows how much two equal processes differ.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

sys.path.insert(0, str(ROOT))  # what is measured is the checkout whose commit is recorded, whatever is installed

from tinydet._internal.atomic import write_json
from tinydet._internal.threads import OPENMP_VARIABLES, set_openmp_wait_policy
from tinydet.data.synthetic import builtin_dataset

# What libgomp does where nothing is set: 300 000 pauses, then sleep. The policy lets ONNX Runtime spin.
SPIN = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}
SIDES: dict[str, dict[str, str]] = {"spin": SPIN, "sleep": {}}
WORKLOADS = ("training", "torch", "onnx-cpu", "openvino")
BATCH = 4


def main() -> int:
    args = arguments()
    about = environment()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for workload in args.workloads:
        for side, setting in SIDES.items():
            pipes[workload, side], end = context.Pipe()
            context.Process(target=work, args=(end, workload, setting), daemon=True).start()
            end.close()
            pipes[workload, side].recv()  # one after the other, so that they warm up undisturbed
            print(f"{workload}, {side}: ready", file=sys.stderr)
    turns: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for number in range(args.rounds):
        for others in (0, args.busy):
            with spinning(context, others):
                for (workload, side), pipe in pipes.items():
                    pipe.send(args.seconds)
                    turns.setdefault((workload, side, others), []).append(pipe.recv())
        print(f"round {number + 1}/{args.rounds}", file=sys.stderr)
    for pipe in pipes.values():
        pipe.send(0)
    rows = []
    for workload, side in pipes:
        alone, beside = turns[workload, side, 0], turns[workload, side, args.busy]
        row = {"workload": workload, "waiting_threads": side, "alone": summary(alone), "beside": summary(beside)}
        kept = [b["images_per_second"] / a["images_per_second"] for a, b in zip(alone, beside, strict=True)]
        rows.append(row | {"speed_kept": spread(kept)})
    print(table(rows, args.busy))
    if args.output:
        command = "python benchmarks/busy_machine.py " + " ".join(sys.argv[1:])
        options = {"busy_processes": args.busy, "rounds": args.rounds, "seconds": args.seconds, "batch": BATCH}
        write_json(args.output, {"command": command.strip(), **about, **options, "rows": rows})
        print(f"wrote {args.output}")
    return 0


def work(pipe: Any, workload: str, setting: dict[str, str]) -> None:
    """One process: prepare and warm up, then for each number of seconds received send the speed in that time."""
    for name in (*OPENMP_VARIABLES, "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ.update(setting)
    set_openmp_wait_policy()  # as `import tinydet` does, before torch is imported; keeps a given `setting`
    run = training() if workload == "training" else inference(workload)
    run()
    run()
    pipe.send(None)
    while seconds := pipe.recv():
        images, began, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            images += run()
        took, used = time.perf_counter() - began, time.process_time() - used
        pipe.send({"images_per_second": images / took, "cpu_seconds_per_image": used / images})


def training() -> Callable[[], int]:
    """A function that trains one step and returns the number of images."""
    from training_speed import ours

    from tinydet.data.coco import find_dataset, load_dataset
    from tinydet.data.samples import TrainingTiles

    tiles = TrainingTiles(load_dataset(*find_dataset(builtin_dataset("train"))), 320, 64)
    network = {"backbone": "mobilenet_v2", "channels": 64, "head_convs": 2}
    _, steps = ours(tiles, network, freeze=2, batch=BATCH, bfloat16=False)
    return lambda: next(steps)[0]


def inference(backend: str) -> Callable[[], int]:
    """A function that runs the bundled model on a batch and returns the number of tiles."""
    from tinydet.runtime import open_model
    from tinydet.runtime.bundled import DEFAULT, model_path

    if backend == "torch":
        from tinydet.models.backend import open_checkpoint

        model: Any = open_checkpoint(model_path(DEFAULT, ".pth"))
    else:
        model = open_model(model_path(DEFAULT), backend)
    tiles = np.random.default_rng(0).integers(0, 256, (BATCH, model.spec.tile, model.spec.tile, 3), dtype=np.uint8)
    return lambda: len(model.run(tiles).boxes)


@contextmanager
def spinning(context: Any, count: int) -> Any:
    """`count` processes that use all the CPU time they get."""
    processes = [context.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2 if count else 0)  # until they have started
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def compute() -> None:
    while True:
        pass


def spread(values: Sequence[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in figures.items()}


def summary(turns: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: spread([turn[name] for turn in turns]) for name in turns[0]}


def table(rows: Sequence[dict[str, Any]], busy: int) -> str:
    """Markdown: medians, with the range of the rounds in brackets."""
    lines = [
        f"| workload | waiting threads | images/s alone | beside {busy} processes | speed kept | CPU s/image alone "
        "| beside |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        speeds = [
            f"{found['median']:.2f} ({found['min']:.2f}–{found['max']:.2f})"
            for found in (row["alone"]["images_per_second"], row["beside"]["images_per_second"])
        ]
        cpu = [f"{row[load]['cpu_seconds_per_image']['median']:.3f}" for load in ("alone", "beside")]
        cells = [row["workload"], row["waiting_threads"], *speeds, f"{row['speed_kept']['median']:.0%}", *cpu]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="default: all")
    add("--busy", type=int, default=2, metavar="N", help="other processes, each busy on one core (default: 2)")
    add("--rounds", type=int, default=5, metavar="N", help="turns of each process alone and beside (default: 5)")
    add("--seconds", type=float, default=2.5, help="length of a turn, which is at least one batch (default: 2.5)")
    add("--quick", action="store_true", help="two rounds of half a second, and no result file")
    default = ROOT / "benchmarks" / "results" / "busy_machine.json"
    add("--output", type=Path, default=default, help="default: benchmarks/results/busy_machine.json")
    args = parser.parse_args()
    if args.busy < 1 or args.rounds < 1 or args.seconds <= 0:
        parser.error("--busy, --rounds and --seconds must be positive")
    if args.quick:
        args.rounds, args.seconds, args.output = 2, 0.5, None
    return args


if __name__ == "__main__":
    sys.exit(main())
