"""Training speed of our RetinaNet and of torchvision's in the loop of its references, on the same network.

    python benchmarks/training_speed.py

Both train on the images of --data with the same backbone, anchors, head, batch size, precision and memory layout (see
torchvision_loop.py). bfloat16, the default of `tinydet train` on processors that support it, is measured as well. Each
side runs in a separate process, so that peak memory is measured for each (without the processes that load torchvision's
data; on a GPU also the memory that PyTorch allocates there). The sides run in turns: a warm-up, then --rounds rounds of
--steps steps. The reported ratio to the first side is the mean of the ratios of each round.

Takes about three minutes on two cores with bfloat16, longer without.
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

sys.path.insert(0, str(ROOT))  # measure this checkout, whose commit is recorded, and not an installed package

from tinydet._internal.arguments import integers
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.data.synthetic import builtin_dataset

SIDES = (
    "torchvision, fp32",
    "tinydet, fp32",
    "tinydet, bf16",
    "torchvision, bf16",
    "torchvision, fp32, contiguous",
)
LR = 0.001


@command("benchmarks/training_speed.py")
def main(argv: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if argv is None else argv)]
    args = arguments(words)
    options = vars(args) | {"output": None}
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in args.sides:
        pipes[side], end = context.Pipe()
        processes.append(context.Process(target=work, args=(end, side, options), daemon=False))
        processes[-1].start()
        end.close()
    try:
        about = {side: pipe.recv() for side, pipe in pipes.items()}
    except EOFError:
        for process in processes:
            process.terminate()
        raise ValueError("a side could not be prepared; its message is above") from None
    if len({facts["trained_parameters"] for facts in about.values()}) > 1:
        raise AssertionError(f"the networks of the sides differ: {about}")
    speeds: dict[str, list[float]] = {side: [] for side in args.sides}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in args.sides}
    for turn in range(args.rounds + 1):  # the first round warms up
        for side, pipe in pipes.items():
            pipe.send(args.steps)
            speed, seconds = pipe.recv()
            if turn:
                speeds[side].append(speed)
                cpu_seconds[side].append(seconds)
        if sys.stderr.isatty() or turn in (0, args.rounds):
            print(f"round {turn}/{args.rounds}", file=sys.stderr)
    for pipe in pipes.values():
        pipe.send(0)
    memory = {side: pipe.recv() for side, pipe in pipes.items()}
    for process in processes:
        process.join()
    case = {
        **about[args.sides[0]],
        **{key: options[key] for key in ("backbone", "channels", "head_convs", "batch", "rounds", "steps")},
        "device": args.device,
        "threads": args.threads,
        "sides": {
            side: {
                "images_per_second": summary(speeds[side]),
                "cpu_seconds_per_image": summary(cpu_seconds[side]),  # without processes that load data
                **memory[side],
            }
            for side in args.sides
        },
        "ratios": {
            side: summary([ours / theirs for ours, theirs in zip(speeds[side], speeds[args.sides[0]], strict=True)])
            for side in args.sides[1:]
        },
    }
    print(table(case))
    if args.output:
        name = f"{args.backbone}, {args.channels} channels, {args.head_convs} head convolutions"
        record(args.output, name, {"command": " ".join(["python benchmarks/training_speed.py", *words]), **case})
        print(f"wrote {args.output}")
    return 0


def work(pipe: Any, side: str, options: dict[str, Any]) -> None:
    """Run one side in its process.

    Sends a description of the network. For each number of steps received, trains that many and sends images per second
    and CPU seconds per image. The number 0 ends the loop; peak memory is sent last.
    """
    import torch

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    steps, facts = prepare(side, options)
    pipe.send(facts)
    while count := pipe.recv():
        started, used = time.perf_counter(), time.process_time()
        images = sum(next(steps)[0] for _ in range(count))
        pipe.send((images / (time.perf_counter() - started), (time.process_time() - used) / images))
    pipe.send(peak_memory(options["device"]))
    steps.close()


def prepare(side: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build the network of a side; return its training steps and a description of images and network."""
    import torch

    from tinydet.data.coco import find_dataset, load_dataset
    from tinydet.data.samples import TrainingTiles

    dataset = load_dataset(*find_dataset(options["data"]), categories=options["categories"].split(","))
    tiles = TrainingTiles(dataset, 640, 128)
    image = dataset.images[0]
    network = {key: options[key] for key in ("backbone", "channels", "head_convs")}
    layout = torch.contiguous_format if "contiguous" in side else torch.channels_last
    device = options["device"]
    shared = {"batch": options["batch"], "bfloat16": "bf16" in side, "device": device}
    if side.startswith("torchvision"):
        import torchvision_loop

        model: Any = torchvision_loop.build(
            **network, classes=len(dataset.classes), freeze=options["freeze"], size=(image.height, image.width)
        )
        model.to(device, memory_format=layout)
        steps = torchvision_loop.steps(model, tiles, lr=LR, workers=options["workers"], **shared)
    else:
        model, steps = ours(tiles, network, freeze=options["freeze"], **shared)
    facts = {
        "images": f"{len(tiles)} of {image.width}x{image.height}, {len(dataset.boxes) / len(tiles):.1f} boxes each",
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    return steps, facts


def ours(
    tiles: Any, network: dict[str, Any], *, freeze: int, batch: int, bfloat16: bool, device: str
) -> tuple[Any, Iterator[tuple[int, float]]]:
    """Build our detector; return it and its endless training steps, which yield the number of images and the loss."""
    import torch

    from tinydet.data.samples import epoch_batches, stream
    from tinydet.models.build import DetectorConfig, build_detector
    from tinydet.models.checkpoint import Checkpoint
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
        device=torch.device(device),
        autocast=bfloat16,
    )
    if trainer.layout != torch.channels_last:
        raise SystemExit(
            "on this processor tinydet trains with contiguous tensors, but the comparison needs channels last"
        )
    detector.train()

    def steps() -> Iterator[tuple[int, float]]:
        for epoch in range(10**6):
            batches = [b for b in epoch_batches(len(tiles), batch, seed=0, epoch=epoch) if len(b) == batch]
            for samples in stream(tiles, batches, seed=0, epoch=epoch):
                yield len(samples), float(total(trainer.step(samples, LR)))

    return detector, steps()


def peak_memory(device: str) -> dict[str, float]:
    """Return the peak memory of this process in MiB: of the host, and what PyTorch allocated on a GPU."""
    import torch

    found = {"peak_memory_mib": round(peak_of_host() / 1024, 1)}
    if torch.device(device).type == "cuda":
        found["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found


def peak_of_host() -> int:
    """Return the peak memory of this process in KiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts memory inherited from the parent
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
    """Add the results of one network to the result file, or replace them."""
    import json

    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    cases[name] = {**environment(), **case}
    write_json(path, {"cases": cases})


def table(case: dict[str, Any]) -> str:
    """Format the results of one network as Markdown."""
    lines = [
        f"| side | images/s | range | ratio to {next(iter(case['sides']))} | CPU s/image | peak MiB | on the GPU |"
    ]
    lines.append("| --- | --: | --: | --: | --: | --: | --: |")
    for side, found in case["sides"].items():
        speed, ratio = found["images_per_second"], case["ratios"].get(side)
        against = f"{ratio['mean']:.2f} ({ratio['least']:.2f}..{ratio['most']:.2f})" if ratio else ""
        lines.append(
            f"| {side} | {speed['mean']:.2f} | {speed['least']:.2f}..{speed['most']:.2f} | {against} "
            f"| {found['cpu_seconds_per_image']['mean']:.2f} | {found['peak_memory_mib']:.0f} "
            f"| {found.get('peak_gpu_memory_mib', '–')} |"
        )
    return "\n".join(lines)


def sides(text: str) -> tuple[str, ...]:
    """Parse indices of SIDES, separated by commas."""
    indices = integers(text)
    if not all(0 <= n < len(SIDES) for n in indices):
        raise argparse.ArgumentTypeError(f"expected indices from 0 to {len(SIDES) - 1}, such as 0,1,4; got {text!r}")
    return tuple(SIDES[n] for n in indices)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        help="COCO folder of images of one size of at most 640 pixels (default: ../shared/data/hituav-train if it "
        "exists, else the built-in training set)",
    )
    parser.add_argument("--categories", default="person", help="classes, separated by commas (default: person)")
    parser.add_argument("--backbone", default="mobilenet_v2", help="backbone of both networks (default: mobilenet_v2)")
    parser.add_argument("--channels", type=int, default=64, help="channels of pyramid and head (default: 64)")
    parser.add_argument("--head-convs", type=int, default=2, help="convolutions of each head tower (default: 2)")
    parser.add_argument("--freeze", type=int, default=2, help="frozen stages of the backbone (default: 2)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: 4)")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load torchvision's data (default: 2)")
    parser.add_argument("--rounds", type=int, default=6, help="measured rounds (default: 6)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each side per round (default: 4)")
    parser.add_argument(
        "--sides",
        type=sides,
        default=SIDES[:4],
        help="indices of the sides to measure, from 0, the one to compare with first: "
        + "; ".join(SIDES)
        + " (default: 0,1,2,3)",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of one step with two images, without --output")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "training_speed.json",
        help="result file, extended if it exists (default: benchmarks/results/training_speed.json)",
    )
    args = parser.parse_args(argv)
    frames = ROOT.parent / "shared" / "data" / "hituav-train"
    args.data = args.data or (frames if frames.is_dir() else builtin_dataset("train"))
    if args.quick:
        args.rounds, args.steps, args.batch, args.output = 2, 1, 2, None
    return args


if __name__ == "__main__":
    sys.exit(main())
