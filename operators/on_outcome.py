"""Tell what became of a stream, once, however it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from operators._chunk import IS_TERMINAL, Chunk
from operators._core.checked import checked
from operators._core.operator import operator
from operators._core.stage import Hooks
from operators.span_names import DROPPED, ERROR_TERMINAL
from operators.token_times import TokenTimes

__all__ = ("Outcome", "OutcomeWatch", "error_type_of", "never", "on_outcome")

C = TypeVar("C", bound=Chunk)


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of a stream: of the terminal, the error and the drop exactly one.

    Attributes:
        finish_reason: The terminal's; None if there was none.
        error: What the stream failed with; None if it did not.
        is_cancelled: Whether the request had been asked to stop, or was dropped.
        times: When its tokens came, where that was noted.
    """

    finish_reason: Any
    error: Exception | None
    is_cancelled: bool
    times: TokenTimes | None = None

    @property
    def is_dropped(self) -> bool:
        """Whether it ended before its terminal, without an error (rows P5, P6a)."""
        return self.finish_reason is None and self.error is None

    @property
    def is_error(self) -> bool:
        """Whether it failed, by an error or by a terminal that says so (rows P4, P6)."""
        return self.error is not None or bool(getattr(self.finish_reason, "is_error", False))


def error_type_of(outcome: Outcome) -> str | None:
    """
    What OpenTelemetry's ``error.type`` says of an outcome: one of few texts; None for a good end.

    The class of the error; ``ErrorTerminal`` for a terminal that says so; ``Dropped``.
    """
    if outcome.error is not None:
        return type(outcome.error).__name__
    if outcome.is_dropped:
        return DROPPED
    return ERROR_TERMINAL if outcome.is_error else None


def never() -> bool:
    """Say no."""
    return False


class OutcomeWatch:
    """
    What is known of one stream; with thousands open, an object is half the size of closures.

    Args:
        tell: Called with the outcome when the stream is at its end.
        times: The record that an ``itl_window`` fills, to take the finish reason from.
        is_cancelled: Whether the request was asked to stop, asked at the end.
    """

    __slots__ = ("_is_cancelled", "_reason", "_tell", "_times")

    def __init__(
        self,
        tell: Callable[[Outcome], object],
        times: TokenTimes | None,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._tell = tell
        self._times = times
        self._is_cancelled = is_cancelled
        self._reason: Any = None

    def look(self, terminal: C) -> C:
        """The terminal comes by, and there is no record to read its reason from."""
        self._reason = terminal.finish_reason
        return terminal

    def end(self, failure: Exception | None, _dropped: bool) -> None:
        """The stream is at its end."""
        reason = None
        if failure is None:
            reason = self._reason if self._times is None else self._times.finish_reason
        is_cancelled = failure is None and reason is None
        try:
            is_cancelled = is_cancelled or self._is_cancelled()
        finally:
            self._tell(Outcome(reason, failure, is_cancelled, self._times))


def _check(
    tell: object, *, times: TokenTimes | None = None, is_cancelled: Callable[[], bool] = never
) -> None:
    for name, function in (("tell", tell), ("is_cancelled", is_cancelled)):
        if not callable(function):
            raise TypeError(f"on_outcome: {name}: expected a function, got {function!r}")
    if times is not None and not isinstance(times, TokenTimes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"on_outcome: times: expected TokenTimes or None, got {times!r}")


@checked(_check)
@operator
def on_outcome(
    tell: Callable[[Outcome], object],
    *,
    times: TokenTimes | None = None,
    is_cancelled: Callable[[], bool] = never,
) -> Hooks[Any, Any]:
    """
    Call *tell* once with what became of the stream: its terminal, its error, or the drop.

    Chunks pass through unchanged. The rules are those of :func:`record_span` (rows P3 to P6a), so
    what is counted here agrees with what the spans say. ``T`` is a terminal::

        source  ---a-b-T|
        result  ---a-b-T|
        told    --------o

    Args:
        tell: Called when the stream ends, whichever way. It must not raise.
        times: The record that an ``itl_window`` ahead of this operator fills; with it, not even the
            terminal visits this operator.
        is_cancelled: Whether the request was asked to stop, asked at the end.

    Raises:
        TypeError: An argument is something else; when the operator is made.

    Errors: source errors pass unchanged, after *tell*.
    On dispose: *tell* is called; unless the terminal has passed already, it was a drop.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> _ = chunks.pipe(on_outcome(lambda outcome: print(outcome.finish_reason))).subscribe()
    stop
    """
    watch = OutcomeWatch(tell, times, is_cancelled)
    if times is not None:
        return Hooks(on_end=watch.end)
    return Hooks(watch.look, only=IS_TERMINAL, on_end=watch.end)
