"""Compare fusion factor strategies, each at its own best learning rate.

    python benchmarks/fusion_study.py                    # the full study
    python benchmarks/fusion_study.py --stage rates --only embedded --budget 60
    python benchmarks/fusion_study.py --report           # tables and figures of the training runs recorded so far

A smaller alpha slows down the learning of the deep levels of the pyramid (docs/concepts/preconditioner.md), so a
comparison at a single learning rate would mostly compare learning rates. Each strategy is therefore trained in two
stages:

rates   at four learning rates with one seed
seeds   at its best rate with fresh seeds

Runs with the same fresh seed are compared in pairs. They have the same data order, the same flips, and the same
initial weights of all layers that both strategies have. (atten-alpha has further random layers, so its head starts with
other weights.) Scores are those of the last epoch, so that no epoch is selected on the validation data; one column,
which is marked, has those of the best epoch.

There are two datasets: the built-in synthetic scenes at half size (192 pixels) with all seven strategies, and HIT-UAV
(people, cars and bicycles in thermal drone frames) at half size (320 x 256) with three. The detector is a RetinaNet
with MobileNetV2, pretrained on ImageNet, and a pyramid of 32 channels.

Takes about five hours on two cores. Each finished training is a line of --record. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from environment import ROOT, environment
from fusion_report import write_report

from tinydet.__main__ import main as tinydet
from tinydet._internal.arguments import positive_int
from tinydet._internal.command import command
from tinydet.data.synthetic import builtin_dataset
from tinydet.study.trials import Record, Trial, Trials, find_record, last, read_records

NETWORK = ("--preset", "small", "--detector", "retinanet", "--channels", "32", "--head-convs", "1")
MODEL = (*NETWORK, "--validate-every", "2")
BASE_RATE = 0.01  # half of the small preset's; at four times that rate the first two training runs diverged
RATES = (1, 2, 4, 0.5)  # factors of BASE_RATE, the most informative first
STRATEGIES = {
    "1": ("--alpha", "1"),
    "0.5": ("--alpha", "0.5"),
    "S": ("--salpha",),
    "0": ("--alpha", "0"),
    "one": ("--alpha", "one"),
    "three": ("--alpha", "three"),
    "attention": ("--alpha", "attention"),
}
FIRST_SEED = 0  # of the stage `rates`; the seeds of the other stage count up from it


class Data(NamedTuple):
    """A dataset of the study: its resize factor and the training options for it."""

    scale: Fraction
    flags: tuple[str, ...]


DATA = {
    "embedded": Data(Fraction(1, 2), ("--tile", "192", "--overlap", "48", "--epochs", "4")),
    "hituav": Data(
        Fraction(1, 2), ("--tile", "320", "--overlap", "64", "--categories", "person,car,bicycle", "--epochs", "5")
    ),
}
# In the order in which they run: the most informative first.
BLOCKS = (
    ("embedded", ("1", "0.5", "S", "0")),
    ("hituav", ("1", "0.5", "S")),
    ("embedded", ("one", "three", "attention")),
)


@command("benchmarks/fusion_study.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.report:
        report(args)
        return 0
    stamp = environment()
    study = Trials(
        args.record,
        args.work,
        # The commit of the running code, even if another is checked out meanwhile.
        lambda: {**environment(), "commit": stamp["commit"]},
        jobs=args.jobs,
        minutes=args.budget,
    )
    for data, strategies in BLOCKS:
        chosen = [s for s in strategies if selected(data, s, args.only)]
        if not chosen:
            continue
        files = file_flags(data, args)
        if args.stage != "seeds" and not study.run(rate_trials(data, chosen, files)):
            break
        if args.stage != "rates" and not study.run(seed_trials(data, chosen, files, args.seeds, args.record)):
            break
    else:
        print("All requested training runs are recorded.")
    report(args)
    return 0


def report(args: argparse.Namespace) -> None:
    """Write tables and figures of the recorded runs; records of runs with other options are skipped."""
    known = read_records(args.record)
    records = [r for r in known if belongs(r)]
    if len(records) < len(known):
        print(f"{len(known) - len(records)} records of runs with other options are skipped")
    paths = write_report(records, args.docs, first_seed=FIRST_SEED, base_rate=BASE_RATE)
    print("\n".join(f"wrote {path}" for path in paths))


def rate_trials(data: str, strategies: Sequence[str], files: tuple[str, ...]) -> list[Trial]:
    """List the trials of each strategy at each learning rate, with one seed."""
    return [trial(data, s, BASE_RATE * factor, FIRST_SEED, files) for factor in RATES for s in strategies]


def seed_trials(data: str, strategies: Sequence[str], files: tuple[str, ...], seeds: int, record: Path) -> list[Trial]:
    """List the trials of each strategy at its best learning rate, seed by seed, so that pairs are completed first."""
    known = read_records(record)
    rates = {}
    for strategy in strategies:
        of_rate = {
            BASE_RATE * f: find_record(known, trial(data, strategy, BASE_RATE * f, FIRST_SEED, files)) for f in RATES
        }
        if missing := [rate for rate, found in of_rate.items() if found is None]:
            print(
                f"{data}, {strategy}: skipped, because the learning rates {missing} are not recorded; run --stage rates"
            )
            continue
        scores = {rate: last(found, "AP50-tiny") for rate, found in of_rate.items() if found is not None}
        rates[strategy] = max(scores, key=lambda rate: -1.0 if scores[rate] is None else scores[rate])
    return [
        trial(data, strategy, rate, seed, files)
        for seed in range(FIRST_SEED + 1, FIRST_SEED + 1 + seeds)
        for strategy, rate in rates.items()
    ]


def trial(data: str, strategy: str, rate: float, seed: int, files: tuple[str, ...]) -> Trial:
    varied = (*STRATEGIES[strategy], "--lr", f"{rate:g}", "--seed", str(seed))
    key: dict[str, str | float] = {"data": data, "strategy": strategy, "lr": rate, "seed": seed}
    return Trial(key, (*MODEL, *DATA[data].flags, *varied), files)


def belongs(record: Record) -> bool:
    """Return whether a record is that of a training of this study."""
    key = record["key"]
    known = key["data"] in DATA and key["strategy"] in STRATEGIES
    return known and trial(key["data"], key["strategy"], key["lr"], key["seed"], ()).matches(record)


def selected(data: str, strategy: str, only: Sequence[str]) -> bool:
    """Return whether --only selects a dataset and a strategy; a kind that it does not mention is not restricted."""
    sets, strategies = [n for n in only if n in DATA], [n for n in only if n in STRATEGIES]
    return (not sets or data in sets) and (not strategies or strategy in strategies)


def file_flags(data: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Return the training options that name files, after writing resized copies of the dataset once."""
    scale = DATA[data].scale
    folders = []
    for split in ("train", "val"):
        source = builtin_dataset(split) if data == "embedded" else args.data / f"{data}-{split}"
        copy = args.work / "data" / f"{data}-{scale.numerator}of{scale.denominator}-{split}"
        if not copy.exists():
            if not source.exists():
                raise ValueError(f"{source} does not exist; name its folder with --data, or use --only embedded")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if code := tinydet(["data", "rescale", str(source), "--factor", str(scale), "--output", str(copy)]):
                raise SystemExit(code)
        folders.append(str(copy))
    return ("--data", folders[0], "--val", folders[1], "--weights-backbone", args.weights_backbone)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = f"{', '.join(DATA)}; {', '.join(STRATEGIES)}"
    add(
        "--stage",
        choices=("all", "rates", "seeds"),
        default="all",
        help="run only one of the two stages (default: all)",
    )
    add("--only", default="", metavar="A,B", help=f"run only these datasets or strategies: {names} (default: all)")
    add("--seeds", type=positive_int, default=6, help="fresh seeds of each strategy; can be raised later (default: 6)")
    add("--jobs", type=positive_int, default=2, help="training runs at a time, sharing the CPU cores (default: 2)")
    add("--budget", type=float, metavar="MINUTES", help="start no training after this many minutes (default: no limit)")
    add("--report", action="store_true", help="write tables and figures from the record without training")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="folder of hituav-train, hituav-val and optionally weights (default: ../shared/data)")  # fmt: skip
    add("--weights-backbone", metavar="default|FILE",
        help="ImageNet weights (default: DATA/weights/mobilenet_v2-b0353104.pth, or torchvision's)")  # fmt: skip
    add("--work", type=Path, default=ROOT / "runs" / "fusion_study", metavar="DIR",
        help="folder of resized data, training states and logs (default: runs/fusion_study)")  # fmt: skip
    add("--record", type=Path, default=ROOT / "benchmarks" / "results" / "fusion_study.jsonl", metavar="FILE",
        help="record of the training runs (default: benchmarks/results/fusion_study.jsonl)")  # fmt: skip
    add("--docs", type=Path, default=ROOT / "docs", metavar="DIR",
        help="folder of fusion-study.md and its figures (default: docs)")  # fmt: skip
    args = parser.parse_args(argv)
    args.only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in args.only if name not in {*DATA, *STRATEGIES}]:
        parser.error(f"argument --only: choose from {', '.join((*DATA, *STRATEGIES))}; got {', '.join(unknown)}")
    if args.weights_backbone == "none":
        parser.error("the study needs a pretrained backbone; set --weights-backbone to default or a file")
    args.data, args.work = args.data.resolve(), args.work.resolve()
    local = args.data / "weights" / "mobilenet_v2-b0353104.pth"
    args.weights_backbone = args.weights_backbone or (str(local) if local.exists() else "default")
    return args


if __name__ == "__main__":
    sys.exit(main())
