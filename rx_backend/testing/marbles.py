"""Operators tested by marble lines, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from reactivex import Observable

from operators.assembly import CHECKED, check_arguments
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
from rx_backend.testing.virtual_run import is_loop_running, run_virtual

__all__ = ("MarbleFailure", "MarbleMismatch", "Marbles", "assert_marbles")

# How many frames after the longest line are played, for events that no line has.
_AFTERMATH = 100


class MarbleFailure(Exception):
    """What ``#`` in a source stands for unless the test says otherwise."""


class MarbleMismatch(AssertionError):
    """A stream differs from its marble line; shows both, one above the other."""


class Marbles:
    """
    One marble test: sources, virtual time, and the check of the output.

    One frame is one second of an event loop on virtual time, which the timers of ``reactivex`` obey
    too, as streams are subscribed to with a ``LoopScheduler``. ``clock`` is for operators that take
    a clock. In a frame, timers fire in the order in which they were set; those of a source are set
    when it is subscribed to, or, if it is hot, before the test.

    Args:
        values: What letters stand for, in every line of the test. A letter that is not in it
            stands for itself.
        error: What ``#`` in a source stands for; a ``MarbleFailure`` when left out.

    Raises:
        TypeError: An argument is none that is described; the message names it. So do the methods.

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
        """Return the virtual time in seconds, which are frames."""
        return self._clock.time()

    def log(self) -> EventLog:
        """Return a log to note events in, such as the calls that an operator makes."""
        return EventLog(self._clock)

    def cold(self, line: str) -> MarbleSource:
        """
        Make a source that plays *line* to every subscriber from its beginning.

        Raises:
            MarbleError: *line* can't be read, or has a ``^`` or ``!``.
        """
        return self._source(line, "subscribe", "drop", hot=False)

    def hot(self, line: str) -> MarbleSource:
        """
        Make a source that plays *line* once, to its subscribers at that time.

        The test begins at ``^``; signs before it are not played.

        Raises:
            MarbleError: *line* can't be read, or has a ``!``.
        """
        return self._source(line, "drop", hot=True)

    def record(
        self, stream: Annotated[Observable[Any], CHECKED], *, drop: str = ""
    ) -> MarbleResult:
        """
        Subscribe to *stream* at frame 0 and return its events; once per ``Marbles``.

        It ends a hundred frames after the longest line.

        Args:
            stream: What to subscribe to.
            drop: A line whose ``!`` is when to dispose: ``--!`` before anything of that frame
                arrives, ``--(a!)`` while the first item of that frame is handed out.

        Raises:
            MarbleError: Something happened between two frames, or *drop* can't be read.
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
            stream: What to subscribe to.
            result: The line. Its ``!`` also says when to dispose, as in ``record``.
            error: What ``#`` in *result* stands for: an exception (compared by type and arguments)
                or a type. When left out it is the error of the sources if one of them has a ``#``,
                else any exception.

        Raises:
            MarbleMismatch: They differ; shows the lines, aligned, and each difference.
            MarbleError: Something happened between two frames, or *result* can't be read.
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

        run_virtual(play(), in_thread=is_loop_running())
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
    Check what an operator makes of a source: the short form of ``Marbles``.

    Args:
        operator: From Observable to Observable: one of this library, of ``reactivex``, or your own.
        source: The line that goes in.
        result: The line that must come out; with ``!`` where the test disposes.
        values: What letters stand for, in both lines.
        error: What ``#`` in *source* stands for.
        result_error: What ``#`` in *result* stands for, see ``Marbles.expect``.
        hot: The source plays without subscribers too.
        subscriptions: Also check how the operator subscribed to the source: ``["^---!"]``.

    Raises:
        MarbleMismatch: Something else came out; shows both lines, one above the other.
        MarbleError: A line can't be read.
        TypeError: An argument is none that is described; the message names it.

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
