"""`tinydet COMMAND`, also `python -m tinydet COMMAND`: the table of all commands and sub-commands."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydet import __version__
from tinydet._internal.arguments import quoted
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet._internal.habits import COMMANDS as HABITS
from tinydet._internal.habits import OTHER_TOOLS
from tinydet._internal.parser import Parser
from tinydet._internal.plugins import add_plugin_option
from tinydet._internal.shell import program, tinydet_command
from tinydet._internal.suggestions import alternatives, similar


class Entry(NamedTuple):
    """A command, or a sub-command.

    The module of a command has `main(argv)`, that of a sub-command `add_arguments(parser)`, `run(args)` and `EXAMPLES`,
    the arguments of examples.
    """

    module: str  # imported only when its command is called
    extra: str  # the extra its imports need beyond the runtime; empty if they need none
    summary: str
    plugins: bool = False  # of a sub-command: whether it takes `--plugin FILE.py`


class Group(NamedTuple):
    """A command that consists of sub-commands."""

    summary: str
    start: tuple[str, ...]  # the sub-command to start with, and its arguments
    commands: Mapping[str, Entry]
    note: str = ""
    default: str = ""  # the sub-command that runs without its name; empty: the help is shown


COMMANDS: dict[str, Entry | Group] = {
    "train": Entry("tinydet.train.__main__", "train", "train a detector on your data or on the built-in dataset"),
    "evaluate": Entry("tinydet.evaluate.__main__", "", "compute AP by class, and AP and miss rate by object size"),
    "export": Group(
        "export a trained detector to ONNX or TensorRT, and verify the result",
        ("onnx", "model.pth"),
        {
            "onnx": Entry(
                "tinydet.export.onnx_command",
                "",
                "export a checkpoint to ONNX; convert an ONNX file to FP16 or INT8",
                plugins=True,
            ),
            "engine": Entry(
                "tinydet.export.engine_command",
                "",
                "build a TensorRT or TensorRT-RTX engine from a checkpoint or ONNX",
                plugins=True,
            ),
            "triton": Entry(
                "tinydet.export.triton_command",
                "",
                "write a model repository for NVIDIA's Triton Inference Server",
            ),
            "verify": Entry(
                "tinydet.export.verify_command",
                "",
                "compare an exported model with the one that it was made from",
                plugins=True,
            ),
            "adopt": Entry(
                "tinydet.export.adopt_command",
                "",
                "make a tinydet model of another framework's exported detector",
            ),
            "freeze": Entry(
                "tinydet.export.freeze_command",
                "",
                "replace attention in a checkpoint by constant factors",
                plugins=True,
            ),
        },
    ),
    "infer": Entry("tinydet.infer.__main__", "", "run an exported model on images, rasters and videos of any size"),
    "serve": Entry("tinydet.serve.__main__", "", "answer requests over HTTP with an exported model"),
    "view": Entry("tinydet.serve.view_command", "", "show detections on their scene in a browser, or export the page"),
    "models": Group(
        "list the models that are bundled or at hand, and describe one",
        ("show", "thermal"),
        {
            "list": Entry(
                "tinydet.zoo.list_command", "", "list bundled models, those of a folder, and weights to start from"
            ),
            "show": Entry(
                "tinydet.zoo.show_command", "", "show the card of a bundled model, or describe any model file"
            ),
        },
        "Without a command, `models` lists the models of the current folder.",
        default="list",
    ),
    "data": Group(
        "convert, check, describe and compose datasets; cut, erase and rescale them",
        ("check", "my/annotations.json", "--images", "my/images"),
        {
            "convert": Entry(
                "tinydet.data.convert",
                "",
                "convert a dataset in any known layout to COCO",
            ),
            "stats": Entry(
                "tinydet.study.dataset_stats",
                "",
                "report object sizes, shapes, density, fusion factors and advice",
                plugins=True,
            ),
            "check": Entry(
                "tinydet.data.check", "", "find every fault in an annotation file and its images; --fix repairs a copy"
            ),
            "compose": Entry(
                "tinydet.data.compose", "", "render people and vehicles into aerial photos and drawn streets"
            ),
            "cut": Entry("tinydet.data.sub_images", "", "cut images and their boxes into tiles"),
            "erase": Entry("tinydet.data.erase", "", "fill ignore regions with their mean color; drop dense images"),
            "rescale": Entry(
                "tinydet.data.rescale", "", "resize images and boxes, as for Tiny CityPersons and COCO100"
            ),
            "scale-match": Entry(
                "tinydet.data.scale_match", "", "resize images to match the object sizes of another dataset"
            ),
        },
        "No image is changed in place: results are new files or folders.",
    ),
    "salpha": Entry("tinydet.salpha.__main__", "", "compute the fusion factors of a dataset (S-alpha)"),
    "synthetic": Entry("tinydet.data.synthetic", "", "generate annotated scenes with tiny people"),
    "sweep": Entry("tinydet.study.sweep", "train", "train with a grid of fusion factors and plot AP against alpha"),
    "crossval": Entry("tinydet.study.crossval", "train", "train and score once per fold (cross-validation)"),
    "gradients": Entry("tinydet.study.gradients", "train", "measure how alpha changes the gradients of a model"),
    "seamtest": Entry("tinydet.study.seamtest", "", "measure how detections differ where tiles meet"),
}


FIRST_STEPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("infer", "photo.jpg"), "scan an image with the bundled model"),
    (("train", "my/train", "--val", "my/val"), "train on your own images"),
    (("export", "onnx", "model.pth"), "a model without PyTorch"),
    (("infer", "flight/"), "scan a folder with it"),
)


LONGEST_REST = 500  # characters of arguments that are repeated in a suggestion


@command("")
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words = _translated(words)
    if words[:1] in (["--version"], ["-V"], ["version"]):
        print(f"tinydet {__version__}")
        return 0
    name = _choose("", COMMANDS, words, _help)
    if name is None:
        return 2
    entry = COMMANDS[name]
    if isinstance(entry, Entry):
        return int(_load(entry).main(words[1:]))
    return _run_in_group(name, entry, words[1:])


def _run_in_group(group: str, entry: Group, words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if entry.default and (not words or (words[0].startswith("-") and words[0] not in ("-h", "--help"))):
        words = [entry.default, *words]
    name = _choose(group, entry.commands, words, lambda: _group_help(group, entry))
    if name is None:
        return 2

    @command(f"{group} {name}", plugins=entry.commands[name].plugins)
    def run(argv: Sequence[str] | None = None) -> int:
        module = _load(entry.commands[name])
        summary = entry.commands[name].summary
        parser = Parser(f"{group} {name}", description=_sentence(summary), examples=module.EXAMPLES)
        module.add_arguments(parser)
        if entry.commands[name].plugins:
            add_plugin_option(parser)
        result = module.run(parser.parse_args(argv))
        if isinstance(result, str):
            print(result)
            return 0
        return int(result)

    return run(words[1:])


def _choose(
    group: str, commands: Mapping[str, Entry | Group], words: Sequence[str], help: Callable[[], str]
) -> str | None:
    """Return the command that `words` start with; if there is none, show the help and return None.

    Raises:
        SystemExit: `words` ask for help.
        ValueError: there is no such command. Suggests the one that was probably meant.
    """
    if not words:
        print(help(), end="", file=sys.stderr)
        return None
    if words[0] in ("-h", "--help"):
        print(help(), end="")
        sys.exit(0)
    word, rest = words[0], words[1:]
    if sum(map(len, rest)) > LONGEST_REST:
        rest = []
    if word in commands:
        return word
    if group == "export" and (translated := _export_by_format(words)):
        raise ValueError(f"the formats are commands of their own; run: {tinydet_command('export', *translated)}")
    inside = f" of {tinydet_command(group)}" if group else ""
    for other, entry in COMMANDS.items():
        if isinstance(entry, Group) and other != group and word in entry.commands:
            raise _unknown(word, inside, tinydet_command(other, word, *rest))
    if word in COMMANDS:
        raise _unknown(word, inside, tinydet_command(word, *rest))
    if (known := HABITS.get(word)) is not None and known != (group, word):
        raise _unknown(word, inside, tinydet_command(*known, *rest))
    if right := _meant_input(group, words):
        problem = f"name a command{inside} before {quoted(word)}"
        raise ValueError(f"{problem}; did you mean `{tinydet_command(*right)}`?")
    if word.startswith("-"):
        label = program(*group.split())
        raise ValueError(f"unknown option {word}{inside}; name a command first, as in `{label} {next(iter(commands))}`")
    nested = {f"{name} {each}": (name, each) for name, entry in COMMANDS.items() if isinstance(entry, Group)
              for each in entry.commands} if not group else {}  # fmt: skip
    names = {name: (*group.split(), name) for name in commands} | nested
    if found := similar(word, names):
        raise _unknown(word, inside, alternatives(tinydet_command(*names[name], *rest) for name in found))
    raise ValueError(f"unknown command {quoted(word)}{inside}; choose {alternatives(commands)}")


def _meant_input(group: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the command that was probably meant by `words` that start with its input; empty if they do not."""
    word = words[0]
    suffix = Path(word).suffix.lower()
    if group:
        entry = COMMANDS[group]
        assert isinstance(entry, Group)
        if entry.default and os.path.isdir(word):
            return (group, entry.default, *words)
        is_input = word.startswith(("--model", "--weights", "--data")) or suffix or os.path.exists(word)
        return (group, entry.start[0], *words) if is_input else ()
    if word.startswith("-") or not (suffix or os.path.exists(word)):
        return ()
    if suffix in (".pth", ".pt", ".onnx"):
        return ("export", "onnx" if suffix != ".onnx" else "engine", *words)
    return ("data", "stats", *words) if suffix in (".yaml", ".yml", ".json") else ("infer", *words)


def _export_by_format(words: Sequence[str]) -> list[str]:
    """Translate an export of Ultralytics, `model=best.pt format=engine half=True`; empty if `words` are none."""
    pairs = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    if "format" not in pairs and "model" not in pairs:
        return []
    precision = [name for key, name in (("int8", "int8"), ("half", "fp16")) if pairs.get(key, "").lower() == "true"]
    options = [option for name in precision[:1] for option in ("--precision", name)]
    if size := pairs.get("imgsz"):
        options += ["--tile", size]
    return ["engine" if pairs.get("format") in ("engine", "trt", "tensorrt") else "onnx",
            pairs.get("model", "model.pth"), *options]  # fmt: skip


def _translated(words: list[str]) -> list[str]:
    """Translate commands of other tools.

    What precedes the mode is dropped: `yolo detect train`, `task=detect mode=train`, `sahi coco slice`. A mode with
    arguments such as `source=a.jpg` becomes the command of tinydet, whose parser answers with the line to type.
    """
    rest = words
    while rest and rest[0].removeprefix("task=") in OTHER_TOOLS and len(rest) > 1:
        rest = rest[1:]
    mode = rest[0].removeprefix("mode=") if rest else ""
    if mode not in COMMANDS and mode not in HABITS:
        return words
    typed_as_pairs = any(re.match(r"[a-z]\w*=", word) for word in rest[1:])
    return [*(HABITS.get(mode, (mode,)) if typed_as_pairs and mode not in COMMANDS else (mode,)), *rest[1:]]


def _unknown(word: str, inside: str, right: str) -> ValueError:
    return ValueError(f"unknown command {quoted(word)}{inside}; did you mean `{right}`?")


def _help() -> str:
    lines = [f"usage: {program()} COMMAND [ARGUMENTS]", ""]
    lines += ["Train, export and run detectors for tiny objects in very large images.", "", "first steps:"]
    steps = {tinydet_command(*words): purpose for words, purpose in FIRST_STEPS}
    lines += [f"  {typed:{max(map(len, steps))}}  # {purpose}" for typed, purpose in steps.items()]
    lines += ["", "commands:", *_table({name: entry.summary for name, entry in COMMANDS.items()}), ""]
    lines += [f"`{program()} COMMAND --help` explains a command; --version prints the version."]
    return "\n".join(lines) + "\n"


def _group_help(group: str, entry: Group) -> str:
    typed = program(group)
    lines = [f"usage: {typed} COMMAND [ARGUMENTS]", "", *_filled(_sentence(entry.summary)), "", "commands:"]
    lines += [*_table({name: each.summary for name, each in entry.commands.items()}), ""]
    lines += [*_filled(entry.note), f"`{typed} COMMAND --help` explains a command."]
    lines += [f"Start with: {tinydet_command(group, *entry.start)}"]
    return "\n".join(lines) + "\n"


def _table(summaries: Mapping[str, str]) -> list[str]:
    width = max(map(len, summaries))
    indent = " " * (width + 4)
    rows = (f"  {name:{width}}  {summary}" for name, summary in summaries.items())
    return [line for row in rows for line in textwrap.wrap(row, _columns(), subsequent_indent=indent)]


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, _columns())


def _columns() -> int:
    return shutil.get_terminal_size().columns - 2


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _load(entry: Entry) -> Any:
    with needs_extra(entry.extra):
        return importlib.import_module(entry.module)


if __name__ == "__main__":
    sys.exit(main())
