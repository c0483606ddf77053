"""Sources that play a marble line on a virtual-time scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from reactivex import Observable, abc
from reactivex.disposable import BooleanDisposable, Disposable
from reactivex.subject import Subject
from reactivex.testing import TestScheduler

from rx_backend.testing.marble_line import MarbleError, MarbleEvent, MarbleLine, render_marbles

__all__ = ("MarbleSource", "cold_source", "hot_source", "schedule", "seconds", "whole_frame")

_Play: TypeAlias = Callable[[abc.ObserverBase[Any]], abc.DisposableBase]


class MarbleSource(Observable[Any]):
    """
    A source that plays a marble line; ``Marbles.cold`` and ``Marbles.hot`` make them.

    Attributes:
        text: The line as it was written.
        line: The line as it was read.
    """

    def __init__(self, text: str, line: MarbleLine, scheduler: TestScheduler, play: _Play) -> None:
        super().__init__()
        self.text = text
        self.line = line
        self._scheduler = scheduler
        self._play = play
        self._spans: list[list[float]] = []
        self._is_over = False

    def end(self) -> None:
        """The test is over: what is disposed of from here on is no longer noted."""
        self._is_over = True

    @property
    def subscriptions(self) -> list[str]:
        """
        One marble line per subscription, in order: ``^`` where it began, ``!`` where it ended.

        A subscription that was never disposed has no ``!``.
        """
        return [
            render_marbles(
                MarbleEvent(whole_frame(time), kind)
                for time, kind in zip(span, ("subscribe", "drop"), strict=False)
            )
            for span in self._spans
        ]

    def _subscribe_core(
        self, observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        span = [seconds(self._scheduler)]
        self._spans.append(span)
        playing = self._play(observer)

        def dispose() -> None:
            if not self._is_over:
                span.append(seconds(self._scheduler))
            playing.dispose()

        return Disposable(dispose)


def cold_source(text: str, line: MarbleLine, scheduler: TestScheduler) -> MarbleSource:
    """Make a source that plays its line to every subscriber from the beginning."""

    def play(observer: abc.ObserverBase[Any]) -> abc.DisposableBase:
        disposed = BooleanDisposable()

        def send(event: MarbleEvent) -> None:
            if not disposed.is_disposed:
                _send(event, observer)

        now = seconds(scheduler)
        for event in line.events:
            schedule(scheduler, now + event.frame, partial(send, event))
        return disposed

    return MarbleSource(text, line, scheduler, play)


def hot_source(
    text: str, line: MarbleLine, scheduler: TestScheduler
) -> tuple[MarbleSource, Callable[[], None]]:
    """Make a source that plays its line once, to whoever listens, and what starts it."""
    subject: Subject[Any] = Subject()
    beginning = line.first("subscribe")
    first = 0 if beginning is None else beginning.frame

    def start() -> None:
        for event in line.events:
            if event.frame >= first:
                schedule(scheduler, event.frame - first, partial(_send, event, subject))

    return MarbleSource(text, line, scheduler, subject.subscribe), start


def schedule(scheduler: TestScheduler, time_s: float, action: Callable[[], None]) -> None:
    """Call *action* at *time_s*, after what is already planned for then."""

    def run(scheduler: abc.SchedulerBase, state: object) -> None:
        action()

    scheduler.schedule_absolute(float(time_s), run)


def whole_frame(time_s: float) -> int:
    """
    Give the frame of a virtual time.

    Raises:
        MarbleError: The time lies between two frames.
    """
    frame = round(time_s)
    if abs(frame - time_s) > 1e-5:
        raise MarbleError(
            f"something happened at {time_s:g} s, between two frames; a frame is one second, "
            "so let every interval of the test be whole seconds"
        )
    return frame


def _send(event: MarbleEvent, observer: abc.ObserverBase[Any]) -> None:
    if event.kind == "next":
        observer.on_next(event.value)
    elif event.kind == "error":
        observer.on_error(event.value)
    elif event.kind == "completed":
        observer.on_completed()


def seconds(scheduler: TestScheduler) -> float:
    """Give the virtual time."""
    return scheduler.to_seconds(scheduler.now)
