"""Suggested commands, quoted for pasting into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """Join words into a command line, with shell quoting.

    A path that starts with a dash gets the prefix `./`, so that it is not taken for an option.

    >>> command_line("tinydet", "export", "onnx", Path("my models/m 1.pth"), "--tile", "640")
    "tinydet export onnx 'my models/m 1.pth' --tile 640"
    >>> command_line("rm", Path("-r"))
    'rm ./-r'
    """
    dashed = [isinstance(word, Path) and str(word).startswith("-") for word in words]
    return shlex.join(f"./{word}" if dash else str(word) for word, dash in zip(words, dashed, strict=True))
