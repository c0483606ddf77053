"""Operators run in virtual time, with everything noted that a picture shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import reactivex
from reactivex import Observable, abc

from operators import NotAnOperator
from operators.assembly import name_of, plan_of
from operators.authoring import AnyOperator, Operator
from rx_backend.pictures.marble_layout import ARROW
from rx_backend.pictures.marble_picture import MarblePicture
from rx_backend.pictures.marble_play import MarblePlay
from rx_backend.testing import MarbleError, MarbleFailure, Marbles, parse_marbles

__all__ = ("MarbleRun",)

_PipeOperator: TypeAlias = Callable[[Observable[Any]], Observable[Any]]


class MarbleRun:
    """
    A source on which operators are run, in virtual time, to be drawn.

    The source plays a marble line: one sign is one frame, and one frame is one second. It can be
    run as often as one likes, also where an event loop runs already, as in a notebook.

    Args:
        line: What the source plays.
        values: What letters stand for, in all lines; a letter that is not in it stands for itself.
        error: What ``#`` in the lines stands for.

    Raises:
        MarbleError: *line* can't be read.

    >>> from reactivex import operators as ops
    >>> MarbleRun("-a-b-c-|").pipe(ops.skip(1))
    source  -a-b-c-|
    result  ---b-c-|
    """

    def __init__(
        self,
        line: str,
        *,
        values: Mapping[str, Any] | None = None,
        error: Exception | None = None,
    ) -> None:
        self._line = line
        self._values = dict(values or {})
        self._error = MarbleFailure("the source failed") if error is None else error
        self._inputs: dict[str, str] = {}
        self._effects: list[str] = []
        self._play: MarblePlay | None = None
        parse_marbles(line, self._values, self._error)

    def input(self, name: str, line: str) -> Observable[Any]:
        """
        Make another source, such as a stop signal, that plays *line* whoever listens.

        It has a row of its own, called *name*.

        Raises:
            MarbleError: *line* can't be read.
            ValueError: There is a row called *name* already.
        """
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
        Make a function to give to an operator; each call is noted in a row called *name*.

        Called with an item the row shows the item, else a mark.

        Raises:
            ValueError: There is a row called *name* already.

        >>> from operators import first_token
        >>> from rx_backend import LLMEngineOutput
        >>> run = MarbleRun("-h-1-|", values={"h": LLMEngineOutput(), "1": LLMEngineOutput.token(1)})
        >>> run.pipe(first_token(run.effect("first")))
        source  -h-1-|
        result  -h-1-|
        first   ---1
        (h = empty)
        """
        self._check_name(name)
        self._effects.append(name)

        def note(*arguments: Any) -> None:
            if self._play is not None:
                self._play.note(name, "next", arguments[0] if arguments else None)

        return note

    def pipe(self, *operators: AnyOperator, drop: str = "", title: str = "") -> MarblePicture:
        """
        Run *operators* as in ``source.pipe(...)``: the source pushes.

        Args:
            operators: In order; with none the picture shows the source alone.
            drop: A line whose ``!`` says when the result is dropped, see ``Marbles.record``.
            title: What the picture says of the operators, instead of their names.

        Raises:
            NotAnOperator: One of them is none.
            MarbleError: Something happened between two frames, or *drop* can't be read.
        """

        def stream(play: MarblePlay) -> Observable[Any]:
            return play.pushed(self._line).pipe(*checked)

        checked = _check_pipe(operators)
        picture = self._run(stream, checked, drop, title)
        return picture if operators else picture.without("result")

    def fuse(
        self, *operators: AnyOperator, drop: str = "", takes: int = 0, title: str = ""
    ) -> MarblePicture:
        """
        Run *operators* as a pipeline does: fused, and pulled by a consumer.

        The source is an asynchronous generator. It works on an item only while it is asked for one,
        for as long as the line has it. Where source and consumer are not at work all the time,
        the picture shows when they are.

        Args:
            operators: In order.
            drop: A line whose ``!`` says when the consumer is cancelled.
            takes: How many frames the consumer is busy after each item.
            title: What the picture says of the operators, instead of their names.

        Raises:
            NotAnOperator: One of them is none.
            MarbleError: Something happened between two frames, or *drop* can't be read.

        >>> MarbleRun("-a-b-|").fuse(takes=3)
        source  -a----b----|
        result  -a----b----|
        """

        def stream(play: MarblePlay) -> Observable[Any]:
            return play.pulled(self._line, checked, takes)

        checked = plan_of(operators)
        return self._run(stream, operators, drop, title)

    def _check_name(self, name: str) -> None:
        if name in {"source", "result", *self._inputs, *self._effects}:
            raise ValueError(f"name: expected that of a new row, got {name!r}")

    def _run(
        self,
        stream: Callable[[MarblePlay], Observable[Any]],
        operators: Sequence[AnyOperator],
        drop: str,
        title: str,
    ) -> MarblePicture:
        play = self._play = MarblePlay(Marbles(self._values, error=self._error), self._inputs)
        try:
            result = play.test.record(stream(play), drop=drop)
        finally:
            self._play = None
        title = title or ARROW.join(map(name_of, operators))
        rows = play.rows(result, self._effects)
        return MarblePicture(rows, title=title, values=self._values)


def _check_pipe(operators: Sequence[AnyOperator]) -> list[_PipeOperator]:
    for place, operator in enumerate(plan_of(operators).operators):
        if isinstance(operator, Operator):
            continue
        try:
            result = operator(reactivex.never())
        except Exception as error:
            result = error
        if not isinstance(result, abc.ObservableBase):
            raise NotAnOperator(f"pipe: operators[{place}] is one of aioreactive; fuse runs those")
    return cast("list[_PipeOperator]", list(operators))
