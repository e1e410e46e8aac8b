"""`tinydet models show`: the card of a bundled model, or the description of a model file in plain words."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tinydet._internal.input_files import check_file
from tinydet._internal.suggestions import did_you_mean, did_you_mean_path
from tinydet.runtime.bundled import BUNDLED, FOLDER, model_path
from tinydet.runtime.model_files import size_in_bytes
from tinydet.spec import ModelSpec
from tinydet.zoo.cards import Card, read_card, tables
from tinydet.zoo.describe import spec_of, spec_rows

EXAMPLES = ("thermal", "model.onnx --json")
WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the card of a bundled model: what it finds, how well, and what it misses. Describe any exported model, "
        "engine or checkpoint: what it takes, finds and was trained on."
    )
    parser.add_argument("model", type=Path, metavar="NAME|FILE", help="a bundled model, or a model file")
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(args: argparse.Namespace) -> str:
    path = model_path(args.model)
    if not path.exists():
        raise FileNotFoundError(
            f"{args.model} does not exist; name a model file, or a bundled model: {', '.join(BUNDLED)}"
            f"{did_you_mean(str(args.model), BUNDLED) or did_you_mean_path(path)}"
        )
    check_file(path, "name a model file")
    spec = spec_of(path)
    card = read_card(path.stem) if path.parent == FOLDER and path.stem in BUNDLED else None
    if args.json:
        values = {"path": str(path), "bytes": size_in_bytes(path), "spec": dataclasses.asdict(spec)}
        values["card"] = None if card is None else dataclasses.asdict(card)
        return json.dumps(values, indent=1, ensure_ascii=False)
    return "\n".join(_lines(path, spec, card))


def _lines(path: Path, spec: ModelSpec, card: Card | None) -> Iterator[str]:
    yield f"{path} ({size_in_bytes(path) / 1e6:.1f} MB)"
    yield ""
    if card is not None:
        yield from _rows(
            [
                ("task", card.task),
                ("data", f"{card.data} ({card.license})"),
                ("", card.attribution),
                ("weights", card.weights_license),
            ]
        )
    yield from _rows(spec_rows(spec))
    if card is None:
        return
    yield ""
    yield from _plain(tables(card.measured))
    yield "What it cannot do:"
    for limit in card.limits:
        yield from textwrap.wrap(limit, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _rows(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> Iterator[str]:
    for label, text in rows:
        yield from textwrap.wrap(text, WIDTH, initial_indent=f"{label:12}", subsequent_indent=" " * 12)


def _plain(lines: Iterator[str]) -> Iterator[str]:
    """Yield Markdown lines for a terminal, with the cells of tables aligned."""
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set(line) - set("|- "):
                table.append(cells)
            continue
        if table:
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for row in table:
                yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            table = []
        yield from textwrap.wrap(line.replace("`", ""), WIDTH) or [""]
