"""What the export commands print."""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.shell import command_line
from tinydet.runtime.backends import MODEL_FILES
from tinydet.spec import ModelSpec


def infer_command(model: Path, spec: ModelSpec) -> str:
    """Return the command that runs `model`. It names the file unless `deploy/infer.py` finds it without."""
    found = str(model) in MODEL_FILES
    named = () if found else ("--model", model)
    return command_line("python", "deploy/infer.py", *named, "--image", "scene.jpg", "--tile", str(spec.tile))
