"""`tinydet crossval`: train once per fold, each time without one fold, and score each model on the fold it never saw.

Folds are made of whole groups of images, such as flights, so the scores say how a model does on another flight. All of
them are those of the last epoch: no epoch is selected on the data that it is scored on. Recorded runs are not repeated,
so an interrupted cross-validation is resumed by the same command.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import number, whole
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet._internal.parser import Parser
from tinydet._internal.shell import tinydet_command
from tinydet.study.trials import Record, Trial, find_record, last, read_records, run_reported
from tinydet.train.config import MOST_FOLDS, config_of
from tinydet.train.config import parser as train_parser

FOLDS = 5
# What a cross-validation sets itself, or what would select an epoch on the fold that is scored.
OWN = ("val", "val_annotations", "fold", "output", "json", "resume", "dry_run", "threads", "annotations", "patience")


@command("crossval", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    training = train_parser()
    training.speak_for(parser)
    _check(args, vars(training.parse_args(flags)), flags)
    trials = plan(args, flags)
    record = args.output / "runs.jsonl"
    held = [_held(args, trial) for trial in trials]
    if args.dry_run:
        known = read_records(record)
        for trial, groups in zip(trials, held, strict=True):
            print(f"fold {trial.key['fold']}: {groups}{', recorded' if find_record(known, trial) else ''}")
        return 0
    with needs_extra("train"):
        import torch

    jobs = args.jobs or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    return run_reported(
        trials, args.output, record, lambda: _report(trials, held, record, args.output), jobs=jobs, minutes=args.budget
    )


def plan(args: argparse.Namespace, flags: Sequence[str]) -> list[Trial]:
    """List the training runs, one per fold."""
    groups = () if args.group_by is None else ("--group-by", args.group_by)
    # Only the data are left out of the records, because their place differs between machines.
    return [
        Trial({"fold": fold}, (*flags, *groups, "--fold", fold), ("--data", str(args.data)))
        for fold in (f"{k}/{args.folds}" for k in range(1, args.folds + 1))
    ]


def summarize(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return the scores after the last epoch by fold, and their mean, spread and lowest value by metric.

    Args:
        records: by fold. Runs that diverged have no scores.
    """
    scored = {fold: record["history"][-1] for fold, record in records.items() if not record["diverged"]}
    names = dict.fromkeys(name for scores in scored.values() for name in scores if name != "epoch")
    metrics = {}
    for name in names:
        values = [value for fold in scored if (value := last(records[fold], name)) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[name] = {
                "mean": statistics.fmean(values),
                "sd": spread,
                "lowest": min(values),
                "folds": len(values),
            }
    epochs: dict[int, list[float]] = {}
    for fold in scored:
        for scores in records[fold]["history"]:
            epochs.setdefault(scores["epoch"], []).append(scores["AP50"])
    curve = {epoch: statistics.fmean(values) for epoch, values in epochs.items() if len(values) == len(scored)}
    return {"folds": scored, "metrics": metrics, "AP50_by_epoch": curve, "diverged": sorted({*records} - {*scored})}


def summary_table(summary: Mapping[str, Any], held: Mapping[str, str]) -> str:
    """Return the scores in percent as a Markdown table: a row per fold, then their mean and standard deviation."""
    names = [name for name in summary["metrics"] if name.partition("/")[0] in ("AP50", "AP50-tiny")]
    lines = [f"| fold | held out | {' | '.join(names)} |", "| --- | --- |" + " --: |" * len(names)]
    for fold, scores in summary["folds"].items():
        shown = [f"{100 * scores[name]:.1f}" if scores.get(name, -1) >= 0 else "-" for name in names]
        lines.append(f"| {fold} | {held[fold]} | {' | '.join(shown)} |")
    cells = [summary["metrics"][name] for name in names]
    spread = " | ".join(f"{100 * cell['mean']:.1f} ± {100 * cell['sd']:.1f}" for cell in cells)
    lines.append(f"| mean ± sd | | {spread} |")
    return "\n".join(lines)


def _report(trials: Sequence[Trial], held: Sequence[str], record: Path, output: Path) -> None:
    """Write and print the scores of the recorded runs."""
    known = read_records(record)
    found = {str(trial.key["fold"]): r for trial in trials if (r := find_record(known, trial)) is not None}
    if not found:
        print("No training is recorded yet.")
        return
    summary = summarize(found)
    groups = {str(trial.key["fold"]): name for trial, name in zip(trials, held, strict=True)}
    path = output / "crossval.json"
    write_json(path, {"held_out": groups, **summary})
    print(summary_table(summary, groups))
    for fold in summary["diverged"]:
        print(f"fold {fold} diverged; its log is in {record.parent / 'runs'}")
    if len(summary["AP50_by_epoch"]) > 1 and len(found) == len(trials):
        best = max(summary["AP50_by_epoch"], key=summary["AP50_by_epoch"].__getitem__)
        print(f"the mean AP50 is highest after epoch {best}: {100 * summary['AP50_by_epoch'][best]:.1f}")
    print(f"wrote {path}")


def _held(args: argparse.Namespace, trial: Trial) -> str:
    """Return the groups that a training holds out."""
    source = config_of([*trial.file_flags, *trial.flags]).sources()[1]
    assert source is not None
    names, _ = source.held_groups()
    return ", ".join(names) if args.group_by is not None and len(names) <= 6 else plural(len(names), "group")


def _check(args: argparse.Namespace, given: Mapping[str, Any], flags: Sequence[str]) -> None:
    """Check the options before hours of training.

    Raises:
        ValueError: no data, options that a cross-validation sets itself, or options that training rejects.
    """
    if args.data is None:
        raise ValueError("name the dataset to cross-validate on: --data PATH")
    if clash := [name for name in OWN if name in given]:
        raise ValueError(
            f"--{clash[0].replace('_', '-')} is not an option of crossval, which sets folds and files itself and "
            "scores the last epoch; name the dataset with --data"
        )
    first = plan(args, flags)[0]
    config_of([*first.file_flags, *first.flags]).resolve()
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"{args.output} is a file; --output names a folder")


def _parser() -> Parser:
    parser = Parser(
        "crossval",
        positional="--data",
        examples=(
            "my/flights --folds 5 --preset small",
            "my/flights --folds 6 --group-by date_captured --augment thermal --ema 0.999",
        ),
        description="Cross-validation: train once per fold, each time without one fold, and score each model on the "
        "fold that it never saw, after its last epoch. Images of one group are never in two folds. Choose options "
        "with it, then train with them on all images. Run the same command again to resume.",
        epilog=f"All other options are those of `{tinydet_command('train')}`, such as --preset, --categories and --lr.",
        allow_abbrev=False,  # otherwise --fold is taken for --folds
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", help="dataset to divide; all of its images are scored once")
    add("--folds", type=whole(2, MOST_FOLDS), default=FOLDS, metavar="N",
        help=f"number of folds, and of training runs (default: {FOLDS})")  # fmt: skip
    add(
        "--group-by",
        metavar="FIELD|REGEX",
        help="which images belong together: a field of the COCO images, such as date_captured, or a regular expression "
        "on the file name (default: videos, flights and folders by file name)",
    )
    add("--jobs", type=whole(1, 256), metavar="N",
        help="training runs at a time, sharing the CPU cores (default: 1 with a GPU, else 2)")  # fmt: skip
    add(
        "--budget",
        type=number(0, 1e6),
        metavar="MINUTES",
        help="start no training after this many minutes (default: no limit)",
    )
    add("--output", type=Path, default=Path("crossval"), metavar="DIR",
        help="folder of records, scores and models (default: crossval)")  # fmt: skip
    add("--dry-run", action="store_true", help="list the folds and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
