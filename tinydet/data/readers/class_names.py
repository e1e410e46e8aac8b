"""Files of class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinydet._internal.extras import needs_extra
from tinydet.data.readers.text_files import numbered_lines


def read_class_names(path: Path) -> list[str]:
    """Read class names from `data.yaml` (YOLO) or from a text file with one name per line.

    Raises:
        ValueError: not such a file, no names, or a name that is listed twice.
        ModuleNotFoundError: PyYAML is not installed.
    """
    names = _read_yaml(path) if path.suffix in (".yaml", ".yml") else [line for _, line in numbered_lines(path)]
    if not names:
        raise ValueError(f"{path}: no class names; write one per line, in the order of their numbers")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: {repeated[0]!r} is listed twice; class names must differ")
    return names


def _read_yaml(path: Path) -> list[str]:
    """Read the `names` of a data.yaml: a list, or a mapping from numbers."""
    with needs_extra("formats"):
        import yaml
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from error
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"{path}: expected names: [person, car], or names: {{0: person, 1: car}}")
    return [str(name) for name in names]
