"""`tinydet sweep`: train with a grid of fusion factors and with S-alpha, and plot AP against alpha.

All edges have the same factor, as in Fig. 1, 2, 3, 5 and 7 of the paper (there: brute force). Recorded runs are
not repeated, so an interrupted sweep can be resumed, and factors or seeds can be added later.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydet._internal import arguments
from tinydet._internal.arguments import grid, number, whole
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet._internal.parser import Parser
from tinydet._internal.shell import tinydet_command
from tinydet.data.rescale import by_factor, rescale_document, write_rescaled
from tinydet.data.source import builtin_source
from tinydet.study.sweep_plots import SALPHA, summarize, summary_text, write_report
from tinydet.study.trials import Record, Trial, describe, find_record, read_records, run_reported
from tinydet.train.config import config_of
from tinydet.train.config import parser as train_parser

DEFAULT_ALPHA, DEFAULT_SEEDS = "0:1.1:0.1", 3


@command("sweep", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    training = train_parser()
    training.speak_for(parser)
    _check(args, vars(training.parse_args(flags)), flags)
    with needs_extra("train"):
        import torch

    with needs_extra("plots"):
        import matplotlib  # noqa: F401 - fail now if it is missing, not after the training runs
    jobs = args.jobs or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    trials = plan(args, flags)
    record = args.output / "runs.jsonl"
    if args.dry_run:
        known = read_records(record)
        for trial in trials:
            print(f"{describe(trial.key)}{', recorded' if find_record(known, trial) else ''}")
        return 0
    return run_reported(
        trials, args.output, record, lambda: _write(trials, record, args.output), jobs=jobs, minutes=args.budget
    )


def plan(args: argparse.Namespace, flags: Sequence[str]) -> list[Trial]:
    """List the training runs by scale, then by seed, so that an interrupted sweep has complete curves."""
    trials = []
    for scale in args.scale:
        data = _data(args, scale)
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for alpha in (*args.alpha, *([] if args.no_salpha else [SALPHA])):
                key: dict[str, str | float] = {"scale": scale, "alpha": alpha, "seed": seed}
                chosen = ("--salpha",) if alpha == SALPHA else ("--alpha", f"{alpha:g}")
                trials.append(Trial(key, (*data, *flags, *chosen, "--seed", str(seed))))
    return trials


def _write(trials: Sequence[Trial], record: Path, output: Path) -> None:
    """Write tables and plots of the recorded training runs among `trials`, and print a summary."""
    known = read_records(record)
    found: list[Record] = [r for trial in trials if (r := find_record(known, trial)) is not None]
    if not found:
        print("No training is recorded yet.")
        return
    summary = summarize(found)
    paths = write_report(summary, output)
    print(summary_text(summary))
    print("wrote " + ", ".join(map(str, paths)))


def _data(args: argparse.Namespace, scale: float) -> tuple[str, ...]:
    """Return the options of `tinydet train` that select the data; for other scales, write a resized copy once."""
    val = () if args.val is None else ("--val", str(args.val))
    if args.data is None:
        # The defaults of a training on the built-in dataset. It does not recognize a resized copy of that dataset.
        sources = {split: builtin_source(split) for split in ("train", "val")}
        preset: tuple[str, ...] = (
            "--preset",
            "small",
            "--weights-backbone",
            "none",
            "--epochs",
            "12",
            "--augment",
            "none",
        )
    else:
        train, scored = config_of(["--data", str(args.data), *val]).sources()
        assert scored is not None
        sources, preset = {"train": train, "val": scored}, ()
    if scale == 1:
        return () if args.data is None else ("--data", str(args.data), *val)
    folders = []
    for split, source in sources.items():
        content = json.dumps(source.read(), sort_keys=True)
        origin = hashlib.sha256(content.encode()).hexdigest()[:8]  # changed annotations get a copy of their own
        copy = args.output / "data" / f"{split}-{scale:g}-{origin}"
        if not copy.exists() and not args.dry_run:
            copy.parent.mkdir(parents=True, exist_ok=True)
            document = source.load_document()
            write_rescaled(document, rescale_document(document, by_factor(scale)), copy)
        folders.append(str(copy))
    return ("--data", folders[0], "--val", folders[1], *preset)


def _check(args: argparse.Namespace, given: Mapping[str, Any], flags: Sequence[str]) -> None:
    """Check the options before hours of training.

    Args:
        given: options of training, from `flags`.

    Raises:
        ValueError: options that a sweep sets itself, only one of --data and --val, or options that training rejects.
    """
    if args.data is None and args.val is not None:
        raise ValueError("a sweep trains on --data and scores on --val; add --data, or leave both out")
    own = (
        "alpha",
        "salpha",
        "seed",
        "output",
        "json",
        "resume",
        "dry_run",
        "threads",
        "annotations",
        "val_annotations",
    )
    if clash := [name for name in own if name in given]:
        raise ValueError(
            f"--{clash[0].replace('_', '-')} is not an option of sweep, which sets alpha, seed and files itself; "
            "name datasets with --data and --val"
        )
    data = [] if args.data is None else ["--data", str(args.data)]
    data += [] if args.val is None else ["--val", str(args.val)]
    if config_of([*data, *flags]).resolve().sources()[1] is None:
        raise ValueError(f"{args.data} has no split val to score on; add --val PATH, or --val 0.2 to hold images out")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"{args.output} is a file; --output names a folder")


def _parser() -> Parser:
    parser = Parser(
        "sweep",
        positional="--data",
        examples=("my/train --val my/val --alpha 0:1.1:0.1 --seeds 3 --preset small",),
        description="Train with each fusion factor of a grid and with S-alpha, several seeds each, and plot AP "
        "against alpha (Fig. 1 and 2 of the paper; with --scale Fig. 3 and 5; by class Fig. 7). Scores are those of "
        "the last epoch: no epoch is selected on the validation data. Run the same command again to resume.",
        epilog=f"All other options are those of `{tinydet_command('train')}`, such as --preset, --categories and --lr.",
        allow_abbrev=False,  # otherwise --seed is taken for --seeds
    )
    add = parser.add_argument
    add("--alpha", type=grid, default=grid(DEFAULT_ALPHA), metavar="A:B:STEP",
        help=f"fusion factors, a grid LOW:HIGH:STEP or values such as 0,0.5 (default: {DEFAULT_ALPHA})")  # fmt: skip
    add(
        "--seeds",
        type=whole(1, 1000),
        default=DEFAULT_SEEDS,
        metavar="N",
        help=f"number of seeds to train with each factor (default: {DEFAULT_SEEDS})",
    )
    add(
        "--first-seed",
        type=arguments.seed,
        default=1,
        metavar="N",
        help="first seed; the others count up from it (default: 1)",
    )
    add("--no-salpha", action="store_true", help="train only with the factors of the grid, without S-alpha")
    add("--scale", type=_scales, default=(1.0,), metavar="S,S",
        help="resize factors of the images, such as 1,0.5,0.25; copies go to --output (default: 1)")  # fmt: skip
    add("--data", type=Path, metavar="PATH", help="dataset to train on (default: built-in synthetic dataset)")
    add("--val", metavar="PATH|SHARE",
        help="dataset to score on, or share of the images to hold out (default: the split val of --data)")  # fmt: skip
    add("--jobs", type=whole(1, 256), metavar="N",
        help="training runs at a time, sharing the CPU cores (default: 1 with a GPU, else 2)")  # fmt: skip
    add(
        "--budget",
        type=number(0, 1e6),
        metavar="MINUTES",
        help="start no training after this many minutes (default: no limit)",
    )
    add("--output", type=Path, default=Path("sweep"), metavar="DIR",
        help="folder of records, tables, plots and models (default: sweep)")  # fmt: skip
    add("--dry-run", action="store_true", help="list the training runs and exit")
    return parser


def _scales(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(arguments.scale(part) for part in text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
