"""What the export commands print."""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends import MODEL_FILES
from tinydet.spec import ModelSpec


def infer_command(model: Path, spec: ModelSpec) -> str:
    """Return the command that runs `model`. It names the file unless `infer` finds it without."""
    if spec.tile_filter is not None:
        return tinydet_command("infer", "--model", "MODEL", "--image", "scene.jpg", "--skip", model)
    found = str(model) in MODEL_FILES
    named = () if found else ("--model", model)
    return tinydet_command("infer", *named, "--image", "scene.jpg", "--tile", str(spec.tile))
