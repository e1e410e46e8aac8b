"""What a run came from: the data by its hash, the code by its commit. Kept in the checkpoint."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import tinydet
from tinydet.data.coco import Dataset


def data_hash(dataset: Dataset) -> str:
    """SHA-256 of the classes, the boxes as they are trained on, and the name and size in bytes of every image file.

    Pictures are not read: one that is replaced by another of the same size in bytes is not noticed.
    """
    digest = hashlib.sha256(repr((dataset.classes, dataset.category_ids)).encode())
    for values in (dataset.boxes, dataset.labels, dataset.image_index, dataset.ignore):
        digest.update(values.tobytes())
    for i, image in enumerate(dataset.images):
        size = dataset.image_path(i).stat().st_size if dataset.image_dir is not None else 0
        digest.update(repr((image.file_name, image.width, image.height, size)).encode())
    return digest.hexdigest()


def code_state() -> str:
    """The commit that this package is checked out at, with a mark where files differ from it; empty elsewhere."""
    folder = Path(tinydet.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return ""  # installed into a folder of somebody else's repository
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
