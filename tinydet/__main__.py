"""`tinydet COMMAND`, also `python -m tinydet COMMAND`: the table of all commands and sub-commands."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tinydet import __version__
from tinydet._internal.arguments import quoted
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet._internal.habits import COMMANDS as HABITS
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
            "verify": Entry(
                "tinydet.export.verify_command",
                "",
                "compare an exported model with the one that it was made from",
                plugins=True,
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
    "data": Group(
        "convert, check and describe datasets; cut, erase and rescale them",
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
    "gradients": Entry("tinydet.study.gradients", "train", "measure how alpha changes the gradients of a model"),
    "seamtest": Entry("tinydet.study.seamtest", "", "measure how detections differ where tiles meet"),
}


FIRST_STEPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("infer", "photo.jpg"), "scan an image with the bundled model"),
    (("train", "my/train", "--val", "my/val"), "train on your own images"),
    (("export", "onnx", "model.pth"), "a model without PyTorch"),
    (("infer", "flight/"), "scan a folder with it"),
)


@command("")
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words = _without_task(words)
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
    word = words[0]
    if word in commands:
        return word
    inside = f" of {tinydet_command(group)}" if group else ""
    label = program(*group.split())
    if word.startswith("-"):
        raise ValueError(f"unknown option {word}{inside}; name a command first, as in `{label} {next(iter(commands))}`")
    for other, entry in COMMANDS.items():
        if isinstance(entry, Group) and other != group and word in entry.commands:
            raise _unknown(word, inside, tinydet_command(other, word))
    if word in COMMANDS:
        raise _unknown(word, inside, tinydet_command(word))
    if (known := HABITS.get(word)) is not None and known != (group, word):
        raise _unknown(word, inside, tinydet_command(*known))
    if found := similar(word, commands):
        raise _unknown(word, inside, alternatives(tinydet_command(*group.split(), name) for name in found))
    raise ValueError(f"unknown command {quoted(word)}{inside}; choose {alternatives(commands)}")


def _without_task(words: list[str]) -> list[str]:
    """Drop what precedes the mode in commands of Ultralytics: `detect train`, `task=detect mode=train`."""
    rest = words[1:] if words and words[0].removeprefix("task=") == "detect" else words
    mode = rest[0].removeprefix("mode=") if rest else ""
    return [mode, *rest[1:]] if mode in COMMANDS or mode in HABITS else words


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
