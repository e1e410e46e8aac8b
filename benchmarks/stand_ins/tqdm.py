"""A stand-in for tqdm on a machine without it: it shows no progress and writes messages as lines."""

from __future__ import annotations

import sys
from typing import Any


class tqdm:
    """A progress bar that shows nothing."""

    disable = True

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __class_getitem__(cls, item: Any) -> type[tqdm]:
        return cls

    def __enter__(self) -> tqdm:
        return self

    def __exit__(self, *reason: Any) -> None:
        pass

    @classmethod
    def write(cls, text: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        print(text, file=file or sys.stdout, end=end)

    def _nothing(self, *args: Any, **options: Any) -> None:
        pass

    update = close = clear = refresh = _nothing
    set_description_str = set_postfix_str = set_postfix = _nothing
