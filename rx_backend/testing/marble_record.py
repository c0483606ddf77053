"""Recording a stream's events, and comparing them with a marble line."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable

from operators import LoopScheduler
from rx_backend.testing.marble_line import MarbleEvent, MarbleLine, same_item
from rx_backend.testing.marble_source import EventLog, FrameClock

__all__ = ("MarbleResult", "Recorder", "differences")


@dataclass(frozen=True, slots=True)
class MarbleResult:
    """
    The recorded events of a stream.

    Attributes:
        events: The events, in order; a ``drop`` if the test disposed.
        marbles: The same as a marble line.
    """

    events: tuple[MarbleEvent, ...]
    marbles: str

    @property
    def items(self) -> list[Any]:
        """The items, without their times."""
        return [event.value for event in self.events if event.kind == "next"]

    @property
    def error(self) -> Exception | None:
        """The stream's exception, if it failed."""
        return next((event.value for event in self.events if event.kind == "error"), None)


class Recorder:
    """Records the events of a stream, and disposes at the plan's ``!``."""

    def __init__(self, plan: MarbleLine, clock: FrameClock) -> None:
        self.log = EventLog(clock)
        self._clock = clock
        self._subscription = SingleAssignmentDisposable()
        self._drop = plan.first("drop")
        # The number of items in its frame before the drop.
        self._before_drop = sum(
            event.kind == "next" and self._drop is not None and event.frame == self._drop.frame
            for event in plan.events
        )
        if self._drop is not None and not self._before_drop:
            clock.plan(self._drop.frame, self._dispose, first=True)

    def subscribe(self, stream: Observable[Any]) -> None:
        """Subscribe to *stream*, with timers on the running loop."""
        self._subscription.disposable = stream.subscribe(
            self._next,
            lambda error: self.log.note("error", error),
            lambda: self.log.note("completed"),
            scheduler=LoopScheduler(),
        )

    def close(self) -> None:
        """Dispose, without recording it."""
        self._subscription.dispose()

    def _next(self, item: Any) -> None:
        self.log.note("next", item)
        if self._drop is not None and self._clock.time() == self._drop.frame:
            self._before_drop -= 1
            if not self._before_drop:
                self._dispose()

    def _dispose(self) -> None:
        self.log.note_drop()
        self._subscription.dispose()


def differences(
    expected: Sequence[MarbleEvent],
    actual: Sequence[MarbleEvent],
    error: Exception | type[Exception] | None,
) -> Generator[str]:
    """Describe the differences, event by event; *error* is the expected exception or type."""
    for wanted, got in zip_longest(expected, actual):
        if wanted is None:
            yield f"expected nothing more, got {got}"
        elif got is None:
            yield f"expected {wanted}, got nothing more"
        elif (
            (wanted.frame, wanted.kind) != (got.frame, got.kind)
            or (wanted.kind == "next" and not same_item(wanted.value, got.value))
            or (wanted.kind == "error" and not _same_error(error, got.value))
        ):
            yield f"expected {wanted}, got {got}"


def _same_error(wanted: Exception | type[Exception] | None, got: Exception) -> bool:
    if wanted is None or wanted is got:
        return True
    if isinstance(wanted, type):
        return isinstance(got, wanted)
    return type(got) is type(wanted) and got.args == wanted.args
