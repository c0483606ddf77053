"""Runs of operators in virtual time, recorded for a picture."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias, cast

from reactivex import Observable, abc
from reactivex.disposable import Disposable

from operators import NotAnOperator, fuse
from operators.assembly import CHECKED, Plan, check_arguments, name_of, plan_of
from operators.authoring import AnyOperator, AtLeast
from rx_backend.pictures.marble_item import MarbleRow
from rx_backend.pictures.marble_picture import MarblePicture
from rx_backend.testing import MarbleError, MarbleFailure, Marbles, parse_marbles
from rx_backend.testing.marble_source import EventLog

__all__ = ("MarbleRun",)


_PipeOperator: TypeAlias = Callable[[Observable[Any]], object]


class MarbleRun:
    """
    A source for running operators in virtual time and drawing the result.

    The source plays a marble line: one sign is one frame, and one frame is one second. It can be
    run any number of times, also while an event loop is running, as in a notebook.

    Args:
        line: The source's line.
        values: The items that letters stand for, in all lines; others stand for themselves.
        error: The exception for ``#`` in the lines.

    Raises:
        MarbleError: *line* is invalid.
        TypeError: An argument is invalid; the message names it.

    >>> from reactivex import operators as ops
    >>> MarbleRun("-a-b-c-|").pipe(ops.skip(1))
    source  -a-b-c-|
    result  ---b-c-|
    """

    def __init__(
        self,
        line: str,
        *,
        values: Annotated[Mapping[str, Any], CHECKED] | None = None,
        error: Annotated[Exception, CHECKED] | None = None,
    ) -> None:
        check_arguments(MarbleRun, line, values=values, error=error)
        self._line = line
        self._values = dict(values or {})
        self._error = MarbleFailure("the source failed") if error is None else error
        self._inputs: dict[str, str] = {}
        self._effects: list[str] = []
        self._play: _Play | None = None
        parse_marbles(line, self._values, self._error)

    def input(self, name: str, line: str) -> Observable[Any]:
        """
        Return another source, such as a stop signal, which plays *line* even without subscribers.

        It has its own row, called *name*.

        Raises:
            MarbleError: *line* is invalid.
            ValueError: There is already a row called *name*.
            TypeError: An argument is not a string.
        """
        check_arguments(MarbleRun.input, self, name, line)
        self._check_name(name)
        if parse_marbles(line, self._values, self._error).first("subscribe"):
            raise MarbleError(f"'^' makes no sense in this line: {line}")
        self._inputs[name] = line

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            if self._play is None:
                raise RuntimeError(f"the input {name!r} plays while its MarbleRun runs")
            return self._play.inputs[name].subscribe(observer, scheduler=scheduler)

        return Observable(subscribe)

    def effect(self, name: str) -> Callable[..., None]:
        """
        Return a function to pass to an operator; each call is recorded in a row called *name*.

        The row shows the first argument, or a mark if there is none.

        Raises:
            ValueError: There is already a row called *name*.
            TypeError: *name* is not a string.

        >>> from operators import first_token
        >>> from rx_backend import LLMEngineOutput
        >>> run = MarbleRun("-h-1-|", values={"h": LLMEngineOutput(), "1": LLMEngineOutput.token(1)})
        >>> run.pipe(first_token(run.effect("first")))
        source  -h-1-|
        result  -h-1-|
        first   ---1
        (h = empty)
        """
        check_arguments(MarbleRun.effect, self, name)
        self._check_name(name)
        self._effects.append(name)

        def note(*arguments: Any) -> None:
            if self._play is not None:
                self._play.effects[name].note("next", arguments[0] if arguments else None)

        return note

    def pipe(self, *operators: AnyOperator, drop: str = "") -> MarblePicture:
        """
        Run *operators* as in ``source.pipe(...)``: the source pushes.

        Args:
            operators: In order; without any the picture shows only the source.
            drop: A line whose ``!`` is the time at which the result is dropped; see
                ``Marbles.record``.

        Raises:
            NotAnOperator: One is not an operator, or is an operator of aioreactive.
            MarbleError: An event is between two frames, or *drop* is invalid.
        """

        def stream(play: _Play) -> Observable[Any]:
            result: Any = play.source
            for place, operator in enumerate(cast("Sequence[_PipeOperator]", plan.operators)):
                result = operator(result)
                if not isinstance(cast("object", result), Observable):
                    raise NotAnOperator(f"pipe: operators[{place}] is for fuse: no Observable")
            return result

        plan = plan_of(operators)
        picture = self._run(stream, plan, drop)
        if not operators:
            picture.rows = tuple(row for row in picture.rows if row.kind != "result")
        return picture

    def fuse(
        self,
        *operators: AnyOperator,
        drop: str = "",
        consumer_delay: Annotated[int, AtLeast(0, "frames")] = 0,
    ) -> MarblePicture:
        """
        Run *operators* as a pipeline does: fused, and pulled by a consumer.

        The source is an async generator. It works on an item only while one is requested, for the
        time in the line.

        Args:
            operators: In order.
            drop: A line whose ``!`` is the time at which the consumer is cancelled.
            consumer_delay: The frames that the consumer is busy after each item.

        Raises:
            NotAnOperator: One is not an operator.
            ValueError: *consumer_delay* is negative.
            TypeError: *drop* or *consumer_delay* has another type.
            MarbleError: An event is between two frames, or *drop* is invalid.

        >>> MarbleRun("-a-b-|").fuse(consumer_delay=3)
        source  -a----b----|
        result  -a----b----|
        """
        check_arguments(MarbleRun.fuse, self, drop=drop, consumer_delay=consumer_delay)
        plan = plan_of(operators)
        return self._run(lambda play: play.pulled(plan, consumer_delay), plan, drop)

    def __repr__(self) -> str:
        return f"MarbleRun({self._line!r})"

    def _check_name(self, name: str) -> None:
        if name in {"source", "result", *self._inputs, *self._effects}:
            raise ValueError(f"name: expected that of a new row, got {name!r}")

    def _run(
        self, stream: Callable[[_Play], Observable[Any]], plan: Plan, drop: str
    ) -> MarblePicture:
        play = self._play = _Play(
            Marbles(self._values, error=self._error), self._line, self._inputs
        )
        try:
            result = play.test.record(stream(play), drop=drop)
        finally:
            self._play = None
        rows = [
            MarbleRow("source", "source", play.source.played.events),
            *(MarbleRow(name, "input", line.line.events) for name, line in play.inputs.items()),
            MarbleRow("result", "result", result.events),
            *(MarbleRow(name, "effect", play.effects[name].events) for name in self._effects),
        ]
        title = "  →  ".join(map(name_of, plan.operators))
        return MarblePicture(rows, title=title, values=self._values)


class _Play:
    """One run: the events of *test*, and the calls of operators."""

    def __init__(self, test: Marbles, line: str, inputs: Mapping[str, str]) -> None:
        self.test = test
        self.source = test.cold(line)
        self.inputs = {name: test.hot(line) for name, line in inputs.items()}
        self.effects = defaultdict[str, EventLog](test.log)

    def pulled(self, plan: Plan, consumer_delay: int) -> Observable[Any]:
        async def consume(observer: abc.ObserverBase[Any]) -> None:
            stream = fuse(self._engine(), plan)
            try:
                async for item in stream:
                    observer.on_next(item)
                    await asyncio.sleep(consumer_delay)
            except Exception as error:
                observer.on_error(error)
            else:
                observer.on_completed()
            finally:
                await stream.aclose()

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            task = asyncio.ensure_future(consume(observer))

            def cancel() -> None:
                task.cancel()

            return Disposable(cancel)

        return Observable(subscribe)

    async def _engine(self) -> AsyncGenerator[Any]:
        before, played = 0, self.source.played
        try:
            for event in self.source.line.events:
                await asyncio.sleep(event.frame - before)
                before = event.frame
                played.note(event.kind, event.value)
                if event.kind == "next":
                    yield event.value
                elif event.kind == "error":
                    raise event.value.with_traceback(None)
                else:
                    return
            await asyncio.Event().wait()
        finally:
            played.note_drop()
