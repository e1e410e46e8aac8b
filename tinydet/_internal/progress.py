"""Progress of long runs: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from tinydet._internal.console import plural

Progress = Callable[[int], object]  # called with the number of items that were just finished; `Bar.update` fits
T = TypeVar("T")

REFRESH = 0.1  # seconds between two updates of a bar
LENGTH = 20  # columns of a bar, if there is room
COLUMNS = 100  # of a terminal that does not know its width
FIRST_LINE, LAST_INTERVAL = 10.0, 30.0  # seconds to the first line of a log, and between lines of long runs


class Bar:
    """The progress of a run on standard error; a context manager.

    A terminal shows a bar, which messages do not break and which disappears at the end. Elsewhere a line is written
    after 10 s and then every 10 to 30 s, so a short run writes none.

    Attributes:
        count: number of finished items; a fraction of an item counts.
        note: more text to show at the end.
    """

    def __init__(
        self,
        total: float | None,
        unit: str,
        label: str = "",
        *,
        quiet: bool = False,
        speed: Callable[[float], str] | None = None,
    ) -> None:
        """
        Args:
            total: number of items; None if unknown.
            unit: what an item is, in the singular.
            label: what is done with the items.
            quiet: show nothing, for example in all processes but the first.
            speed: returns the text about the speed after a number of seconds; None for items per second.
        """
        self.count, self.note = 0.0, ""
        self._total, self._unit, self._label, self._speed = total, unit, label, speed
        self._skipped = 0.0
        self._started = self._shown = time.monotonic()
        self._next_line = FIRST_LINE
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            # Some pseudo-terminals (containers, CI) have no size, and tqdm would show nothing on them.
            size: dict[str, Any] = {"dynamic_ncols": True} if _has_size() else {"ncols": COLUMNS, "nrows": 24}
            layout = self._layout(self.text())
            self._bar = tqdm(total=total, bar_format=layout, desc=self.text(), leave=False, miniters=1, **size)

    def update(self, count: float = 1) -> None:
        """Count items that were finished."""
        self.count += count
        self.show()

    def skip(self, count: float = 1) -> None:
        """Count items that took no time, because an earlier run finished them."""
        self._skipped += count
        self.update(count)

    def show(self) -> None:
        """Show the present state, unless the last one was shown just before."""
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown >= REFRESH:
                self._shown = now
                self._refresh()
        elif not self._quiet and now - self._started >= self._next_line:
            elapsed = now - self._started
            self._next_line = elapsed + min(LAST_INTERVAL, max(FIRST_LINE, elapsed / 10))
            label = f"{self._label}: " if self._label else ""
            tqdm.write(f"  {label}{self.text()}", file=sys.stderr)
            sys.stderr.flush()

    def text(self) -> str:
        """Return the state in words."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.count - self._skipped) / elapsed
        if self._total is None:
            parts = [plural(int(self.count), self._unit)]
        else:
            parts = [f"{int(self.count)}/{plural(int(self._total), self._unit)}"]
        if self._speed is not None:
            parts.append(self._speed(elapsed))
        elif rate:
            parts.append(f"{rate:.3g} {plural(2, self._unit).partition(' ')[2]}/s")
        if self._total is not None and rate and self.count < self._total:
            parts.append(f"{duration((self._total - self.count) / rate)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._quiet = True

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refresh(self) -> None:
        assert self._bar is not None
        text = self.text()
        self._bar.n = self.count if self._total is None else min(self.count, self._total)
        self._bar.bar_format = self._layout(text)
        self._bar.set_description_str(text, refresh=False)
        self._bar.refresh()

    def _layout(self, text: str) -> str:
        """Return the format of the bar: as long as the text leaves room for, so that the time left is not cut off."""
        label = f"{self._label}: " if self._label else ""
        prefix = label.replace("{", "{{").replace("}", "}}")
        if not self._total:
            return f"{prefix}{{desc}}"
        room = _columns() - len(f"{label}100%|| {text}") - 1
        bar = f"|{{bar:{min(room, LENGTH)}}}| " if room > 0 else " "
        return f"{prefix}{{percentage:3.0f}}%{bar}{{desc}}"


def _has_size() -> bool:
    """Return whether standard error is a terminal that knows its size."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # replaced by an object that is not a file
        return False


def _columns() -> int:
    """Return the width of the terminal on standard error."""
    return os.get_terminal_size(sys.stderr.fileno()).columns if _has_size() else COLUMNS


def track(
    items: Iterable[T], unit: str, label: str = "", *, total: int | None = None, quiet: bool = False
) -> Iterator[T]:
    """Yield the items and show how many of them are done.

    Args:
        total: number of items; None for the length of `items`, if it has one.
        unit, label, quiet: as for `Bar`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(total, unit, label, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.update()


def duration(seconds: float) -> str:
    """Format a duration in a readable unit.

    >>> duration(42), duration(300), duration(9000)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
