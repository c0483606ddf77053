"""One run of operators in virtual time: the source that pushes or is pulled, and what is noted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from reactivex import Observable, abc
from reactivex.disposable import Disposable

from operators import fuse
from operators.assembly import Plan
from operators.authoring import AnyOperator
from rx_backend.pictures.marble_rows import MarbleRow
from rx_backend.testing import MarbleEvent, MarbleResult, Marbles
from rx_backend.testing.marble_line import MarbleKind
from rx_backend.testing.marble_source import whole_frame

__all__ = ("MarblePlay",)


class MarblePlay:
    """One run: the test that it is played in, and what was noted."""

    def __init__(self, test: Marbles, inputs: Mapping[str, str]) -> None:
        self.test = test
        self.inputs = {name: test.hot(line) for name, line in inputs.items()}
        self._notes: dict[str, list[tuple[float, MarbleKind, Any]]] = {}
        self._busy: dict[str, list[tuple[float, float]]] = {}

    def note(self, row: str, kind: MarbleKind, value: Any = None) -> None:
        """Note what happens now in a row, unless the run is over and all is being put away."""
        if not self.test.is_over:
            self._notes.setdefault(row, []).append((self.test.clock(), kind, value))

    def worked(self, row: str, since: float) -> None:
        """Note that a row was at work from *since* until now, or to the end of the run."""
        until = math.inf if self.test.is_over else self.test.clock()
        if until > since:
            self._busy.setdefault(row, []).append((since, until))

    def rows(self, result: MarbleResult, effects: Sequence[str]) -> list[MarbleRow]:
        """
        What was noted, with the result, row by row.

        Raises:
            MarbleError: Something was noted between two frames.
        """

        def noted(name: str) -> tuple[MarbleEvent, ...]:
            notes = self._notes.get(name, ())
            return tuple(MarbleEvent(whole_frame(at), kind, value) for at, kind, value in notes)

        def busy(name: str) -> tuple[tuple[float, float], ...]:
            return tuple(self._busy.get(name, ()))

        played = [
            MarbleRow(name, "input", source.line.events) for name, source in self.inputs.items()
        ]
        return [
            MarbleRow("source", "source", noted("source"), busy("source")),
            *played,
            MarbleRow("result", "result", result.events, busy("result")),
            *(MarbleRow(name, "effect", noted(name)) for name in effects),
        ]

    def pushed(self, line: str) -> Observable[Any]:
        """A source that plays *line* to whoever subscribes."""
        source = self.test.cold(line)

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            has_ended = False

            def end(kind: MarbleKind, error: Exception | None = None) -> None:
                nonlocal has_ended
                has_ended = True
                self.note("source", kind, error)
                if error is None:
                    observer.on_completed()
                else:
                    observer.on_error(error)

            def send(item: Any) -> None:
                self.note("source", "next", item)
                observer.on_next(item)

            def leave() -> None:
                nonlocal has_ended
                if not has_ended:
                    has_ended = True
                    self.note("source", "drop")
                subscription.dispose()

            subscription = source.subscribe(
                send,
                lambda error: end("error", error),
                lambda: end("completed"),
                scheduler=scheduler,
            )
            return Disposable(leave)

        return Observable(subscribe)

    def pulled(
        self, line: str, operators: Iterable[AnyOperator] | Plan, takes: int
    ) -> Observable[Any]:
        """The items that a consumer pulls out of *operators*, in a task of its own."""
        source = self.test.cold(line)

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            task = asyncio.ensure_future(consume(observer))

            def drop() -> None:
                task.cancel()

            return Disposable(drop)

        async def consume(observer: abc.ObserverBase[Any]) -> None:
            stream = fuse(self._engine(source.line.events), operators)
            try:
                async for item in stream:
                    observer.on_next(item)
                    if takes:
                        since = self.test.clock()
                        await asyncio.sleep(takes)
                        self.worked("result", since)
            except Exception as error:
                observer.on_error(error)
            else:
                observer.on_completed()
            finally:
                await stream.aclose()

        return Observable(subscribe)

    async def _engine(self, events: tuple[MarbleEvent, ...]) -> AsyncGenerator[Any]:
        has_ended = False
        before = 0
        since: float | None = None
        try:
            for event in events:
                since = self.test.clock()
                if event.frame > before:
                    await asyncio.sleep(event.frame - before)
                self.worked("source", since)
                before, since = event.frame, None
                has_ended = event.kind != "next"
                self.note("source", event.kind, event.value)
                if event.kind == "next":
                    yield event.value
                elif event.kind == "error":
                    raise event.value.with_traceback(None)
                else:
                    return
            since = self.test.clock()
            await asyncio.Event().wait()
        finally:
            if since is not None:
                self.worked("source", since)
            if not has_ended:
                self.note("source", "drop")
