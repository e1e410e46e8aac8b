"""`python -m tinydet.export`: the sub-commands of `tinydet export`, for the scripts in `export/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinydet.__main__ import main as run_tinydet
from tinydet._internal.command import command


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    return run_tinydet(["export", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
