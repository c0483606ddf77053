"""Sources that play a marble line on a virtual-time scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from reactivex import Observable, abc
from reactivex.disposable import BooleanDisposable, Disposable
from reactivex.subject import Subject
from reactivex.testing import TestScheduler

from rx_backend.testing.marble_line import MarbleError, MarbleEvent, MarbleLine, render_marbles

__all__ = ("MarbleSource", "schedule", "seconds", "whole_frame")


class MarbleSource(Observable[Any]):
    """
    A source that plays a marble line; ``Marbles.cold`` and ``Marbles.hot`` make them.

    Attributes:
        text: The line as it was written.
        line: The line as it was read.
    """

    def __init__(self, text: str, line: MarbleLine, scheduler: TestScheduler, *, hot: bool) -> None:
        super().__init__()
        self.text = text
        self.line = line
        self._scheduler = scheduler
        self._subject: Subject[Any] | None = Subject() if hot else None
        self._spans: list[list[float]] = []
        self._has_ended = False

    def start(self) -> None:
        """Start to play, where the source is hot."""
        if self._subject is not None:
            beginning = self.line.first("subscribe")
            self._play(self._subject, after=0 if beginning is None else beginning.frame)

    def end(self) -> None:
        """End the test: subscriptions that are disposed of later have no end."""
        self._has_ended = True

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
        hot = self._subject
        playing = self._play(observer) if hot is None else hot.subscribe(observer)

        def dispose() -> None:
            if not self._has_ended:
                span.append(seconds(self._scheduler))
            playing.dispose()

        return Disposable(dispose)

    def _play(self, observer: abc.ObserverBase[Any], after: int = 0) -> abc.DisposableBase:
        """Schedule the events from a frame on, beginning now."""
        disposed = BooleanDisposable()
        begun = seconds(self._scheduler) - after
        for event in self.line.events:
            if event.frame >= after:
                send = partial(_send, event, observer, disposed)
                schedule(self._scheduler, begun + event.frame, send)
        return disposed


def _send(event: MarbleEvent, observer: abc.ObserverBase[Any], disposed: BooleanDisposable) -> None:
    if disposed.is_disposed:
        return
    if event.kind == "next":
        observer.on_next(event.value)
    elif event.kind == "error":
        observer.on_error(event.value)
    elif event.kind == "completed":
        observer.on_completed()


def schedule(scheduler: TestScheduler, time_s: float, action: Callable[[], None]) -> None:
    """Call *action* at *time_s*, after what is already planned for then."""

    def run(scheduler: abc.SchedulerBase, state: object) -> None:
        action()

    scheduler.schedule_absolute(float(time_s), run)


def whole_frame(time_s: float) -> int:
    """
    Return the frame of a virtual time.

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


def seconds(scheduler: TestScheduler) -> float:
    """Return the virtual time."""
    return scheduler.to_seconds(scheduler.now)
