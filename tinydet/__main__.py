"""`tinydet COMMAND`, also `python -m tinydet COMMAND`: the table of all commands and sub-commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tinydet import __version__
from tinydet._internal.arguments import Parser
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra


class Entry(NamedTuple):
    """A command (a module with `main(argv)`) or a sub-command (one with `add_arguments(parser)` and `run(args)`)."""

    module: str  # imported only when its command is called
    extra: str  # the extra its imports need beyond the runtime; empty if they need none
    summary: str


class Group(NamedTuple):
    """A command that consists of sub-commands."""

    summary: str
    epilog: str
    commands: Mapping[str, Entry]


COMMANDS: dict[str, Entry | Group] = {
    "data": Group(
        "convert, check and describe datasets; cut, erase and rescale them",
        "No image is changed in place: results are new files or folders.\n"
        "Start with: tinydet data check my/annotations.json --images my/images",
        {
            "convert": Entry(
                "tinydet.data.convert",
                "",
                "convert TinyPerson, CityPersons, Pascal VOC, YOLO, VisDrone or DOTA annotations to COCO JSON",
            ),
            "stats": Entry(
                "tinydet.study.dataset_stats", "", "report object sizes, shapes, density, fusion factors and advice"
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
    ),
    "salpha": Entry("tinydet.salpha.__main__", "", "compute the fusion factors of a dataset (S-alpha)"),
    "train": Entry("tinydet.train.__main__", "train", "train a detector on your data or on the built-in dataset"),
    "sweep": Entry("tinydet.study.sweep", "train", "train with a grid of fusion factors and plot AP against alpha"),
    "evaluate": Entry("tinydet.evaluate.__main__", "", "compute AP and miss rate by object size"),
    "export": Group(
        "export a trained detector to ONNX or TensorRT, and verify the result",
        "Start with: tinydet export onnx model.pth",
        {
            "onnx": Entry(
                "tinydet.export.onnx_command",
                "",
                "export a checkpoint to ONNX; convert an ONNX file to FP16 or INT8",
            ),
            "engine": Entry(
                "tinydet.export.engine_command", "", "build a TensorRT or TensorRT-RTX engine from a checkpoint or ONNX"
            ),
            "verify": Entry(
                "tinydet.export.verify_command", "", "compare an exported model with the one that it was made from"
            ),
            "freeze": Entry(
                "tinydet.export.freeze_command", "", "replace attention in a checkpoint by constant factors"
            ),
        },
    ),
    "gradients": Entry("tinydet.study.gradients", "train", "measure how alpha changes the gradients of a model"),
    "infer": Entry("tinydet.infer.__main__", "", "run an exported model on images, rasters and videos of any size"),
    "seamtest": Entry("tinydet.study.seamtest", "", "measure how detections differ where tiles meet"),
    "synthetic": Entry("tinydet.data.synthetic", "", "generate annotated scenes with tiny people"),
}


@command("")
def main(argv: Sequence[str] | None = None) -> int:
    name, arguments = _choose(
        "tinydet",
        "Train, export and run detectors for tiny objects in very large images.",
        "Start with: tinydet train --salpha",
        COMMANDS,
        list(sys.argv[1:] if argv is None else argv),
    )
    entry = COMMANDS.get(name)
    if entry is None:
        return 2
    if isinstance(entry, Entry):
        return int(_load(entry).main(arguments))
    return _run_in_group(name, entry, arguments)


def _run_in_group(group: str, entry: Group, arguments: list[str]) -> int:
    summary = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    name, rest = _choose(f"tinydet {group}", summary, entry.epilog, entry.commands, arguments)
    if name not in entry.commands:
        return 2

    @command(f"{group} {name}")
    def run(argv: Sequence[str] | None = None) -> int:
        module = _load(entry.commands[name])
        summary = entry.commands[name].summary
        parser = Parser(prog=f"tinydet {group} {name}", description=f"{summary[0].upper()}{summary[1:]}.")
        module.add_arguments(parser)
        result = module.run(parser.parse_args(argv))
        if isinstance(result, str):
            print(result)
            return 0
        return int(result)

    return run(rest)


def _choose(
    prog: str, description: str, epilog: str, commands: Mapping[str, Entry | Group], arguments: list[str]
) -> tuple[str, list[str]]:
    """The command that `arguments` start with, and its own arguments; without arguments print help, return ""."""
    width = max(map(len, commands))
    table = "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in commands.items())
    parser = Parser(
        prog=prog,
        usage=f"{prog} COMMAND [ARGUMENTS]",
        description=description,
        epilog=f"commands:\n{table}\n\n`{prog} COMMAND --help` explains a command. {epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=commands, help="one of the names below")
    if prog == "tinydet":
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    if not arguments:
        parser.print_help(sys.stderr)
        return "", []
    return str(parser.parse_args(arguments[:1]).command), arguments[1:]


def _load(entry: Entry) -> Any:
    with needs_extra(entry.extra):
        return importlib.import_module(entry.module)


if __name__ == "__main__":
    sys.exit(main())
