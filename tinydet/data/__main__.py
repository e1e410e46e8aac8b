"""The commands `tinydet data COMMAND`: a table of names, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from tinydet._command import command

COMMANDS = {
    "convert": "read TinyPerson, CityPersons, Pascal VOC, YOLO, VisDrone or DOTA, write COCO JSON",
    "stats": "sizes, shapes, density and fusion factors of a data set, and what follows for training",
    "check": "find every fault of an annotation file and its pictures; --fix writes a repaired copy",
    "cut": "cut images into pieces with their boxes, as the TinyPerson benchmark or our tiles do",
    "erase": "paint regions to ignore over with their mean colour, leave dense images out",
    "rescale": "write smaller or larger images with their boxes, as for Tiny CityPersons and COCO100",
    "scale-match": "resize each image so that object sizes spread as in another data set",
}


class Subcommand(Protocol):
    """A module that is a subcommand; `run` returns the exit code, or what was done, in words to print."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int | str: ...


@command("data")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(arguments[:1]).command  # the rest, --help included, belongs to the command
    module = load(name)
    inner = argparse.ArgumentParser(prog=f"tinydet data {name}", description=COMMANDS[name])
    module.add_arguments(inner)
    done = module.run(inner.parse_args(arguments[1:]))
    if isinstance(done, int):
        return done
    print(done)
    return 0


def load(name: str) -> Subcommand:
    """The module of a subcommand, imported when it is asked for."""
    match name:
        case "convert":
            from tinydet.data import convert

            return convert
        case "stats":
            from tinydet.data import stats

            return stats
        case "check":
            from tinydet.data import check

            return check
        case "cut":
            from tinydet.data import sub_images

            return sub_images
        case "erase":
            from tinydet.data import erase

            return erase
        case "rescale":
            from tinydet.data import rescale

            return rescale
        case "scale-match":
            from tinydet.data import scale_match

            return scale_match
    raise AssertionError(name)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tinydet data",
        usage="tinydet data COMMAND [ARGUMENTS]",
        description="Tools for annotated images. No picture is changed in place: results are new files or folders.",
        epilog=f"commands:\n{table}\n\n`tinydet data COMMAND --help` explains a command. "
        "Start with: tinydet data check my/annotations.json --images my/images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the names below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
