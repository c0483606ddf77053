"""An engine that plays a script."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("FunctionEngine", "Give", "ScriptedEngine", "Step", "now", "play_step", "stop", "token")

token = LLMEngineOutput.token
stop = LLMEngineOutput.stop


@dataclass(frozen=True)
class Give:
    """A step that yields *item*, whatever it is."""

    item: object


Step: TypeAlias = (
    LLMEngineOutput
    | Mapping[str, Any]
    | Give
    | float
    | asyncio.Event
    | BaseException
    | Callable[[RequestContext], object]
)
"""
What an engine does next: yield a chunk, wait so many seconds or for an event, raise, or call a
function of the context (and await its result, where that can be awaited).
"""


class ScriptedEngine(LLMEngine):
    """
    Plays one script for every request, and counts its calls.

    Args:
        script: The steps of a stream.
        setup: Steps of ``generate`` itself, before there is a stream.
        abort: Steps of ``abort``.
        closing: Steps of the stream's ``finally``.

    Attributes:
        calls: How often ``generate`` was called; ``requests`` with what.
        pulls: How often streams were pulled.
        aborts: The loop's time at each call of ``abort``.
        closes: The loop's time at which each stream began to close.
        closed: How many streams have come to the end of their ``finally``.
    """

    def __init__(
        self,
        *script: Step,
        setup: Sequence[Step] = (),
        abort: Sequence[Step] = (),
        closing: Sequence[Step] = (),
    ) -> None:
        self._script = script
        self._setup = setup
        self._abort = abort
        self._closing = closing
        self.calls = 0
        self.requests: list[PreprocessedRequest] = []
        self.pulls = 0
        self.aborts: list[float] = []
        self.closes: list[float] = []
        self.closed = 0

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="scripted")

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[Any] | Coroutine[Any, Any, AsyncGenerator[Any]]:
        self.calls += 1
        self.requests.append(request)
        return self._set_up(context) if self._setup else self._stream(context)

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append(now())
        for step in self._abort:
            await play_step(step, context)

    async def _set_up(self, context: RequestContext) -> AsyncGenerator[Any]:
        for step in self._setup:
            await play_step(step, context)
        return self._stream(context)

    async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
        self.pulls += 1
        try:
            for step in self._script:
                if isinstance(step, LLMEngineOutput | Mapping | Give):
                    yield step.item if isinstance(step, Give) else step
                    self.pulls += 1
                else:
                    await play_step(step, context)
        finally:
            self.closes.append(now())
            for step in self._closing:
                await play_step(step, context)
            self.closed += 1


class FunctionEngine(ScriptedEngine):
    """An engine whose stream is made by a function."""

    def __init__(self, chunks: Callable[[], AsyncGenerator[LLMEngineOutput]]) -> None:
        super().__init__()
        self._chunks = chunks

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        return self._chunks()


async def play_step(step: Step, context: RequestContext) -> None:
    """Play a step that yields nothing."""
    if isinstance(step, BaseException):
        raise step
    if isinstance(step, asyncio.Event):
        await step.wait()
    elif isinstance(step, float | int):
        await asyncio.sleep(step)
    else:
        assert callable(step), f"{step!r} is no step outside a stream"
        result = step(context)
        if inspect.isawaitable(result):
            await result


def now() -> float:
    """Return the running loop's time, in seconds; -1 without a loop."""
    try:
        return round(asyncio.get_running_loop().time(), 6)
    except RuntimeError:
        return -1.0
