"""For mkdocstrings: show the doctests of docstrings as code. In Markdown alone, `>>>` is a quote in a quote."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Put a fence around each doctest."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
