"""`tinydet models list`: bundled models, models of a folder, and weights to start a training from."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinydet._internal.shell import tinydet_command
from tinydet.models.options import TORCHVISION_BACKBONES
from tinydet.models.registry import DETECTORS
from tinydet.runtime.bundled import BUNDLED
from tinydet.runtime.model_files import read_spec, size_in_bytes
from tinydet.zoo.cards import Card, average_precision, read_card, size_span, speed_text, summary

EXAMPLES = ("", "my/models/ --json")
WIDTH = 110
MOST_NAMES, SOME_NAMES = 12, 8  # classes: all are listed up to the first number, else the second number of them
MODELS = (".onnx", ".xml", ".engine", ".plan")
KINDS = {".onnx": "onnx", ".xml": "openvino"}  # the others are engines
CHECKPOINTS = (".pth", ".pt")
COCO = {
    "task": "80 classes of everyday photos",
    "data": "COCO train2017",
    "license": "torchvision's weights, BSD-3-Clause",
}
IMAGENET = {"task": "features of images", "data": "ImageNet-1k", "license": "torchvision's weights, BSD-3-Clause"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the bundled models with their measured accuracy and speed, the models of a folder, and the weights that "
        "training can start from."
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="DIR",
        help="look for models in this folder (default: .)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(args: argparse.Namespace) -> str:
    if not args.folder.is_dir():
        what = "is a file; describe it: " if args.folder.exists() else "does not exist; name a folder, or run "
        hint = tinydet_command("models", *(["show", str(args.folder)] if args.folder.exists() else []))
        raise ValueError(f"{args.folder} {what}{hint}")
    cards = {name: read_card(name) for name in BUNDLED}
    files = list(_files(args.folder))
    if args.json:
        values = {
            "bundled": [summary(name, card) for name, card in cards.items()],
            "files": files,
            "init": [{"name": "coco", "detectors": names, "weights": enum, **COCO} for enum, names in _coco().items()],
            "backbones": [{"name": name, **IMAGENET} for name in TORCHVISION_BACKBONES],
        }
        return json.dumps(values, indent=1, ensure_ascii=False)
    return "\n".join(_lines(cards, files, args.folder))


def _lines(cards: dict[str, Card], files: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    yield f"Bundled: {tinydet_command('infer', '--model', 'NAME')}, {tinydet_command('train', '--init', 'NAME')}"
    for name, card in cards.items():
        yield from _block(name, _card_lines(name, card))
    yield ""
    where = "this folder" if folder == Path() else folder
    if files:
        yield f"In {where}: {tinydet_command('infer', '--model', 'FILE')}"
        for entry in files:
            yield from _block(entry["name"], [_file_text(entry, folder)])
    else:
        yield f"No models in {where}. Train one: {tinydet_command('train', 'my/train', '--val', 'my/val')}"
    yield ""
    start = tinydet_command("train", "--init", "coco", "--detector", "NAME")
    yield f"To start a training from: {start} (downloaded by torchvision)"
    for enum, names in _coco().items():
        yield from _block(", ".join(names), [f"{enum}: {COCO['task']}, {COCO['data']}; {COCO['license']}"])
    yield ""
    backbones = tinydet_command("train", "--backbone", "NAME")
    yield f"Backbones: {backbones}, with ImageNet weights (--weights-backbone)"
    yield from _block(", ".join(TORCHVISION_BACKBONES), [f"{IMAGENET['data']}; {IMAGENET['license']}"])
    yield from _block("timm:NAME", ["any network of timm with strides 4, 8, 16 and 32 (pip install 'tinydet[timm]')"])
    yield ""
    yield f"More about one: {tinydet_command('models', 'show', next(iter(cards)))}"


def _card_lines(name: str, card: Card) -> Iterator[str]:
    yield card.task
    yield f"data: {card.data} ({card.license})"
    for label, by_size in average_precision(card.measured).items():
        spans = card.measured["ranges"]
        sizes = ", ".join(f"{size_span(*spans[size])} {ap:.3f}" for size, ap in by_size.items() if size != "all")
        yield f"{label}: AP50 {by_size['all']:.3f} (objects of {sizes})"
    if card.measured:
        yield f"on {card.measured['images']} images of {card.measured['data']}: {card.measured['command']}"
    size = f"{summary(name, card)['bytes'] / 1e6:.1f} MB"
    yield ", ".join(filter(None, (size, speed_text(card.measured))))


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what is known of each model file of a folder."""
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        entry: dict[str, Any] = {"name": path.name, "bytes": size_in_bytes(path)}
        if path.suffix in CHECKPOINTS:
            yield {**entry, "kind": "checkpoint"}
        elif path.suffix in MODELS and (path.suffix != ".xml" or path.with_suffix(".bin").exists()):
            entry["kind"] = KINDS.get(path.suffix, "engine")
            try:
                spec = read_spec(path)
            except (ValueError, OSError) as error:
                yield {**entry, "problem": str(error)}
                continue
            yield {
                **entry,
                "classes": list(spec.classes),
                "detector": spec.detector,
                "backbone": spec.backbone,
                "precision": spec.precision,
                "tile": spec.tile,
                "object_sizes": spec.object_sizes,
            }


def _file_text(entry: dict[str, Any], folder: Path) -> str:
    size = f"{entry['bytes'] / 1e6:.1f} MB"
    if entry["kind"] == "checkpoint":
        return f"a checkpoint, {size}; {tinydet_command('models', 'show', folder / entry['name'])} describes it"
    if "problem" in entry:
        return f"cannot be used: {entry['problem']}"
    network = f"{entry['detector']} {entry['backbone']}, {entry['precision']}, tiles of {entry['tile']}"
    classes = entry["classes"]
    shown = ", ".join(classes if len(classes) <= MOST_NAMES else classes[:SOME_NAMES])
    if len(classes) > MOST_NAMES:
        shown += f" and {len(classes) - SOME_NAMES} more"
    return f"{shown}: {network}, {size}"


def _coco() -> dict[str, list[str]]:
    """Return the detectors that each file of COCO weights fits."""
    found: dict[str, list[str]] = {}
    for name, info in DETECTORS.items():
        if info.coco_weights:
            found.setdefault(info.coco_weights, []).append(name)
    return found


def _block(name: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    yield f"  {name}"
    for line in lines:
        yield from textwrap.wrap(line, WIDTH, initial_indent="      ", subsequent_indent="        ")
