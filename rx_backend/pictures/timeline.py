"""Events over time, in milliseconds."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from operators.assembly import check_arguments, loop_clock
from rx_backend.pictures.row import Mark, MarkKind, Row
from rx_backend.pictures.row_layout import RowPicture

__all__ = ("Timeline",)


class Timeline(RowPicture):
    """
    The events of one or several requests over time; a picture with a lane per participant.

    Times are milliseconds since the first entry. At most four labels are stacked: others are
    omitted, events first, and counted next to the lane's name; ``print`` shows all of them.

    Args:
        clock: A monotonic clock, in seconds. By default that of the event loop running at the first
            entry (so virtual time works), else ``time.monotonic``.

    >>> from rx_backend.testing import run_virtual
    >>> timeline = Timeline()
    >>> async def request():
    ...     timeline.mark("client", "asks")
    ...     with timeline.span("engine", "prefill"):
    ...         await asyncio.sleep(0.02)
    ...     timeline.mark("client", "leaves", kind="drop")
    >>> run_virtual(request())
    >>> timeline
    client
        0 ms asks
        20 ms leaves (drop)
    engine
        0 ms to 20 ms prefill
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        check_arguments(Timeline, clock)
        self._marks: list[Mark] = []
        self._now_ms = _milliseconds(clock)
        self._group: str | None = None

    def mark(self, lane: str, label: str = "", *, kind: MarkKind = "event") -> None:
        """
        Record an event at the current time.

        Args:
            lane: Its lane: ``"engine"``, ``"abort"``, ... Lanes are in the order of their first
                entries.
            label: Its label; without one it is a small dot, for example for tokens.
            kind: Its appearance: ``event``, ``end``, ``error`` or ``drop``.

        Raises:
            TypeError: *lane* or *label* is not a string.
            ValueError: *kind* is invalid, or the clock's time is not finite.
        """
        _check_texts(lane=lane, label=label)
        if kind not in ("event", "end", "error", "drop"):
            raise ValueError(f"kind: expected event, end, error or drop, got {kind!r}")
        self._marks.append(Mark(lane, self._now_ms(), label, kind, group=self._group or ""))

    @contextmanager
    def span(self, lane: str, label: str = "") -> Generator[None]:
        """
        Record the duration of the block, however it ends.

        Args:
            lane: Its lane.
            label: Its label.

        Raises:
            TypeError: *lane* or *label* is not a string.
            ValueError: The clock's time is not finite.
        """
        _check_texts(lane=lane, label=label)
        span = Mark(lane, self._now_ms(), label, "span", group=self._group or "")
        self._marks.append(span)
        try:
            yield
        finally:
            span.until = self._now_ms()

    def group(self, name: str) -> Timeline:
        """
        Return the part for one of several requests, with its own lanes under the heading *name*.

        It shares this timeline's clock and entries. Shown by itself it has only its own lanes.

        Raises:
            TypeError: *name* is not a string.

        >>> timeline = Timeline(clock=iter([0.0, 0.5]).__next__)
        >>> timeline.group("first").mark("client", "asks")
        >>> timeline.group("second").mark("client", "asks")
        >>> timeline
        first
          client
              0 ms asks
        second
          client
              500 ms asks
        """
        _check_texts(name=name)
        part = copy.copy(self)
        part._group = name
        return part

    @property
    def entries(self) -> list[Mark]:
        """The marks and spans, in the order of recording."""
        return [entry for entry in self._marks if self._group in {None, entry.group}]

    def _rows(self) -> list[Row]:
        groups: dict[str, dict[str, Row]] = {}
        for mark in sorted(self.entries, key=lambda mark: mark.at):
            lanes = groups.setdefault(mark.group, {})
            gid = f"{mark.group} {mark.lane}".strip()
            depth = int(self._group is None and bool(mark.group))
            lane = lanes.setdefault(mark.lane, Row(mark.lane, gid=gid, depth=depth))
            lane.marks.append(mark)
        rows: list[Row] = []
        for name, lanes in groups.items():
            if name and self._group is None:
                rows.append(Row(name, kind="heading", gid=name))
            rows += lanes.values()
        return rows


def _check_texts(**texts: object) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"Timeline: {name}: expected a string, got {text!r}")


def _milliseconds(clock: Callable[[], float] | None) -> Callable[[], float]:
    """Return a clock in ms from its first reading; without one the running loop's, else monotonic."""
    began: float | None = None

    def now_ms() -> float:
        nonlocal clock, began
        if clock is None:
            try:
                clock = loop_clock(asyncio.get_running_loop())
            except RuntimeError:
                clock = time.monotonic
        now = clock()
        if not math.isfinite(now):
            raise ValueError(f"Timeline: clock: expected a finite time, got {now!r}")
        began = now if began is None else began
        return round((now - began) * 1000.0, 3)

    return now_ms
