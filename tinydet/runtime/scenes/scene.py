"""Scene, an image that is read window by window, and the scene of an array in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes.pixels import Image, Pixels, resize, to_rgb8, wide_float
from tinydet.spec import STRETCH


class DamagedSceneError(ValueError):
    """A scene that cannot be read, or only in part."""


class Scene(ABC):
    """An image that is read window by window. A context manager; use one handle per thread.

    Attributes:
        name: for messages.
        width, height: in pixels.
        gsd: ground sample distance in meters per pixel; None if unknown.
        in_order: whether a window can only be read by decoding everything above it, as in a JPEG or PNG file.
        has_overviews: whether `preview` reads the whole scene fast: it is in memory, or its file has overviews.
    """

    name: str
    width: int
    height: int
    gsd: float | None = None
    in_order: bool = False
    has_overviews: bool = False

    def read(self, x: int, y: int, width: int, height: int, size: tuple[int, int] | None = None) -> Image:
        """Read a window as uint8 (height, width, 3) RGB, resized to `size` (width, height) if given.

        Raises:
            ValueError: the window leaves the scene, or the file is damaged there.
        """
        self._check_window(x, y, width, height)
        return self._read(x, y, width, height, size or (width, height))

    def preview(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        """Read a window at a smaller `size` for display, from the overviews of the file if it has any.

        The pixels may differ slightly from those of `read`.

        Raises:
            ValueError: as `read`.
        """
        self._check_window(x, y, width, height)
        return self._preview(x, y, width, height, size)

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image: ...

    def _preview(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._read(x, y, width, height, size)

    def _check_window(self, x: int, y: int, width: int, height: int) -> None:
        if width < 1 or height < 1 or x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise ValueError(
                f"{self.name}: no window {width}x{height} at ({x}, {y}) in {self.width}x{self.height} pixels"
            )

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        """Return whether no pixel of the window has data: all are nodata, masked or transparent."""
        return False

    def reopen(self) -> Scene | None:
        """Return another handle on this scene for another thread; None if only one thread can read it efficiently."""
        return None

    def close(self) -> None:  # noqa: B027 - pixels in memory have nothing to close
        """Close the file."""

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ArrayScene(Scene):
    """Pixels in memory. All threads may share one handle.

    Args:
        pixels: (H, W) or (H, W, C) in RGB, of any number type; masked pixels have no data.
        stretch: percentiles that map to 0 and 255 if pixels are wider than 8 bits.
        alpha: (H, W); pixels where it is 0 have no data.
    """

    has_overviews = True

    def __init__(
        self, name: str, pixels: Pixels, stretch: tuple[float, float] = STRETCH, alpha: Pixels | None = None
    ) -> None:
        self.name = name
        self._has_data: NDArray[Any] | None = None if alpha is None else np.not_equal(alpha, 0)
        if np.ma.isMaskedArray(pixels):
            mask = np.ma.getmaskarray(pixels).reshape(*pixels.shape[:2], -1)
            self._has_data = np.asarray(~mask.all(axis=2))
            if pixels.dtype != np.uint8:
                pixels = np.ma.filled(pixels.astype(wide_float(pixels.dtype)), np.nan)
        self._pixels = to_rgb8(np.asarray(pixels), stretch)
        self.height, self.width = self._pixels.shape[:2]

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        return self._has_data is not None and not self._has_data[y : y + height, x : x + width].any()

    def reopen(self) -> Scene:
        return self

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return resize(self._pixels[y : y + height, x : x + width], size)
