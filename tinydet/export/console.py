"""What the export commands show on a terminal while and after they work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from tinydet.runtime.backends import MODEL_FILES
from tinydet.spec import ModelSpec


@contextmanager
def progress_line(title: str) -> Iterator[Callable[[str], None]]:
    """Show the current step on one line of stderr, if it is a terminal; yield the function that sets the step."""
    with tqdm(bar_format="{desc}", disable=None, leave=False, file=sys.stderr) as line:
        line.set_description_str(title)
        yield lambda step: line.set_description_str(f"{title}: {step}")


def log_line(line: str) -> None:
    """Write a line to stderr above the progress line."""
    tqdm.write(line, file=sys.stderr)


def infer_command(model: Path, spec: ModelSpec) -> str:
    """Return the command that runs `model`. It names the file unless `deploy/infer.py` finds it without."""
    found = str(model) in MODEL_FILES
    return f"python deploy/infer.py {'' if found else f'--model {model} '}--image scene.jpg --tile {spec.tile}"
