"""The time and log of a marble test, and sources that play a marble line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from reactivex import Observable, abc
from reactivex.disposable import BooleanDisposable, Disposable
from reactivex.subject import Subject

from rx_backend.testing.marble_line import (
    MarbleError,
    MarbleEvent,
    MarbleKind,
    MarbleLine,
    render_marbles,
)

__all__ = ("EventLog", "FrameClock", "MarbleSource")


class FrameClock:
    """
    The time of a marble test: its event loop's time, in frames.

    Attributes:
        is_over: Whether everything was played.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """Return the time; 0 before the test is played."""
        return 0.0 if self._loop is None else self._loop.time()

    def plan(self, time_s: float, action: Callable[[], None], *, first: bool = False) -> None:
        """Call *action* at *time_s*: after earlier actions, or, if set before the test, *first*."""
        if self._loop is None:
            self._planned.insert(0 if first else len(self._planned), (time_s, action))
        else:
            self._loop.call_at(time_s, action)

    async def play(self, frames: int, begin: Callable[[], None]) -> None:
        """Call *begin*, and the actions planned for each frame, in the running loop."""
        loop = self._loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if "handle" in context and not done.done():
                done.set_exception(context["exception"])
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(fail)
        for time_s, action in self._planned:
            loop.call_at(time_s, action)
        try:
            begin()
            await asyncio.wait([done], timeout=frames + 0.5)
            if done.done():
                done.result()
        finally:
            self.is_over = True


class EventLog:
    """The events in one row of a marble test, until the test is over."""

    def __init__(self, clock: FrameClock) -> None:
        self._clock = clock
        self._noted: list[tuple[float, MarbleKind, Any]] = []

    @property
    def events(self) -> tuple[MarbleEvent, ...]:
        """
        The events, in order.

        Raises:
            MarbleError: An event is between two frames.
        """
        return tuple(MarbleEvent(_frame(time), kind, value) for time, kind, value in self._noted)

    def note(self, kind: MarbleKind, value: Any = None) -> None:
        """Record an event at the current time."""
        if not self._clock.is_over:
            self._noted.append((self._clock.time(), kind, value))

    def note_drop(self) -> None:
        """Record that the row was dropped, unless it has ended."""
        if not self._noted or self._noted[-1][1] == "next":
            self.note("drop")


class MarbleSource(Observable[Any]):
    """
    A source that plays a marble line; created by ``Marbles.cold`` and ``Marbles.hot``.

    Attributes:
        text: The line as text.
        line: The parsed line.
        played: The played events, with a ``drop`` if a cold one was disposed before its end.
    """

    def __init__(self, text: str, line: MarbleLine, clock: FrameClock, *, hot: bool) -> None:
        super().__init__()
        self.text = text
        self.line = line
        self.played = EventLog(clock)
        self._clock = clock
        self._subscriptions: list[EventLog] = []
        self._subject: Subject[Any] | None = None
        if hot:
            self._subject = Subject()
            beginning = line.first("subscribe")
            self._play(self._subject, after=0 if beginning is None else beginning.frame)

    @property
    def subscriptions(self) -> list[str]:
        """
        One marble line per subscription, in order: ``^`` at its start, ``!`` at its disposal.

        A subscription that was not disposed of before the end of the test has no ``!``.
        """
        return [render_marbles(log.events) for log in self._subscriptions]

    def _subscribe_core(
        self, observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        log = EventLog(self._clock)
        log.note("subscribe")
        self._subscriptions.append(log)
        hot = self._subject
        playing = self._play(observer) if hot is None else hot.subscribe(observer)

        def dispose() -> None:
            log.note("drop")
            if hot is None:
                self.played.note_drop()
            playing.dispose()

        return Disposable(dispose)

    def _play(self, observer: abc.ObserverBase[Any], after: int = 0) -> abc.DisposableBase:
        """Plan the events from a frame on, starting now."""
        disposed = BooleanDisposable()
        begun = self._clock.time() - after
        for event in self.line.events:
            if event.frame >= after:
                send = partial(self._send, event, observer, disposed)
                self._clock.plan(begun + event.frame, send)
        return disposed

    def _send(
        self, event: MarbleEvent, observer: abc.ObserverBase[Any], disposed: BooleanDisposable
    ) -> None:
        if disposed.is_disposed or event.kind == "subscribe":
            return
        self.played.note(event.kind, event.value)
        if event.kind == "next":
            observer.on_next(event.value)
        elif event.kind == "error":
            observer.on_error(event.value)
        else:
            observer.on_completed()


def _frame(time_s: float) -> int:
    """
    Return the frame of a virtual time.

    Raises:
        MarbleError: The time is between two frames.
    """
    frame = round(time_s)
    if abs(frame - time_s) > 1e-5:
        raise MarbleError(
            f"something happened at {time_s:g} s, between two frames; a frame is one second, "
            "so let every interval of the test be whole seconds"
        )
    return frame
