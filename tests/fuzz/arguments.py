"""Random values for the options of all commands. The options are taken from the parsers of `tinydet`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.corpus import INFER, TRAIN, YAML, YOLO, Corpus, Parts
from tinydet.__main__ import COMMANDS, Entry

VALUES = (
    *("0", "-1", "1", "2", "3", "24", "0.5", "1e-320", "1e308", "1e11", "nan", "inf", "-inf", "9" * 30, "100%"),
    *("2147483648", "9223372036854775808", "0x10", "1_000", "١٢", "1/3", "1/0", "0.6m", "1e400m", "auto", "none"),
    *("1,2,3", "1,1,1", "0,0", ",", "1:2:0.1", "0:1:1e-9", "2:1:0.1", "640x480", "99999999x99999999", "0x0"),
    *("", " ", "a", "a" * 300, "é", "\udcff", "a\nb", "%s", "{}", "-", "cuda", "cuda:99", "cpu"),
    *("person", "'car'", "person,car", "coco,csv", "coco,coco"),
)
INPUTS = (
    *("annotations.json", "images", "scene.png", "model.onnx", "results.json", "corners.json", "source", "data.yaml"),
    *("missing", "empty.json", "empty.png", "text.png", "annotations.json/x", "images/*.png", "**", "\x01.png"),
)
OUTPUTS = (
    *("", "/", "/new.json", "/new/", "/new.csv", "/new.gpkg", "/new.png", "/new.pth", "/new", "/a/b/c.json"),
    *("/new.exr", "/new.webp", "/new.mp4", "/\udcff.json", "/船.json", f"/{'a' * 300}.json"),
)
ELSEWHERE = (
    *("/dev/null", "/dev/full", ".", "in", "", "thermal", "~", "-"),
    *("file:in/scene.png", "http://127.0.0.1:1/a.tif"),
)
PATHS = (*(f"in/{name}" for name in INPUTS), *(f"out{name}" for name in OUTPUTS), *ELSEWHERE)

DATA_SET = "in/annotations.json --images in/images --output out/set"
BASES = {  # a command that works, or nearly; its options are repeated or added
    "data convert": ["in/source --from yolo --images in/images"],
    "data stats": ["in/annotations.json"],
    "data check": ["in/annotations.json"],
    "data cut": [DATA_SET],
    "data erase": [DATA_SET],
    "data rescale": [f"{DATA_SET} --factor 0.5"],
    "data scale-match": [f"{DATA_SET} --target in/annotations.json"],
    "salpha": ["in/annotations.json"],
    "train": [f"{TRAIN.removeprefix('train ')} --annotations in/annotations.json --images in/images"],
    "crossval": ["--data in --folds 2 --output out/crossval --dry-run"],
    "sweep": ["--data in --val in --output out/sweep --dry-run"],
    "evaluate": [
        "--gt in/annotations.json --detections in/results.json",
        "--model in/model.onnx --annotations in/annotations.json --images in/images",
    ],
    "export onnx": ["in/model.onnx --precision fp16 --images in/scene.png --output out/half.onnx"],
    "export engine": ["in/model.onnx --dry-run --images in/scene.png --output out/m.engine"],
    "export verify": ["in/model.onnx --images in/scene.png"],
    "export freeze": ["in/missing.pth --data in --val in --output out/m.pth"],
    "gradients": ["in/missing.pth --data in --json out/g.json --plot out/g.png"],
    "infer": [
        f"--image in/scene.png {INFER} --output out/found.json",
        f"--image in/images {INFER} --output out/found/",
        f"--annotations in/annotations.json --images in/images {INFER} --output out/found.json",
    ],
    "seamtest": [f"--image in/scene.png {INFER}"],
    "synthetic": ["out/set --images 1 --size 64x64"],
}
SLOW = ("crossval", "export engine", "export freeze", "export onnx", "export verify", "gradients", "sweep", "train")


def arguments(random: Random, corpus: Corpus) -> Parts:
    """Any values for the options of any command."""
    names = list(commands())
    name = random.choice(names)
    if name in SLOW and random.random() < 0.6:
        name = random.choice(names)
    argv = random.choice(BASES.get(name, [""])).split()
    options = parsers()[name]
    for _ in range(random.choice([1, 1, 2, 3])):
        action = random.choice(options)
        if action.option_strings:
            argv.append(random.choice(action.option_strings))
        count = {None: 1, "?": 1, "*": 2, "+": random.choice([1, 2])}.get(action.nargs, action.nargs)
        argv += [argument(random, action) for _ in range(int(count))]
        if random.random() < 0.05:
            argv.remove(random.choice(argv))
    inputs = corpus.select("annotations.json results.json corners.json images scene.png model.onnx")
    inputs |= {"empty.json": b"", "empty.png": b"", "text.png": b"hello"}
    inputs |= {"source/a.txt": YOLO.encode(), "data.yaml": YAML.encode()}
    return [*name.split(), *argv], inputs, {}


def argument(random: Random, action: argparse.Action) -> str:
    """A value for an option, often one that it takes."""
    if action.choices is not None and random.random() < 0.7:
        return str(random.choice(list(action.choices)))
    is_path = action.type is Path or action.metavar in ("PATH", "FILE", "DIR", "SCENE") or not action.option_strings
    return random.choice(PATHS if is_path and random.random() < 0.8 else VALUES)


def commands() -> dict[str, Entry]:
    """Return every command and sub-command by its words."""
    found: dict[str, Entry] = {}
    for name, entry in COMMANDS.items():
        found |= (
            {name: entry} if isinstance(entry, Entry) else {f"{name} {k}": sub for k, sub in entry.commands.items()}
        )
    return found


@functools.cache
def parsers() -> dict[str, list[argparse.Action]]:
    """Return the options of every command."""
    from tinydet.__main__ import main

    found = {}
    for name in commands():
        with caught_parser() as caught:
            main([*name.split(), MARK])
        found[name] = [action for action in caught[-1]._actions if not isinstance(action, argparse._HelpAction)]
        assert found[name], name
    return found


MARK = "--help"  # the only argument of a command that is run for its parser


class Caught(BaseException):
    """Ends a command where it parses its arguments."""


@contextmanager
def caught_parser() -> Iterator[list[argparse.ArgumentParser]]:
    """Collect the parser of the command that the block runs, and end it there."""
    caught: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_known_args

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if args and list(args)[-1:] == [MARK]:
            caught.append(self)
            raise Caught
        return original(self, args, namespace)

    argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign, assignment]
    try:
        yield caught
    except Caught:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
