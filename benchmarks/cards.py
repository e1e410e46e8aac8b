"""Measure a bundled model and write the results to its card, its page and its pictures.

    python benchmarks/cards.py thermal --data DIR/hituav-val

The model runs on an annotated dataset. For each class, AP by size, and at the score with the best F1 the found and the
missed objects by size and the false detections; and the speed on one core, from the CPU time of single tiles. The
results are stored as `measured` in tinydet/bundled/NAME.json, which `tinydet models` shows. Their tables replace those
of docs/NAME.md and README.md. docs/NAME-CLASS.jpg shows the image with the most found objects of a class,
docs/NAME-misses.jpg the image with the most errors.

With --tables, only the tables are written again, from the stored results.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from timing import interleaved, warm_up

from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet._internal.progress import Bar
from tinydet.data.coco import Dataset, open_image
from tinydet.evaluate.diagnosis import Diagnosis, diagnose
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.run import Evaluation, find_data, prepare
from tinydet.evaluate.score import Scores, score_detections
from tinydet.evaluate.score_model import DatasetDetections
from tinydet.evaluate.worst_images import draw_worst
from tinydet.runtime import load
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.bundled import BUNDLED, model_path
from tinydet.zoo.cards import Card, average_precision, card_path, read_card, tables

MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end of measured -->)", re.S)
RUNS, SECONDS, WARM = 20, 60.0, 20.0


@command("benchmarks/cards.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if not args.tables:
        card = dataclasses.replace(read_card(args.model), measured=measure(args.model, args.data))
        write_json(card_path(args.model), dataclasses.asdict(card))
        print(f"wrote {card_path(args.model)}")
    for page, lines in pages().items():
        page.write_text(replaced(page, lines), encoding="utf-8")
        print(f"wrote {page}")
    return 0


def pages() -> dict[Path, list[str]]:
    """Return the lines that the cards give each page: its own card, and all of them in the README."""
    cards = {name: read_card(name) for name in BUNDLED}
    found = {ROOT / "docs" / f"{name}.md": [*tables(card.measured), "", *limits(card)] for name, card in cards.items()}
    return {**found, ROOT / "README.md": list(overview(cards))}


def limits(card: Card) -> Iterator[str]:
    """Yield what a model cannot do, as a list in Markdown."""
    yield "What it cannot do:"
    yield ""
    yield from (f"- {limit}" for limit in card.limits)


def overview(cards: Mapping[str, Card]) -> Iterator[str]:
    """Yield a table of all bundled models in Markdown."""
    yield "| model | what it finds | trained on | AP50 | size |"
    yield "| --- | --- | --- | --- | --- |"
    for name, card in cards.items():
        ap = ", ".join(f"{label} {by_size['all']:.3f}" for label, by_size in average_precision(card.measured).items())
        where = f"{ap} (on {card.measured['images']} images of {card.measured['data']}; `{card.measured['command']}`)"
        size = f"{model_path(name).stat().st_size / 1e6:.1f} MB"
        yield f"| [`{name}`](docs/{name}.md) | {BUNDLED[name]} | {card.data} | {where} | {size} |"


def replaced(page: Path, lines: Sequence[str]) -> str:
    """Return the text of a page with new lines in its measured part.

    Raises:
        ValueError: the page has no place for them.
    """
    text = page.read_text(encoding="utf-8")
    if not MEASURED.search(text):
        raise ValueError(f"{page} lacks the lines <!-- measured --> and <!-- end of measured -->; add them")
    wrapped = [part for line in lines for part in wrap(line)]
    block = "\n".join(("", *wrapped, "", ""))
    return MEASURED.sub(lambda _: block, text)


def wrap(line: str) -> list[str]:
    """Return a line of Markdown as lines of at most 120 characters; a row of a table is one line."""
    if not line or line.startswith("|"):
        return [line]
    return textwrap.wrap(line, 120, subsequent_indent="  " if line.startswith("- ") else "", break_on_hyphens=False)


def measure(name: str, data: Path) -> dict[str, Any]:
    """Run a bundled model on a dataset; return the part `measured` of its card, and write the pictures."""
    evaluation = prepare(name, find_data(name, data))
    dataset = evaluation.dataset
    with Bar(len(dataset.images), "image") as bar:
        found = evaluation.detect(progress=bar.update)
    rules = choose_protocol("coco")
    assert rules.precision is not None
    classes = {}
    for class_name in evaluation.backend.spec.classes:
        scores = score_of(dataset, found, [class_name])
        diagnosis = diagnose(scores)
        classes[class_name] = class_results(scores, diagnosis)
        picture(name, class_name, evaluation, scores, diagnosis)
    everything = score_of(dataset, found, evaluation.backend.spec.classes)
    misses(name, dataset, everything, diagnose(everything))
    speed = speed_of(name, dataset)
    ranges = {size: [low**0.5, high**0.5] for size, (low, high) in rules.precision.areas.items()}
    return {
        "command": f"python benchmarks/cards.py {name} --data {data.name}",
        **environment(),
        "data": data.name,
        "images": len(dataset.images),
        "ranges": ranges,
        "classes": classes,
        "speed": speed,
    }


def score_of(dataset: Dataset, found: DatasetDetections, classes: Sequence[str]) -> Scores:
    """Score the detections of some classes with the protocol `coco`."""
    known = [name for name in classes if name in dataset.classes]
    return score_detections(
        dataset.document(), found.detections, choose_protocol("coco"), categories=known, image_ids=found.image_ids
    )


def class_results(scores: Scores, diagnosis: Diagnosis) -> dict[str, Any]:
    """Return AP and number of objects by size, and the errors by size at the score with the best F1."""
    sizes = scores.sizes_json()
    return {
        "AP": sizes["AP"],
        "objects": {
            size: sum(errors[kind] for kind in ("found", "missed")) for size, errors in diagnosis.by_size.items()
        },
        "score": round(diagnosis.score, 4),
        "errors": diagnosis.by_size,
    }


def picture(name: str, class_name: str, evaluation: Evaluation, scores: Scores, diagnosis: Diagnosis) -> None:
    """Draw the detections on the image with the most found objects of a class."""
    counts = np.bincount(scores.truth.image[diagnosis.found], minlength=len(scores.truth.image_ids))
    file_name = scores.truth.file_names[int(counts.argmax())]
    image_dir = evaluation.dataset.image_dir
    assert image_dir is not None
    model = load(name, score=diagnosis.score)
    model.detect(image_dir / file_name).plot(ROOT / "docs" / f"{name}-{class_name}.jpg", legend=True)


def misses(name: str, dataset: Dataset, scores: Scores, diagnosis: Diagnosis) -> None:
    """Draw the errors on the image with the most of them."""
    assert dataset.image_dir is not None
    with tempfile.TemporaryDirectory() as folder:
        for path in draw_worst(scores.truth, diagnosis, dataset.image_dir, Path(folder), count=1):
            shutil.copyfile(path, ROOT / "docs" / f"{name}-misses.jpg")


def speed_of(name: str, dataset: Dataset) -> dict[str, Any]:
    """Measure the CPU time of single tiles on one thread; other processes hardly affect it."""
    backend: Backend = open_model(Path(name), threads=1)
    tile = backend.spec.tile
    with open_image(dataset, 0, stretch=backend.spec.stretch) as scene:
        width, height = min(tile, scene.width), min(tile, scene.height)
        images = np.zeros((1, tile, tile, 3), np.uint8) + np.array(backend.spec.pad, np.uint8)
        images[0, :height, :width] = scene.read(0, 0, width, height)

    def run() -> None:
        backend.run(images)

    warm_up(run, seconds=WARM)
    (times,) = interleaved({"tile": run}, runs=RUNS, seconds=SECONDS, clock=time.process_time_ns).values()
    middle = statistics.median(times)
    return {
        "tiles_per_second": round(1000 / middle, 2),
        "milliseconds": [round(float(value), 2) for value in np.percentile(times, [5, 50, 95])],
        "clock": "CPU time of the process",
        "tile": tile,
        "threads": 1,
        "device": environment()["machine"]["processor"],
        "backend": backend.name,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", choices=BUNDLED, help="name of a bundled model")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data" / "hituav-val", metavar="DIR",
        help="annotated dataset to measure on (default: ../shared/data/hituav-val)")  # fmt: skip
    add("--tables", action="store_true", help="write only the tables of the page, from the stored results")
    args = parser.parse_args(argv)
    if not args.tables and not args.data.is_dir():
        parser.error(f"{args.data} does not exist; name an annotated dataset with --data")
    return args


if __name__ == "__main__":
    sys.exit(main())
