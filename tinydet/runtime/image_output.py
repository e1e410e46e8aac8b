"""Write drawings as image files, and check before the work that a format can hold them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tinydet._internal.atomic import atomic_path
from tinydet._internal.opencv_log import silent_opencv
from tinydet.runtime.scenes.pixels import Image

MAX_SIDE = 30_000  # pixels; few viewers open larger images
MAX_SIDES = {".webp": 16_383}
SUGGESTED = ".jpg, .png or .webp"


def save_image(path: Path, image: Image) -> None:
    """Write an RGB image in the format of the path's suffix.

    Raises:
        ValueError: OpenCV cannot write this suffix, or an image of this size.
        OSError: the file cannot be written.
    """
    encoded = _encode(path.suffix, image)
    if encoded is None:
        raise ValueError(
            f"{path}: OpenCV cannot write {image.shape[1]}x{image.shape[0]} pixels as {path.suffix!r}; use {SUGGESTED}"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def check_image_path(path: Path) -> None:
    """Check that images can be written as `path` by encoding a small one in memory. Call it before the work.

    Raises:
        ValueError: OpenCV cannot write color images with this suffix.
    """
    sample = np.full((64, 64, 3), (200, 120, 40), np.uint8)
    encoded = _encode(path.suffix, sample)
    decoded = None if encoded is None else cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None or decoded.shape != sample.shape or np.abs(decoded[..., ::-1].astype(int) - sample).max() > 64:
        raise ValueError(f"{path}: cannot write an image as {path.suffix!r}; use {SUGGESTED}")


def longest_side(path: Path) -> int:
    """Return the maximum width and height of an image written as `path`."""
    return MAX_SIDES.get(path.suffix.lower(), MAX_SIDE)


def _encode(suffix: str, image: Image) -> bytes | None:
    """Return the bytes of a file; None if OpenCV cannot write the image in this format."""
    try:
        with silent_opencv():
            done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        return None
    return encoded.tobytes() if done else None
