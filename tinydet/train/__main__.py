"""The `tinydet train` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinydet._internal.command import command
from tinydet.train.options import parser
from tinydet.train.run import StoppedError, _train


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    try:
        _train(parser().parse_args(argv), lambda line: print(line, flush=True))
    except StoppedError as stopped:
        print(f"\n{stopped}" if str(stopped) else "", end="\n" if str(stopped) else "")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
