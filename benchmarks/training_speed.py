"""Images a second of training: our RetinaNet, and torchvision's in the loop of its references, on the same network.

    python benchmarks/training_speed.py

Both sides have the same backbone, anchors, head, images, batch, precision and memory layout (torchvision_loop.py says
how), and train on the frames of --data. Beside them
stands what `tinydet train` does by itself on a processor with bfloat16. Each side lives in a process of its own, so
that peak memory is its own (without the processes that read torchvision's data), and they take turns: one warm-up, then
--rounds rounds of --steps steps. The ratio is the mean of the ratios of each round; the spread is that of the rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from environment import ROOT, environment

sys.path.insert(0, str(ROOT))  # what is measured is the checkout whose commit is recorded, whatever is installed

from tinydet._internal.atomic import write_json
from tinydet.data.synthetic import embedded_dataset

TORCHVISION, OURS, TUNED = "torchvision, fp32", "tinydet, fp32", "tinydet, bf16"
SIDES = (TORCHVISION, OURS, TUNED, "torchvision, bf16", "torchvision, fp32, contiguous")
TARGET = 1.3  # times torchvision's images a second, at the same precision and memory layout
LR = 0.001


def main() -> int:
    args = arguments()
    options = vars(args) | {"output": None}
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in args.sides:
        pipes[side], end = context.Pipe()
        processes.append(context.Process(target=work, args=(end, side, options), daemon=False))
        processes[-1].start()
        end.close()
    about = {side: pipe.recv() for side, pipe in pipes.items()}
    if len({facts["trained_parameters"] for facts in about.values()}) > 1:
        raise AssertionError(f"the networks differ: {about}")
    rounds: dict[str, list[float]] = {side: [] for side in args.sides}
    work_of: dict[str, list[float]] = {side: [] for side in args.sides}
    for turn in range(args.rounds + 1):  # the first warms up
        for side, pipe in pipes.items():
            pipe.send(args.steps)
            speed, seconds = pipe.recv()
            if turn:
                rounds[side].append(speed)
                work_of[side].append(seconds)
        if sys.stderr.isatty() or turn in (0, args.rounds):
            print(f"round {turn}/{args.rounds}", file=sys.stderr)
    for pipe in pipes.values():
        pipe.send(0)
    memory = {side: pipe.recv() for side, pipe in pipes.items()}
    for process in processes:
        process.join()
    case = {
        **about[args.sides[0]],
        **{key: options[key] for key in ("backbone", "channels", "head_convs", "batch", "threads", "rounds", "steps")},
        "sides": {
            side: {
                "images_per_second": summary(rounds[side]),
                "cpu_seconds_per_image": summary(work_of[side]),  # of this process alone
                "peak_memory_mib": memory[side],
            }
            for side in args.sides
        },
        "ratios_to_torchvision_fp32": {
            side: summary([ours / theirs for ours, theirs in zip(rounds[side], rounds[TORCHVISION], strict=True)])
            for side in args.sides[1:]
        },
    }
    ratio = case["ratios_to_torchvision_fp32"][OURS]["mean"]
    case["reached"] = {
        f"at least {TARGET} times torchvision's speed": ratio >= TARGET,
        "memory below torchvision's": memory[OURS] < memory[TORCHVISION],
    }
    print(table(case))
    if args.output:
        record(args.output, f"{args.backbone}, {args.channels} channels, {args.head_convs} head convolutions", case)
        print(f"wrote {args.output}")
    return 0


def work(pipe: Any, side: str, options: dict[str, Any]) -> None:
    """One side: facts first, then speed and work of as many steps as are asked for; 0 asks for the memory."""
    import torch

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    steps, facts = prepared(side, options)
    pipe.send(facts)
    while count := pipe.recv():
        begun, used = time.perf_counter(), time.process_time()
        images = sum(next(steps)[0] for _ in range(count))
        pipe.send((images / (time.perf_counter() - begun), (time.process_time() - used) / images))
    pipe.send(peak_memory())
    steps.close()


def prepared(side: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import torch

    from tinydet.data.coco import find_dataset, load_dataset
    from tinydet.data.samples import TrainingTiles

    dataset = load_dataset(*find_dataset(options["data"]), categories=options["categories"].split(","))
    tiles = TrainingTiles(dataset, 640, 128)
    image = dataset.images[0]
    network = {key: options[key] for key in ("backbone", "channels", "head_convs")}
    layout = torch.contiguous_format if "contiguous" in side else torch.channels_last
    shared = {"batch": options["batch"], "bfloat16": "bf16" in side}
    if side.startswith("torchvision"):
        import torchvision_loop

        model: Any = torchvision_loop.build(
            **network, classes=len(dataset.classes), freeze=options["freeze"], size=(image.height, image.width)
        )
        model.to(memory_format=layout)
        steps = torchvision_loop.steps(model, tiles, lr=LR, workers=options["workers"], **shared)
    else:
        model, steps = ours(tiles, network, freeze=options["freeze"], **shared)
    facts = {
        "images": f"{len(tiles)} of {image.width}x{image.height}, {len(dataset.boxes) / len(tiles):.1f} boxes each",
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    return steps, facts


def ours(
    tiles: Any, network: dict[str, Any], *, freeze: int, batch: int, bfloat16: bool
) -> tuple[Any, Iterator[tuple[int, float]]]:
    """The steps of `tinydet train`, without end; (images, loss) of each."""
    import torch

    from tinydet.data.samples import epoch_batches, stream
    from tinydet.models.checkpoint import Checkpoint
    from tinydet.models.detector import DetectorConfig, build_detector
    from tinydet.models.losses import total
    from tinydet.train.schedule import Schedule
    from tinydet.train.trainer import Trainer

    classes = tiles.dataset.classes
    config = DetectorConfig(
        network["backbone"],
        network["channels"],
        norm="frozen",
        classes=len(classes),
        options={"head_convs": network["head_convs"]},
    )
    detector = build_detector(config)
    detector.backbone.freeze(freeze)
    trainer = Trainer(
        detector=detector,
        tiles=tiles,
        schedule=Schedule(epochs=1, batch=batch, lr=LR),
        checkpoint=Checkpoint(config, {}, classes, tiles.dataset.category_ids, tile=640),
        output=Path("unused.pth"),
        device=torch.device("cpu"),
        autocast=bfloat16,
    )
    if trainer.layout != torch.channels_last:
        raise SystemExit("this processor trains with contiguous tensors; the comparison is made for channels last")
    detector.train()

    def steps() -> Iterator[tuple[int, float]]:
        for epoch in range(10**6):
            batches = [b for b in epoch_batches(len(tiles), batch, seed=0, epoch=epoch) if len(b) == batch]
            for samples in stream(tiles, batches, seed=0, epoch=epoch):
                yield len(samples), float(total(trainer.step(samples, LR)))

    return detector, steps()


def peak_memory() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would also count the parent's memory at the moment of the fork
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "rounds": [round(value, 3) for value in values],
        "mean": round(statistics.mean(values), 3),
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
        "deviation": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0,
    }


def record(path: Path, name: str, case: dict[str, Any]) -> None:
    """Put a case into the result file, beside those of other networks."""
    import json

    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    command = "python benchmarks/training_speed.py " + " ".join(sys.argv[1:])
    cases[name] = {"command": command.strip(), **environment(), **case}
    write_json(path, {"cases": cases})


def table(case: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| side | images/s | least..most | to torchvision fp32 | CPU s/image | peak MiB |"]
    lines.append("| --- | --: | --: | --: | --: | --: |")
    for side, found in case["sides"].items():
        speed, ratio = found["images_per_second"], case["ratios_to_torchvision_fp32"].get(side)
        against = f"{ratio['mean']:.2f} ({ratio['least']:.2f}..{ratio['most']:.2f})" if ratio else ""
        lines.append(
            f"| {side} | {speed['mean']:.2f} | {speed['least']:.2f}..{speed['most']:.2f} | {against} "
            f"| {found['cpu_seconds_per_image']['mean']:.2f} | {found['peak_memory_mib']:.0f} |"
        )
    return "\n".join([*lines, *(f"{mark}: {'yes' if held else 'NO'}" for mark, held in case["reached"].items())])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        help="COCO folder of images of one size, at most 640 pixels (default: ../shared/data/hituav-train, thermal "
        "drone frames of 640x512; where that is missing the embedded scenes)",
    )
    parser.add_argument("--categories", default="person", help="by name (default: person)")
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: mobilenet_v2")
    parser.add_argument("--channels", type=int, default=64, help="of pyramid and head (default: 64)")
    parser.add_argument("--head-convs", type=int, default=2, help="of each tower (default: 2)")
    parser.add_argument("--freeze", type=int, default=2, help="stages of the backbone (default: 2)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read torchvision's data (default: 2)")
    parser.add_argument("--rounds", type=int, default=6, help="default: 6")
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round (default: 4)")
    parser.add_argument(
        "--sides",
        type=lambda text: tuple(SIDES[int(n)] for n in text.split(",")),
        default=SIDES[:4],
        help="some of 0,1,2,3,4: " + "; ".join(SIDES) + " (default: 0,1,2,3)",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of one step with two images, for a look")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "training_speed.json",
        help="default: benchmarks/results/training_speed.json; --quick writes none",
    )
    args = parser.parse_args()
    if args.sides[:2] != SIDES[:2]:
        parser.error("--sides begins with 0,1")
    usual = ROOT.parent / "shared" / "data" / "hituav-train"
    args.data = args.data or (usual if usual.is_dir() else embedded_dataset("train"))
    if args.quick:
        args.rounds, args.steps, args.batch, args.output = 2, 1, 2, None
    return args


if __name__ == "__main__":
    sys.exit(main())
