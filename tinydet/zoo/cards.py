"""Model cards: what a bundled model was trained for and on, how well it finds what, and what it misses.

A card is `tinydet/bundled/NAME.json`. Its statements are written by hand. `measured` is written by
`benchmarks/cards.py`, which also puts the tables of `tables` into `docs/NAME.md`. Nothing else repeats the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet._internal.json_files import checked, read_json
from tinydet.runtime.bundled import BUNDLED, model_path

IOU = "0.50"
MISSES = ("found", "missed")
FALSE = ("duplicate", "localization", "background")


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        task: what the model finds, on what kind of images.
        data: the training data. `license`: of the data; `attribution`: what it asks to be named.
        weights_license: of the model.
        limits: what it cannot do, one sentence each.
        measured: results of `benchmarks/cards.py` with their command, date, machine and versions; empty: none yet.
    """

    task: str
    data: str
    license: str
    attribution: str
    weights_license: str
    limits: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)


def card_path(name: str) -> Path:
    """Return the file of the card of a bundled model."""
    return model_path(name, ".json")


def read_card(name: str) -> Card:
    """Return the card of a bundled model.

    Raises:
        ValueError: the file is damaged.
    """
    path = card_path(name)
    return checked(Card, read_json(path), source=path, what="model card", remedy="install tinydet again")


def average_precision(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return AP at IoU 0.5 by class, and by range of sizes; ranges without objects are left out.

    >>> average_precision({"classes": {"car": {"AP": {"all": {"0.50": 0.5}, "tiny": {"0.50": -1}}}}})
    {'car': {'all': 0.5}}
    """
    return {
        name: {size: by_iou[IOU] for size, by_iou in values["AP"].items() if by_iou[IOU] >= 0}
        for name, values in measured.get("classes", {}).items()
    }


def speed_text(measured: Mapping[str, Any]) -> str:
    """Return the measured speed with where it was measured; an empty text if it was not."""
    speed = measured.get("speed")
    if not speed:
        return ""
    return f"{speed['tiles_per_second']:.3g} tiles/s of {speed['tile']} px on one core of {speed['device']}"


def size_span(low: float, high: float) -> str:
    """Return a range of sides of objects in words."""
    return f"{low:g} to {high:g} px" if high < 1e4 else f"from {low:g} px"


def tables(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the measured part of a card, in Markdown."""
    if not measured:
        yield "Not measured yet."
        return
    classes, ranges = measured["classes"], measured["ranges"]
    sizes = [size for size in ranges if any(size in ap for ap in average_precision(measured).values())]
    spans = ", ".join(f"{size}: {size_span(*ranges[size])}" for size in sizes if size != "all")
    yield f"AP at IoU 0.5 on {measured['images']} images of {measured['data']}, by the side of the objects ({spans}):"
    yield ""
    yield f"| class | {' | '.join(f'{size}' for size in sizes)} | AP25 | AP75 |"
    yield f"| --- |{' --- |' * (len(sizes) + 2)}"
    for name, values in classes.items():
        cells = [_fraction(values["AP"][size][IOU]) for size in sizes]
        cells += [_fraction(values["AP"]["all"][iou]) for iou in ("0.25", "0.75")]
        yield f"| {name} ({values['objects']['all']}) | {' | '.join(cells)} |"
    yield ""
    yield "Objects that it misses, of all objects, at the score with the best F1:"
    yield ""
    yield f"| class | score | {' | '.join(sizes)} | false detections per image |"
    yield f"| --- | --- |{' --- |' * (len(sizes) + 1)}"
    for name, values in classes.items():
        errors = values["errors"]
        cells = [_missed(errors[size]) for size in sizes]
        false = sum(errors["all"][kind] for kind in FALSE) / measured["images"]
        yield f"| {name} | {values['score']:.2f} | {' | '.join(cells)} | {false:.2f} |"
    yield ""
    clock = measured["speed"]["clock"]
    yield f"Speed, from the {clock}: {speed_text(measured)}."
    yield ""
    yield f"Measured with `{measured['command']}` on {measured['date'][:10]}."


def summary(name: str, card: Card) -> dict[str, Any]:
    """Return a row of the list of models, as JSON values."""
    measured = card.measured
    return {
        "name": name,
        "summary": BUNDLED[name],
        "task": card.task,
        "data": card.data,
        "license": card.license,
        "AP50": average_precision(measured),
        "measured_on": measured.get("data"),
        "bytes": model_path(name).stat().st_size,
        "speed": measured.get("speed"),
        "command": measured.get("command"),
    }


def _fraction(value: float) -> str:
    return "" if value < 0 else f"{value:.3f}"


def _missed(errors: Mapping[str, int]) -> str:
    objects = sum(errors[kind] for kind in MISSES)
    return f"{errors['missed']} of {objects}" if objects else ""
