"""What happened when: noted by whoever sees it, in milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rx_backend.pictures.picture import Picture
from rx_backend.pictures.timeline_drawing import draw_timeline
from rx_backend.pictures.timeline_rows import (
    Entry,
    MarkKind,
    TimelineMark,
    TimelineSpan,
    entries_as_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("Timeline",)

# Clocks give seconds as binary fractions; nobody wants to see the difference.
_DIGITS = 3


class Timeline(Picture):
    """
    What happened when in one request, or in several; a picture with a lane for each who took part.

    Time counts in milliseconds from the first thing that is noted.

    Args:
        clock: Monotonic clock, in seconds. By default that of the event loop that runs when the
            first thing is noted (so virtual time works), else ``time.monotonic``.

    >>> from rx_backend.testing import run_virtual
    >>> timeline = Timeline()
    >>> async def request():
    ...     timeline.mark("client", "asks")
    ...     with timeline.span("engine", "prefill"):
    ...         await asyncio.sleep(0.02)
    ...     timeline.mark("client", "leaves", kind="drop")
    >>> run_virtual(request())
    >>> timeline
     0 ms  client  asks
     0 ms  engine  prefill (until 20 ms)
    20 ms  client  leaves (drop)
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._notes = _Notes(clock)
        self._group: str | None = None

    def mark(self, lane: str, label: str = "", *, kind: MarkKind = "event") -> None:
        """
        Note that something happens now.

        Args:
            lane: Where to show it: ``"engine"``, ``"abort"``, ... A lane is there from its first
                use on, and lanes stand in that order.
            label: What to write beside it; without one it is a small dot, good for tokens.
            kind: What it looks like: an ``event``, the ``end`` of something, an ``error``, a
                ``drop``.

        Raises:
            ValueError: *kind* is none of these.
        """
        if kind not in {"event", "end", "error", "drop"}:
            raise ValueError(f"kind: expected event, end, error or drop, got {kind!r}")
        now = self._notes.now_ms()
        self._notes.entries.append(TimelineMark(lane, now, label, kind, self._group or ""))

    @contextmanager
    def span(self, lane: str, label: str = "") -> Generator[None]:
        """
        Note how long the block takes, however it ends.

        Args:
            lane: Where to show it.
            label: What to write in it.
        """
        span = TimelineSpan(lane, self._notes.now_ms(), None, label, self._group or "")
        self._notes.entries.append(span)
        try:
            yield
        finally:
            span.until_ms = self._notes.now_ms()

    def group(self, name: str) -> Timeline:
        """
        A timeline for one request among several, with lanes of its own below the heading *name*.

        It is a part of this one, and on the same clock. Shown by itself it has its own lanes only.

        >>> timeline = Timeline(clock=iter([0.0, 0.5]).__next__)
        >>> timeline.group("first").mark("client", "asks")
        >>> timeline.group("second").mark("client", "asks")
        >>> timeline
          0 ms  first   client  asks
        500 ms  second  client  asks
        >>> timeline.group("second")
        500 ms  client  asks
        """
        part = Timeline()
        part._notes = self._notes
        part._group = name
        return part

    @property
    def entries(self) -> list[Entry]:
        """What was noted: :class:`TimelineMark` and :class:`TimelineSpan`, as they came."""
        group = self._group
        return [entry for entry in self._notes.entries if group in {None, entry.group}]

    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure.

        Each artist has a ``gid``: the group's name, the lane's, the time in ms, and what it shows.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        return draw_timeline(self.entries, has_groups=self._group is None)

    def __repr__(self) -> str:
        return entries_as_text(self.entries, has_groups=self._group is None)


class _Notes:
    """What a timeline and its groups share."""

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self.entries: list[Entry] = []
        self._clock = clock
        self._began: float | None = None

    def now_ms(self) -> float:
        if self._clock is None:
            self._clock = _running_clock()
        now = self._clock()
        if self._began is None:
            self._began = now
        return round((now - self._began) * 1000.0, _DIGITS)


def _running_clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic
