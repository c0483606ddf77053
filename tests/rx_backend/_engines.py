"""Engines that play a script, and short ways to drive them through an adapter in virtual time."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines import SampleEngine
from rx_backend.errors import Disconnected
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    StopConditions,
    TraceLink,
)
from rx_backend.stream import ResponseStream
from rx_backend.testing import run_virtual
from tests.spans import Spans

Item: TypeAlias = Annotated[LLMEngineOutput]
Stream: TypeAlias = ResponseStream[Item]

P = ParamSpec("P")
A = TypeVar("A")

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
function of the context (and await what it gives, where that can be awaited).
"""


class ScriptedEngine(LLMEngine):
    """
    Plays one script for every request, and counts what was done to it.

    Args:
        script: The steps of a stream.
        setup: Steps of ``generate`` itself, before there is a stream.
        abort: Steps of ``abort``.
        closing: Steps of the stream's ``finally``.

    Attributes:
        calls: How often ``generate`` was called.
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
        return self._set_up(context) if self._setup else self._stream(context)

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append(now())
        for step in self._abort:
            await _play(step, context)

    async def _set_up(self, context: RequestContext) -> AsyncGenerator[Any]:
        for step in self._setup:
            await _play(step, context)
        return self._stream(context)

    async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
        self.pulls += 1
        try:
            for step in self._script:
                if isinstance(step, LLMEngineOutput | Mapping | Give):
                    yield step.item if isinstance(step, Give) else step
                    self.pulls += 1
                else:
                    await _play(step, context)
        finally:
            self.closes.append(now())
            for step in self._closing:
                await _play(step, context)
            self.closed += 1


async def _play(step: Step, context: RequestContext) -> None:
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
    """The running loop's time, in seconds."""
    loop = _loop_or_none()
    return -1.0 if loop is None else round(loop.time(), 6)


async def settle() -> None:
    """Let the loop turn, so that closings which wait for nothing come to their end."""
    for _ in range(5):
        await asyncio.sleep(0)


def _loop_or_none() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def virtual(test: Callable[P, Coroutine[Any, Any, A]]) -> Callable[P, A]:
    """Make a test of an asynchronous function: it runs on a fresh loop in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> A:
        return run_virtual(test(*args, **kwargs))

    return run


def request(prompt: int = 3, migrated_from: TraceLink | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="mock", token_ids=list(range(prompt)), migration_link=migrated_from
    )


# What a span of `request()` has from its start, and the status of one whose stream was dropped.
ENTRY = {"model": "mock", "input_tokens": 3, "disagg_role": "agg"}
DROPPED = (StatusCode.ERROR, "stream dropped before terminal")


def status_of(span: ReadableSpan) -> tuple[StatusCode, str | None]:
    return span.status.status_code, span.status.description


def adapter_of(
    engine: object,
    mode: DisaggregationMode | str = "agg",
    spans: Spans | None = None,
    *,
    pipeline: PipelineSource = standard_pipeline,
    record: bool | None = None,
) -> EngineAdapter:
    """An adapter on the running loop's clock; without *spans* its spans don't record."""
    return EngineAdapter(
        cast("LLMEngine", engine),
        mode,
        pipeline,
        tracer=None if spans is None else spans.tracer,
        clock=asyncio.get_running_loop().time,
        record=record,
    )


async def collect(stream: AsyncIterable[A]) -> list[A]:
    return [item async for item in stream]


def chunk_of(item: Item) -> LLMEngineOutput:
    assert item.data is not None, f"no chunk in {item!r}"
    return item.data


def tokens_of(items: Sequence[Item]) -> list[list[int]]:
    return [chunk_of(item).token_ids for item in items]


class Mortal(LLMEngine):
    """
    Another engine, whose tokens count on from the prompt, and which may die.

    Args:
        engine: The engine.
        lives: After how many tokens it dies; None for never.
        error: What it dies with; None to end without a terminal.
        delay_s: How long it is silent before it begins.
    """

    def __init__(
        self,
        engine: LLMEngine | None = None,
        lives: int | None = None,
        *,
        error: Exception | None = None,
        ends: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        self.engine = SampleEngine(token_interval_ms=1000) if engine is None else engine
        self.lives = lives
        self.error = Disconnected("gone") if error is None else error
        self.ends = ends
        self.delay_s = delay_s
        self.requests: list[PreprocessedRequest] = []
        self.contexts: list[RequestContext] = []
        self.aborts: list[tuple[str, float]] = []
        self.opened = self.closed = 0
        self.opened_at = self.closed_at = -1.0
        self.first_token_at: float | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        return await self.engine.start(worker_id)

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append((context.id, now()))
        await self.engine.abort(context)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.requests.append(request)
        self.contexts.append(context)
        self.opened += 1
        self.opened_at = now()
        made = 0
        chunks: Any = self.engine.generate(request, context)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.lives == 0:
                raise self.error
            async for chunk in chunks:
                done = len(request.token_ids) + made
                made += len(chunk.token_ids)
                if made and self.first_token_at is None:
                    self.first_token_at = now()
                yield replace(chunk, token_ids=list(range(done, done + len(chunk.token_ids))))
                if self.lives is not None and made >= self.lives:
                    if self.ends:
                        return
                    raise self.error
        finally:
            await chunks.aclose()
            self.closed += 1
            self.closed_at = now()


def counting_request(max_tokens: int = 6, **fields: Any) -> PreprocessedRequest:
    """A request that a `Mortal` engine answers with tokens from 3 on."""
    conditions = StopConditions(max_tokens=max_tokens, min_tokens=4)
    return PreprocessedRequest(
        model="mock", token_ids=[0, 1, 2], stop_conditions=conditions, **fields
    )


def flat(items: Sequence[Item]) -> list[int]:
    return [token_id for tokens in tokens_of(items) for token_id in tokens]
