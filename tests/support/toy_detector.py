"""The detector and the backbone of docs/extending.md, not registered."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tinydet.models.backbone_registry import BACKBONES
from tinydet.models.registry import DETECTORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
SOURCE, SCRIPT = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
_BLOCK = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[0]
COMMANDS = _BLOCK.replace("\\\n", "").splitlines()

exec(compile(SOURCE, str(PAGE), "exec"), globals())
ROW, TINY = DETECTORS.pop("toy"), BACKBONES.pop("tiny")
Toy = ROW.load()


@contextlib.contextmanager
def tiny_backbone() -> Iterator[None]:
    """Register `tiny` while the block runs: nine convolutions, for tests of what surrounds the network."""
    BACKBONES["tiny"] = TINY
    try:
        yield
    finally:
        BACKBONES.pop("tiny", None)
