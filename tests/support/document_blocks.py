"""Run the Python blocks of a document in turn."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Mapping

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PACKAGES = re.compile(r"# needs: (.*)")


def run_blocks(
    text: str, replacements: Mapping[str, str], *, leave_out: Collection[str] = (), **variables: object
) -> tuple[dict[str, object], set[str]]:
    """Run the blocks whose packages are installed.

    Args:
        text: of the document.
        replacements: for lines of the document, what runs in their place.
        leave_out: packages whose blocks are not run.
        variables: that the first block finds.

    Returns:
        The variables after the last block, and the packages whose blocks were not run.

    Raises:
        AssertionError: the document has no blocks, or lacks a line that is to be replaced.
    """
    for line, other in replacements.items():
        assert line in text, f"no line {line!r}"
        text = text.replace(line, other)
    found: dict[str, object] = {"__name__": "document", **variables}
    missing: set[str] = set()
    blocks = BLOCK.findall(text)
    assert blocks
    for block in blocks:
        needed = PACKAGES.search(block)
        packages = needed[1].split(", ") if needed else []
        absent = {name for name in packages if name in leave_out or not importlib.util.find_spec(name)}
        missing |= absent
        if not absent:
            exec(compile(block, "document", "exec"), found)
    return found, missing
