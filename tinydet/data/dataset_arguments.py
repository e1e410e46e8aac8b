"""Arguments of commands that name a dataset, and of the tools that write one dataset from another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinydet._internal.arguments import jpeg_quality
from tinydet.data.layouts.layout import SPLITS
from tinydet.data.output_folder import FORMATS, JPEG_QUALITY
from tinydet.data.source import DataSource, announce, find_source


def add_data_arguments(
    parser: argparse.ArgumentParser, *, default: str = "", split: str = "the only one", positional: bool = True
) -> None:
    """Add the arguments that name a dataset: `SOURCE` or `--data`, and `--split`; see `source_of`.

    Args:
        default: what is taken if none is named; empty if one must be named.
        split: which split is taken of several.
        positional: whether to add `SOURCE`; a `Parser` may take positional words for `--data` itself.
    """
    taken = f" (default: {default})" if default else ""
    what = "dataset folder, data.yaml or COCO file; its layout is recognized"
    if positional:
        parser.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help=f"{what}{taken}")
        parser.add_argument("--data", type=Path, metavar="PATH", help="the same as SOURCE")
    else:
        parser.add_argument("--data", type=Path, metavar="PATH", help=f"{what}{taken}")
    add_split(parser, split)


def add_split(parser: argparse._ActionsContainer, default: str) -> None:
    """Add `--split NAME`; `default` says which one is taken of several."""
    parser.add_argument("--split", choices=SPLITS, help=f"split of a dataset that has several (default: {default})")


def data_path(args: argparse.Namespace) -> Path | None:
    """Return the path that `SOURCE` or `--data` names, None without one.

    Raises:
        ValueError: both are given.
    """
    source: Path | None = getattr(args, "source", None)
    if source is not None and args.data is not None:
        raise ValueError(f"{source} and --data {args.data} both name the dataset; give one of them")
    return args.data if source is None else source


def source_of(args: argparse.Namespace, *, prefer: Sequence[str] = (), images: Path | None = None) -> DataSource:
    """Return the dataset that `add_data_arguments` named; see `find_source`.

    Raises:
        ValueError: none is named, or as `find_source`.
    """
    path = data_path(args)
    if path is None:
        raise ValueError("no dataset is named; give a folder, a data.yaml or a COCO file")
    return announce(find_source(path, images=images, split=args.split, prefer=prefer))


def add_source_arguments(parser: argparse.ArgumentParser, word: str) -> None:
    """Add the arguments that all these tools share; `word` is part of the default output name."""
    add_data_arguments(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="image folder if SOURCE is an annotation file (default: process annotations only)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="new COCO folder, or an annotation file to write annotations only "
        f"(default: SOURCE-{word} or, without images, SOURCE.{word}.json)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="same",
        help="file format of the images (default: JPEG stays JPEG, everything else becomes PNG)",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=jpeg_quality,
        default=JPEG_QUALITY,
        metavar="Q",
        help=f"quality of JPEG images, 1 to 100 (default: {JPEG_QUALITY})",
    )
