"""Testing operators with marble lines, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from reactivex import Observable

from operators.assembly import CHECKED, check_arguments, running_loop
from rx_backend.testing.marble_line import (
    SIGNS,
    Failure,
    MarbleError,
    MarbleKind,
    MarbleLine,
    Values,
    align_marbles,
    parse_marbles,
    render_marbles,
)
from rx_backend.testing.marble_record import MarbleResult, Recorder, differences
from rx_backend.testing.marble_source import EventLog, FrameClock, MarbleSource
from rx_backend.testing.virtual_run import run_virtual

__all__ = ("MarbleFailure", "MarbleMismatch", "Marbles", "assert_marbles")

# How many frames to play after the longest line, for events that no line has.
_AFTERMATH = 100


class MarbleFailure(Exception):
    """The default exception for ``#`` in a source."""


class MarbleMismatch(AssertionError):
    """A stream differs from its marble line; the message shows both, aligned."""


class Marbles:
    """
    A marble test: sources, virtual time, and a check of the output.

    One frame is one second of an event loop in virtual time, which timers of ``reactivex`` also
    use, as streams are subscribed to with a ``LoopScheduler``. Pass ``clock`` to operators that
    take a clock. Within a frame, timers fire in the order in which they were set; a source's timers
    are set at its subscription, or, if it is hot, before the test.

    Args:
        values: The items that letters stand for, in every line of the test. Other letters stand for
            themselves.
        error: The exception for ``#`` in a source; by default a ``MarbleFailure``.

    Raises:
        TypeError: An argument is invalid; the message names it. Methods also raise it.

    >>> from reactivex import operators as ops
    >>> test = Marbles()
    >>> source, other = test.cold("-a-b-c-|"), test.hot("----x")
    >>> _ = test.expect(source.pipe(ops.take_until(other)), "-a-b|")
    >>> source.subscriptions
    ['^---!']
    """

    def __init__(
        self,
        values: Values | None = None,
        *,
        error: Annotated[Exception, CHECKED] | None = None,
    ) -> None:
        check_arguments(Marbles, values, error=error)
        self.values: Mapping[str, Any] = dict(values or {})
        self.error = MarbleFailure("the source failed") if error is None else error
        self._clock = FrameClock()
        self._sources: list[MarbleSource] = []
        self._played = False

    def clock(self) -> float:
        """Return the virtual time in seconds, that is, frames."""
        return self._clock.time()

    def log(self) -> EventLog:
        """Return a log for other events, such as calls made by an operator."""
        return EventLog(self._clock)

    def cold(self, line: str) -> MarbleSource:
        """
        Return a source that plays *line* from the start to every subscriber.

        Raises:
            MarbleError: *line* is invalid, or has a ``^`` or ``!``.
        """
        return self._source(line, "subscribe", "drop", hot=False)

    def hot(self, line: str) -> MarbleSource:
        """
        Return a source that plays *line* once, to its current subscribers.

        The test starts at ``^``; signs before it are not played.

        Raises:
            MarbleError: *line* is invalid, or has a ``!``.
        """
        return self._source(line, "drop", hot=True)

    def record(
        self, stream: Annotated[Observable[Any], CHECKED], *, drop: str = ""
    ) -> MarbleResult:
        """
        Subscribe to *stream* at frame 0 and return its events; once per ``Marbles``.

        It ends a hundred frames after the longest line.

        Args:
            stream: The stream.
            drop: A line with the time of disposal, ``!``: ``--!`` before anything of that frame,
                ``--(a!)`` during the first item of that frame.

        Raises:
            MarbleError: An event is between two frames, or *drop* is invalid.
        """
        check_arguments(Marbles.record, self, stream, drop=drop)
        return self._record(stream, parse_marbles(drop))

    def expect(
        self,
        stream: Annotated[Observable[Any], CHECKED],
        result: str,
        *,
        error: Failure | None = None,
    ) -> MarbleResult:
        """
        Subscribe to *stream* at frame 0 and compare its events with the line *result*.

        Args:
            stream: The stream.
            result: The line. Its ``!`` is the time of disposal, as in ``record``.
            error: The ``#`` in *result*: an exception (compared by type and arguments) or a type.
                By default it is the error of the sources if one of them has a ``#``, else any
                exception.

        Raises:
            MarbleMismatch: They differ; the message shows the aligned lines and each difference.
            MarbleError: An event is between two frames, or *result* is invalid.
        """
        check_arguments(Marbles.expect, self, stream, result, error=error)
        if error is None and any(source.line.first("error") for source in self._sources):
            error = self.error
        line = self._read(result, error, "subscribe")
        actual = self._record(stream, line)
        found = list(differences(line.events, actual.events, error))
        if found:
            numbered = len(self._sources) > 1
            rows = {
                f"source {number}" if numbered else "source": source.text
                for number, source in enumerate(self._sources, 1)
            }
            rows |= {"expected": result, "actual": actual.marbles}
            raise MarbleMismatch("\n".join(["marbles differ", align_marbles(rows), *found]))
        return actual

    def _record(self, stream: Observable[Any], plan: MarbleLine) -> MarbleResult:
        if self._played:
            raise MarbleError("a Marbles plays once; make a new one for each test")
        self._played = True
        frames = max([plan.frames, *(source.line.frames for source in self._sources)])
        recorder = Recorder(plan, self._clock)

        async def play() -> None:
            try:
                await self._clock.play(frames + _AFTERMATH, partial(recorder.subscribe, stream))
            finally:
                recorder.close()

        run_virtual(play(), in_thread=running_loop() is not None)
        events = recorder.log.events
        ended = any(event.kind != "next" for event in events)
        line = render_marbles(events, self.values, frames=0 if ended else frames)
        return MarbleResult(events, line)

    def _read(self, line: str, error: Failure | None, *senseless: MarbleKind) -> MarbleLine:
        read = parse_marbles(line, self.values, error)
        for kind in senseless:
            if read.first(kind):
                raise MarbleError(f"{SIGNS[kind]!r} makes no sense in this line: {line}")
        return read

    def _source(self, text: str, *senseless: MarbleKind, hot: bool) -> MarbleSource:
        line = self._read(text, self.error, *senseless)
        source = MarbleSource(text, line, self._clock, hot=hot)
        self._sources.append(source)
        return source


def assert_marbles(
    operator: Callable[[Observable[Any]], Observable[Any]],
    *,
    source: str,
    result: str,
    values: Values | None = None,
    error: Annotated[Exception, CHECKED] | None = None,
    result_error: Failure | None = None,
    hot: bool = False,
    subscriptions: Annotated[Sequence[str], CHECKED] | None = None,
) -> MarbleResult:
    """
    Check an operator's result for a source: the short form of ``Marbles``.

    Args:
        operator: From Observable to Observable: of this library, of ``reactivex``, or your own.
        source: The input line.
        result: The expected output line; a ``!`` is the time of disposal.
        values: The items that letters stand for, in both lines.
        error: The exception for ``#`` in *source*.
        result_error: The ``#`` in *result*; see ``Marbles.expect``.
        hot: Whether the source also plays without subscribers.
        subscriptions: Also check the operator's subscriptions to the source: ``["^---!"]``.

    Raises:
        MarbleMismatch: The output differs; the message shows both lines, aligned.
        MarbleError: A line is invalid.
        TypeError: An argument is invalid; the message names it.

    >>> from reactivex import operators as ops
    >>> _ = assert_marbles(ops.map(str.upper), source="-a-b-|", result="-A-B-|")
    """
    check_arguments(
        assert_marbles,
        operator,
        source=source,
        result=result,
        values=values,
        error=error,
        result_error=result_error,
        hot=hot,
        subscriptions=subscriptions,
    )
    test = Marbles(values, error=error)
    played = test.hot(source) if hot else test.cold(source)
    outcome = test.expect(operator(played), result, error=result_error)
    if subscriptions is not None and played.subscriptions != list(subscriptions):
        raise MarbleMismatch(
            f"subscriptions differ\n  source    {source}\n"
            f"  expected  {list(subscriptions)}\n  actual    {played.subscriptions}"
        )
    return outcome
