"""Read TIFF tags that describe its values and that GDAL does not pass on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; the last two of a BigTIFF
WHITE_IS_ZERO, CIE_LAB, ICC_LAB, ITU_LAB, FILTER_ARRAY = 0, 8, 9, 10, 32803  # photometric interpretations


@dataclass(frozen=True)
class TiffTags:
    """Tags of the first image of a TIFF.

    Attributes:
        photometric: photometric interpretation; None if unknown.
        orientation: 1 to 8, as in EXIF.
        premultiplied: whether the colors are multiplied by the alpha band.
        is_preview: whether the first image is a reduced version of another, as in camera raw files.
        metadata: XML of GDAL.
    """

    photometric: int | None = None
    orientation: int = 1
    premultiplied: bool = False
    is_preview: bool = False
    metadata: str = ""


def read_tiff_tags(path: Path) -> TiffTags:
    """Read the tags of the first image of a TIFF or BigTIFF; the defaults if the file is damaged, or not a TIFF."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with path.open("rb") as file:
        head = file.read(8)
        if not head.startswith(TIFF):
            return TiffTags()
        if head[2] == 43 or head[3] == 43:
            head += file.read(8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about damaged tags
                return _read(ImageFileDirectory_v2(head), file)
        except Exception:  # Pillow raises errors of any class; GDAL reports a damaged file
            return TiffTags()


def _read(tags: ImageFileDirectory_v2, file: BinaryIO) -> TiffTags:
    file.seek(tags.next)
    tags.load(file)
    orientation, extra = tags.get(274, 1), tags.get(338, ())
    return TiffTags(
        tags.get(262),
        orientation if orientation in range(1, 9) else 1,
        1 in (extra if isinstance(extra, tuple) else (extra,)),
        bool(tags.get(254, 0) & 1),
        str(tags.get(42112, "")),
    )
