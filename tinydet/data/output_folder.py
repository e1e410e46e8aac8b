"""Where the tools that write one dataset from another put the result: the new folder, its images.

A result is a COCO folder (`annotations.json` and `images/`) or an annotation file. It appears only once it is complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import claim
from tinydet._internal.outputs import check_output_files
from tinydet.data.coco import Dataset

JPEG_QUALITY = 100  # with full color resolution: objects of a few pixels have no detail to lose
FORMATS = ("same", "png", "jpg")
_LOSSY = (".jpg", ".jpeg")
_KEPT = (*_LOSSY, ".png")  # formats that every framework reads


def is_annotation_file(path: Path) -> bool:
    return path.name.endswith((".json", ".json.gz"))


def choose_output(source: Path, dataset: Dataset, output: Path | None, word: str) -> Path:
    """Return where the result goes: a new folder, or a file for annotations only.

    Args:
        output: chosen by the user; None makes up a name from `source` and `word`.

    Raises:
        ValueError: the output is the source, a folder that is not empty, or a folder for a dataset without images.
    """
    if output is None:
        if not source.is_dir() and not is_annotation_file(source):  # a description, such as data.yaml
            source = source.parent
        base = Path(os.path.abspath(source)) if source.is_dir() else source
        name = base.name if source.is_dir() else base.name.removesuffix(".gz").removesuffix(".json")
        output = base.with_name(f"{name}.{word}.json" if dataset.image_dir is None else f"{name}-{word}")
    if is_annotation_file(output):
        check_output_files((output,), (dataset.source,))
        return output
    if dataset.image_dir is None:
        raise ValueError(
            f"{output} would be a COCO folder, but {dataset.source} was given without images; name their folder with "
            "--images DIR, or an output .json to write annotations only"
        )
    _check_new(output)
    return output


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; rename it to `path` if the block succeeds, otherwise remove it.

    Raises:
        ValueError: `path` is a file or a folder that is not empty.
        OSError: `path` cannot be written, or another process is writing it.
    """
    path = Path(os.path.abspath(path))
    _check_new(path)
    with claim(path, folder=True):
        work = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
        work.mkdir()
        try:
            yield work
            if path.is_dir():
                path.rmdir()  # it is empty; not every platform renames over an existing folder
            work.rename(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)


class ImageWriter:
    """Write the images of a new dataset to a new folder, each under a unique name.

    Args:
        folder: created by the constructor.
        form: one of `FORMATS`.
        quality: of JPEG images, 1 to 100.
    """

    def __init__(self, folder: Path, form: str = "same", quality: int = JPEG_QUALITY) -> None:
        if form not in FORMATS:
            raise ValueError(f"the image format must be one of {', '.join(FORMATS)}, got {form!r}")
        if not 1 <= quality <= 100:
            raise ValueError(f"the JPEG quality must be 1 to 100, got {quality}")
        self.folder, self.form, self.quality = folder, form, quality
        self._taken: set[str] = set()
        folder.mkdir()

    def link(self, name: str, source: Path) -> str:
        """Give a file a second name in the folder, or copy it to another file system; return its file name."""
        path, file_name = self._reserve(name, PurePosixPath(name).suffix)
        try:
            os.link(os.path.realpath(source), path)
        except OSError:
            shutil.copyfile(source, path)
        return file_name

    def write(self, name: str, pixels: NDArray[np.uint8]) -> str:
        """Write (H, W, 3) RGB and return the file name: `name` with the suffix of the format."""
        suffix = PurePosixPath(name).suffix
        if self.form != "same":
            suffix = f".{self.form}"
        elif suffix.lower() not in _KEPT:
            suffix = ".png"
        options = []
        if suffix.lower() in _LOSSY:
            full_color = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
            options = [cv2.IMWRITE_JPEG_QUALITY, self.quality, *full_color]
        encoded, content = cv2.imencode(suffix, pixels[..., ::-1], options)
        if not encoded:
            height, width = pixels.shape[:2]
            raise ValueError(f"{name}: {width}x{height} pixels cannot be written as {suffix}; choose another --format")
        path, file_name = self._reserve(name, suffix)
        path.write_bytes(content.tobytes())
        return file_name

    def copy(self, name: str, source: Path) -> str:
        """Copy a file unchanged and return its file name."""
        path, file_name = self._reserve(name, PurePosixPath(name).suffix)
        shutil.copyfile(source, path)
        return file_name

    def _reserve(self, name: str, suffix: str) -> tuple[Path, str]:
        """Return an unused path and its file name, relative to the folder."""
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"file_name {name!r} leaves the image folder; write it relative to that folder")
        chosen, n = relative.with_suffix(suffix), 1
        while str(chosen) in self._taken:
            n += 1
            chosen = relative.with_name(f"{relative.stem}-{n}{suffix}")
        self._taken.add(str(chosen))
        path = self.folder / chosen
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, str(chosen)


def _check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ValueError(f"{folder} {what}; name a new folder, or remove what is there")
