"""Provenance of a run, saved in its checkpoint: a hash of the data and the commit of the code."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import tinydet
from tinydet.data.coco import Dataset


def data_hash(dataset: Dataset) -> str:
    """Return the SHA-256 of the classes, the training boxes, and the name and size in bytes of every image file.

    Pixels are not read: an image replaced by another of the same size in bytes is not noticed.
    """
    digest = hashlib.sha256(repr((dataset.classes, dataset.category_ids)).encode())
    for values in (dataset.boxes, dataset.labels, dataset.image_index, dataset.ignore):
        digest.update(values.tobytes())
    for i, image in enumerate(dataset.images):
        size = dataset.image_path(i).stat().st_size if dataset.image_dir is not None else 0
        digest.update(repr((image.file_name, image.width, image.height, size)).encode())
    return digest.hexdigest()


def code_state() -> str:
    """Return the commit that this package is checked out at, marked if files differ from it; empty if unknown."""
    folder = Path(tinydet.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return ""  # installed inside another repository
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
