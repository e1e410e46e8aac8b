"""The command `tinydet COMMAND`, which is also `python -m tinydet COMMAND`: a table of names, nothing else."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tinydet import __version__
from tinydet._command import Main, command
from tinydet._extras import needs_extra


class Entry(NamedTuple):
    module: str  # holds `main`; imported only when its command is asked for
    extra: str  # what its imports need beyond the runtime; empty where they need nothing
    summary: str


COMMANDS = {
    "data": Entry("tinydet.data.__main__", "", "convert, check and describe data sets; cut, erase and rescale them"),
    "salpha": Entry("tinydet.salpha", "", "count objects for each pyramid level and print the fusion factors"),
    "train": Entry("tinydet.train", "train", "train a detector, with --salpha on the embedded data or on yours"),
    "sweep": Entry("tinydet.sweep", "train", "train with every fusion factor of a grid, and draw AP by alpha"),
    "evaluate": Entry("tinydet.evaluate", "", "score a model: AP by object size"),
    "export": Entry("tinydet.export.__main__", "", "write model.onnx, build model.engine, compare with the checkpoint"),
    "gradients": Entry("tinydet.gradients", "train", "measure what alpha does to the gradients of a trained model"),
    "infer": Entry("tinydet.runtime.__main__", "", "find objects in pictures of any size with an exported model"),
    "seamtest": Entry("tinydet.runtime.seamtest", "", "scan a scene on two shifted grids and report where they differ"),
    "synthetic": Entry("tinydet.data.synthetic", "", "draw annotated scenes with tiny people, many or one"),
}


@command("")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(arguments[:1]).command  # the rest, --help included, belongs to the command
    return _load(COMMANDS[name])(arguments[1:])


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tinydet",
        usage="tinydet COMMAND [ARGUMENTS]",
        description="Objects of a few pixels in very large pictures: train with a fusion factor, deploy without one.",
        epilog=f"commands:\n{table}\n\n`tinydet COMMAND --help` explains a command. Start with: tinydet train --salpha",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the names below")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _load(entry: Entry) -> Main:
    with needs_extra(entry.extra):
        main: Main = importlib.import_module(entry.module).main
    return main


if __name__ == "__main__":
    sys.exit(main())
