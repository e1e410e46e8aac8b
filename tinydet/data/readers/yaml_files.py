"""Read YAML files without interpreting their values: every scalar stays text.

YAML 1.1 turns the words `on`, `no` and `null`, and `1e3`, `2024-01-01` and `12:30:45`, into other values, but a class
may have such a name. Tags cannot create objects, and aliased parts are not copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet.data.readers.text_files import read_text

_LARGEST = 1 << 20  # characters; the names of 20,000 classes have half of them, and PyYAML reads 0.2 million a second
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file consists of: dictionaries with text as keys, lists, and text.

    Raises:
        ValueError: the file is not YAML, too large, or not a mapping; or it has a tag of its own, a key that is not
            text or occurs twice, or a part that contains itself. The message names the file and the line.
        ModuleNotFoundError: PyYAML is not installed.
    """
    with needs_extra("formats"):
        import yaml
    text = read_text(path)
    if len(text) > _LARGEST:
        raise ValueError(f"{path}: {len(text):,} characters; a description of a dataset has at most {_LARGEST:,}")
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        content = _Reader(path).value(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ValueError(f"{path}{line}: not YAML ({error.problem or error.context}); correct it") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({reason(error)}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping; expected lines such as names: [person, car]")
    return content


class _Reader:
    """Converts nodes to values, each node once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[int, Any] = {}  # by the identity of the node; None: under construction

    def value(self, node: Any) -> Any:
        if id(node) in self.values:
            if self.values[id(node)] is None:
                raise self.error(node, "a part that contains itself; write it out")
            return self.values[id(node)]
        if node.tag not in _TAGS and node.tag != "!":  # "!" says that a scalar is text
            raise self.error(node, f"the tag {node.tag[:60]!r} is not allowed; remove it")
        self.values[id(node)] = None
        value: Any
        if node.id == "mapping":
            value = {}
            for key_node, item in node.value:
                key = self.value(key_node)
                if not isinstance(key, str):
                    raise self.error(key_node, "a key that is not text; write it as text")
                if key in value:
                    raise self.error(key_node, f"{key[:60]!r} occurs twice; remove one")
                value[key] = self.value(item)
        elif node.id == "sequence":
            value = [self.value(item) for item in node.value]
        else:
            value = node.value
        self.values[id(node)] = value
        return value

    def error(self, node: Any, what: str) -> ValueError:
        return ValueError(f"{self.path} line {node.start_mark.line + 1}: {what}")
