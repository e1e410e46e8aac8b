"""What the export commands print."""

from __future__ import annotations

from pathlib import Path

from tinydet.runtime.backends import MODEL_FILES
from tinydet.spec import ModelSpec


def infer_command(model: Path, spec: ModelSpec) -> str:
    """Return the command that runs `model`. It names the file unless `deploy/infer.py` finds it without."""
    found = str(model) in MODEL_FILES
    return f"python deploy/infer.py {'' if found else f'--model {model} '}--image scene.jpg --tile {spec.tile}"
