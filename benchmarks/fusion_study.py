"""What the fusion factor is worth, with the learning rate held to account.

    python benchmarks/fusion_study.py                    # all of it: some five hours on two cores, in steps
    python benchmarks/fusion_study.py --stage rates --only embedded --budget 60
    python benchmarks/fusion_study.py --report           # tables and figures from what there is, at any time

A smaller alpha lowers the rate at which the deep end of the pyramid learns (docs/fusion-factor.md), so a comparison at
one learning rate compares rates. Here each strategy is first trained at four rates with one seed; then at its own
best of them with fresh seeds, which are compared in pairs: the same seed gives the same order and flips, and the same
start of all that the strategies share. Scores are of the last epoch, so that the validation data chooses no epoch,
except in the column that says so. (atten-alpha draws weights of its own, so there the head starts elsewhere.)

Two data sets: the embedded scenes at 1/2 (192 pixels) with all seven strategies; HIT-UAV, people, cars and bicycles on
thermal frames from the air, at 1/2 (320 x 256), with three. The detector is a MobileNetV2 from ImageNet weights with a
thin pyramid.
Every finished training is a line of --record; started again, the study goes on where it stopped.
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
from tinydet.data.synthetic import embedded_dataset
from tinydet.study.trials import Record, Trial, Trials, find_record, last, read_records

MODEL = ("--preset", "small", "--channels", "32", "--head-convs", "1", "--validate-every", "2")
BASE_RATE = 0.01  # half of the small preset's: at four times this the first two trainings broke down
RATES = (1, 2, 4, 0.5)  # times the base; the most telling first
STRATEGIES = {
    "1": ("--alpha", "1"),
    "0.5": ("--alpha", "0.5"),
    "S": ("--salpha",),
    "0": ("--alpha", "0"),
    "one": ("--alpha", "one"),
    "three": ("--alpha", "three"),
    "attention": ("--alpha", "attention"),
}
FIRST_SEED = 0  # of the rates; the seeds that are compared follow it


class Data(NamedTuple):
    """A data set of the study: how it is shrunk, what is trained on it, and for how long."""

    scale: Fraction
    flags: tuple[str, ...]


DATA = {
    "embedded": Data(Fraction(1, 2), ("--tile", "192", "--overlap", "48", "--epochs", "4")),
    "hituav": Data(
        Fraction(1, 2), ("--tile", "320", "--overlap", "64", "--categories", "person,car,bicycle", "--epochs", "5")
    ),
}
# What is run first tells most.
BLOCKS = (
    ("embedded", ("1", "0.5", "S", "0")),
    ("hituav", ("1", "0.5", "S")),
    ("embedded", ("one", "three", "attention")),
)


def main() -> int:
    args = arguments()
    if args.report:
        report(args)
        return 0
    stamp = environment()
    study = Trials(
        args.record,
        args.work,
        lambda: {**environment(), "commit": stamp["commit"]},  # that of the code which is running
        jobs=args.jobs,
        minutes=args.budget,
        report=lambda line: print(line, flush=True),
    )
    for data, strategies in BLOCKS:
        chosen = [s for s in strategies if wanted(data, s, args.only)]
        if not chosen:
            continue
        places = places_of(data, args)
        if args.stage != "seeds" and not study.run(rate_trials(data, chosen, places)):
            break
        if args.stage != "rates" and not study.run(seed_trials(data, chosen, places, args.seeds, args.record)):
            break
    else:
        print("all that was asked for is recorded")
    report(args)
    return 0


def report(args: argparse.Namespace) -> None:
    """Write tables and figures from the records of this study; those of other settings are left out."""
    known = read_records(args.record)
    records = [r for r in known if recorded(r)]
    if len(records) < len(known):
        print(f"{len(known) - len(records)} records of other settings are left out")
    paths = write_report(records, args.docs, first_seed=FIRST_SEED, base_rate=BASE_RATE)
    print("\n".join(f"wrote {path}" for path in paths))


def rate_trials(data: str, strategies: Sequence[str], places: tuple[str, ...]) -> list[Trial]:
    """Every strategy at every rate, with one seed."""
    return [trial(data, s, BASE_RATE * factor, FIRST_SEED, places) for factor in RATES for s in strategies]


def seed_trials(data: str, strategies: Sequence[str], places: tuple[str, ...], seeds: int, record: Path) -> list[Trial]:
    """Every strategy at its best rate with fresh seeds, seed by seed so that pairs are completed first."""
    known = read_records(record)
    rates = {}
    for strategy in strategies:
        of_rate = {
            BASE_RATE * f: find_record(known, trial(data, strategy, BASE_RATE * f, FIRST_SEED, places)) for f in RATES
        }
        if missing := [rate for rate, found in of_rate.items() if found is None]:
            print(f"{data}, {strategy}: no seeds yet, the rates {missing} are not recorded; run --stage rates")
            continue
        scores = {rate: last(found, "AP50-tiny") for rate, found in of_rate.items() if found is not None}
        rates[strategy] = max(scores, key=lambda rate: -1.0 if scores[rate] is None else scores[rate])
    return [
        trial(data, strategy, rate, seed, places)
        for seed in range(FIRST_SEED + 1, FIRST_SEED + 1 + seeds)
        for strategy, rate in rates.items()
    ]


def trial(data: str, strategy: str, rate: float, seed: int, places: tuple[str, ...]) -> Trial:
    varied = (*STRATEGIES[strategy], "--lr", f"{rate:g}", "--seed", str(seed))
    key: dict[str, str | float] = {"data": data, "strategy": strategy, "lr": rate, "seed": seed}
    return Trial(key, (*MODEL, *DATA[data].flags, *varied), places)


def recorded(record: Record) -> bool:
    """Whether a record is of a training that this study makes."""
    key = record["key"]
    known = key["data"] in DATA and key["strategy"] in STRATEGIES
    return known and trial(key["data"], key["strategy"], key["lr"], key["seed"], ()).matches(record)


def wanted(data: str, strategy: str, only: Sequence[str]) -> bool:
    """Whether the names given with --only admit it; without a name of its kind all of that kind are admitted."""
    sets, strategies = [n for n in only if n in DATA], [n for n in only if n in STRATEGIES]
    return (not sets or data in sets) and (not strategies or strategy in strategies)


def places_of(data: str, args: argparse.Namespace) -> tuple[str, ...]:
    """The flags that name files; shrunk copies of the data are made once."""
    scale = DATA[data].scale
    folders = []
    for split in ("train", "val"):
        source = embedded_dataset(split) if data == "embedded" else args.data / f"{data}-{split}"
        copy = args.work / "data" / f"{data}-{scale.numerator}of{scale.denominator}-{split}"
        if not copy.exists():
            if not source.exists():
                raise SystemExit(f"{source} is missing; --data names its folder, --only embedded does without")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if code := tinydet(["data", "rescale", str(source), "--factor", str(scale), "--output", str(copy)]):
                raise SystemExit(code)
        folders.append(str(copy))
    return ("--data", folders[0], "--val", folders[1], "--weights-backbone", args.weights_backbone)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = f"{', '.join(DATA)}; {', '.join(STRATEGIES)}"
    add("--stage", choices=("all", "rates", "seeds"), default="all", help="rates, then seeds (default: all)")
    add("--only", default="", metavar="A,B", help=f"some data sets or strategies: {names} (default: all)")
    add("--seeds", type=int, default=6, help="fresh seeds of each strategy; more may be added later (default: 6)")
    add("--jobs", type=int, default=2, help="trainings at a time, sharing the cores (default: 2)")
    add("--budget", type=float, metavar="MINUTES", help="start no training after so many minutes (default: no limit)")
    add("--report", action="store_true", help="train nothing, write tables and figures from the record")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="holds hituav-train, hituav-val, and weights/ if there are any (default: ../shared/data)")  # fmt: skip
    add("--weights-backbone", metavar="default|FILE",
        help="ImageNet weights (default: DATA/weights/mobilenet_v2-b0353104.pth, else torchvision's)")  # fmt: skip
    add("--work", type=Path, default=ROOT / "runs" / "fusion_study", metavar="DIR",
        help="shrunk data, states and logs (default: runs/fusion_study)")  # fmt: skip
    add("--record", type=Path, default=ROOT / "benchmarks" / "results" / "fusion_study.jsonl", metavar="FILE",
        help="a line for every finished training (default: benchmarks/results/fusion_study.jsonl)")  # fmt: skip
    add("--docs", type=Path, default=ROOT / "docs", metavar="DIR",
        help="where fusion-study.md and its figures go (default: docs)")  # fmt: skip
    args = parser.parse_args()
    args.only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in args.only if name not in {*DATA, *STRATEGIES}]:
        parser.error(f"--only knows no {', '.join(unknown)}; it knows {', '.join((*DATA, *STRATEGIES))}")
    if min(args.seeds, args.jobs) < 1:
        parser.error("--seeds and --jobs are whole numbers from 1")
    if args.weights_backbone == "none":
        parser.error("the study is of pretrained backbones; --weights-backbone takes default or a file")
    args.data, args.work = args.data.resolve(), args.work.resolve()
    local = args.data / "weights" / "mobilenet_v2-b0353104.pth"
    args.weights_backbone = args.weights_backbone or (str(local) if local.exists() else "default")
    return args


if __name__ == "__main__":
    sys.exit(main())
