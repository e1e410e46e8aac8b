"""The progress bar of a run: one over all scenes, and messages about single scenes."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from tinydet._internal.console import plural
from tinydet._internal.progress import Bar
from tinydet.runtime.scan import BatchResult

logger = logging.getLogger("tinydet.infer")

LONG = 64  # tiles or frames of a scene from which the bar names the scene, because it stays there for a while


class RunProgress:
    """A context manager that shows the progress of a run. One scene shows its tiles, a video its frames.

    What the run has done is recorded in `RunSummary`.

    Attributes:
        details: whether the lines about a single scene are logged.
    """

    def __init__(self, jobs: int, *, verbose: bool = False) -> None:
        """
        Args:
            jobs: number of scenes and videos.
            verbose: log lines about each of several scenes.
        """
        self.details = verbose or jobs == 1
        self._jobs, self._started = jobs, time.perf_counter()
        self._tiles = self._found = 0  # of finished and unfinished scenes
        self._name, self._unit = "", "tile"
        self._count = self._known = 0
        self._expected: int | None = None
        self._bar: Bar | None = None

    @property
    def alone(self) -> bool:
        """Whether the run has only one scene."""
        return self._jobs == 1

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._started

    def __enter__(self) -> RunProgress:
        self._started = time.perf_counter()
        if self._jobs > 1:
            self._bar = Bar(self._jobs, "scene", speed=self._speed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """Log a line about a single scene."""
        if self.details:
            logger.info(line)

    def begin(self, name: str, total: int | None, unit: str, *, known: int = 0) -> None:
        """Start a scene.

        Args:
            total: number of its tiles or frames; None if unknown.
            unit: "tile" or "frame".
            known: number of these that an earlier run finished; they are counted first.
        """
        self._name, self._expected, self._unit, self._count, self._known = name, total, unit, 0, known
        if self._jobs == 1:
            self._bar = Bar(total, unit, speed=self._speed)

    def add(self, result: BatchResult) -> None:
        """Count the tiles of a batch, with their detections."""
        self.advance(result.tiles, result.tiles, len(result.detections))

    def advance(self, count: int, tiles: int, detections: int) -> None:
        """Count tiles or frames that were finished, with their detections.

        Args:
            count: in the unit of the scene.
            tiles: the tiles among them.
        """
        assert self._bar is not None
        known = min(count, max(self._known - self._count, 0))
        self._count += count
        self._tiles += tiles if self._unit == "frame" else tiles - known
        self._found += detections
        if self._jobs == 1:
            self._bar.skip(known)
            self._bar.update(count - known)
            return
        if self._expected is None or self._expected > LONG:
            of = "" if self._expected is None else f"/{self._expected}"
            self._bar.note = f"{self._name}: {self._count}{of} {plural(2, self._unit).partition(' ')[2]}"
        if self._expected:
            self._bar.skip(known / self._expected)
            self._bar.update((count - known) / self._expected)
        else:
            self._bar.show()

    def end(self, earlier: int = 0) -> None:
        """Finish a scene, also one that is skipped before it begins or in the middle.

        Args:
            earlier: number of detections of a scene that an earlier run completed.
        """
        self._found += earlier
        if self._bar is not None and self._jobs > 1:
            self._bar.note = ""
            done = self._count / self._expected if self._expected else 0.0
            (self._bar.update if self._count else self._bar.skip)(1 - done)
        self._count, self._expected = 0, None

    def _speed(self, seconds: float) -> str:
        speeds = [f"{self._tiles / seconds:.1f} tiles/s"]
        if self._jobs == 1 and self._unit == "frame":
            speeds.insert(0, f"{max(self._count - self._known, 0) / seconds:.1f} frames/s")
        return ", ".join([*speeds, plural(self._found, "detection")])
