"""The type of progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int], object]  # called with the number of items that were just finished; `tqdm.update` fits
