"""The `tinydet train` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet.train.config import config_of


@command("train", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    config = config_of(argv)
    config.resolve()  # refuses wrong paths before torch is imported
    with needs_extra("train"):
        from tinydet.train.run import StoppedError, train
        from tinydet.train.tile_filter import train_filter
    try:
        if config.filter is None:
            train(config)
        else:
            train_filter(config)
    except StoppedError as stopped:
        print(f"\n{stopped}" if str(stopped) else "", end="\n" if str(stopped) else "")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
