"""Open the first image while the model loads, so that decoding it takes no time of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.sources import Source
from tinydet.spec import STRETCH


class OpenedAhead:
    """An image that is opened in another thread; a context manager, which closes it if it was not taken."""

    def __init__(self, source: Source | None, bands: Sequence[int] | None) -> None:
        """
        Args:
            source: None opens nothing.
            bands: as for `open_scene`.
        """
        self._source, self._pool = source, ThreadPoolExecutor(1, thread_name_prefix="tinydet-first")
        self._opening: Future[Scene] | None = None
        if source is not None:
            self._opening = self._pool.submit(open_scene, source.path, stretch=STRETCH, bands=bands)

    def take(self, source: Source, stretch: tuple[float, float]) -> Scene | None:
        """Return the scene if it is that of `source` and was opened as the model needs it; the caller closes it.

        Raises:
            Exception: what opening it raised.
        """
        if self._opening is None or source is not self._source or tuple(stretch) != STRETCH:
            return None
        opening, self._opening = self._opening, None
        return opening.result()

    def __enter__(self) -> OpenedAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        opening, self._opening = self._opening, None
        if opening is not None and not opening.cancelled() and opening.exception() is None:
            opening.result().close()
