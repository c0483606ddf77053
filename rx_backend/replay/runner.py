"""Replay a workload: each request arrives at its time and has a client of its own."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Iterable, Sized
from typing import NamedTuple

from opentelemetry.trace import Tracer

from operators.assembly import loop_clock
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine, check_config
from rx_backend.engines.checks import fraction
from rx_backend.errors import BackendError, InvalidArgument
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    StopConditions,
)
from rx_backend.replay.figures import ReplayResult, RequestFigures, token_gaps
from rx_backend.replay.workload import Request
from rx_backend.stream import ResponseStream

__all__ = ("check_rates", "replay")


async def replay(
    workload: Iterable[Request],
    engine: LLMEngine,
    *,
    cancel_rate: float = 0.0,
    drop_rate: float = 0.0,
    seed: int = 0,
    pipeline: PipelineSource = standard_pipeline,
    tracer: Tracer | None = None,
    record: bool | None = None,
    on_end: Callable[[ReplayResult], None] | None = None,
    result: ReplayResult | None = None,
) -> ReplayResult:
    """
    Send *workload* through an `EngineAdapter` over *engine*, and measure what clients see.

    The engine is started first and cleaned up at the end. Time is the running loop's: virtual
    under `rx_backend.testing.run_virtual`, real under `asyncio.run`.

    Args:
        workload: The requests, in the order of arrival; taken as they are due.
        engine: The engine, not started yet.
        cancel_rate: Part of the clients, 0 to 1, that call `context.stop_generating()` after
            some tokens and read on to the end.
        drop_rate: Part of the clients, 0 to 1, that close the stream after some tokens.
        seed: Seed of which clients these are, and after how many tokens.
        pipeline: The adapter's.
        tracer: The adapter's.
        record: The adapter's.
        on_end: Called with the result so far whenever a request has ended.
        result: Filled while the replay runs; a new one by default. It keeps the figures so far if
            the replay is cancelled; requests in flight are `interrupted` then.

    Returns:
        The figures of all requests.

    Raises:
        InvalidArgument: A rate is out of its range, or the two sum to more than 1; or the workload
            raised it, and then only when the requests in flight have ended.
    """
    check_rates(cancel_rate, drop_rate)
    draw = random.Random(seed)  # noqa: S311  # a simulation, no secret
    clock = loop_clock(asyncio.get_running_loop())
    adapter = EngineAdapter(engine, pipeline=pipeline, tracer=tracer, clock=clock, record=record)
    result = result or ReplayResult()
    result.planned = len(workload) if isinstance(workload, Sized) else None
    bad_row: InvalidArgument | None = None
    try:
        model = check_config(await engine.start(0)).model
        began = clock()

        async def serve(client: _Client) -> None:
            result.running += 1
            try:
                await client.run(adapter, model)
            finally:
                client.add_to(result, began)
                if on_end is not None:
                    on_end(result)

        async with asyncio.TaskGroup() as tasks:
            try:
                for index, row in enumerate(workload):
                    plan = _plan(draw, row, cancel_rate, drop_rate)
                    delay = began + row.arrival_s - clock()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    tasks.create_task(serve(_Client(index, row, plan, clock)))
            except InvalidArgument as error:
                bad_row = error
        await engine.drain()
    finally:
        await engine.cleanup()
    if bad_row is not None:
        raise bad_row
    return result


def check_rates(cancel_rate: float, drop_rate: float) -> None:
    """Raise ``InvalidArgument`` unless both are from 0 to 1, and their sum is at most 1."""
    if fraction("cancel_rate", cancel_rate) + fraction("drop_rate", drop_rate) > 1:
        raise InvalidArgument("cancel_rate and drop_rate must not sum to more than 1")


class _Plan(NamedTuple):
    """What a client does to its own request."""

    after: int = -1
    """After how many chunks with tokens; -1 for never."""
    drop: bool = False
    """Drop the stream; otherwise stop the request and read on."""


def _plan(draw: random.Random, row: Request, cancel_rate: float, drop_rate: float) -> _Plan:
    if not cancel_rate + drop_rate:
        return _Plan()
    fate = draw.random()
    after = draw.randrange(row.output_tokens)
    if fate >= cancel_rate + drop_rate:
        return _Plan()
    return _Plan(after, drop=fate >= cancel_rate)


class _Client:
    """The client of one request, and what it has seen so far."""

    def __init__(self, index: int, row: Request, plan: _Plan, clock: Callable[[], float]) -> None:
        self._index = index
        self._row = row
        self._plan = plan
        self._clock = clock
        self._arrived = clock()
        self._times = array("d")
        self._tokens = 0
        # A stream that ends without a terminal is incomplete.
        self._end("error", "StreamIncomplete")

    async def run(self, adapter: EngineAdapter, model: str) -> None:
        """Send the request and read its stream."""
        request = PreprocessedRequest(
            model=model,
            token_ids=[0] * self._row.prompt_tokens,
            stop_conditions=StopConditions(max_tokens=self._row.output_tokens),
        )
        try:
            context = RequestContext(f"request-{self._index}")
            async with await adapter.generate(request, context) as stream:
                await self._read(stream)
        except BackendError as failure:
            self._end("error", failure.kind)
        except asyncio.CancelledError:
            self._end("interrupted")
            raise

    async def _read(self, stream: ResponseStream[Annotated[LLMEngineOutput]]) -> None:
        clock, times, add_time, after = (
            self._clock,
            self._times,
            self._times.append,
            self._plan.after,
        )
        if after == 0 and self._leaves(stream):
            return
        async for item in stream:
            chunk = item.data
            if chunk is None:
                self._end("error", item.error.kind if item.error is not None else "Unknown")
                return
            if chunk.token_ids:
                add_time(clock())
                self._tokens += len(chunk.token_ids)
            reason = chunk.finish_reason
            if reason is not None:
                self._end(reason.kind, "terminal" if reason.is_error else None)
            elif len(times) == after and self._leaves(stream):
                return

    def _leaves(self, stream: ResponseStream[Annotated[LLMEngineOutput]]) -> bool:
        """Do as planned; return whether the stream is dropped."""
        if self._plan.drop:
            self._end("dropped")
        else:
            stream.context.stop_generating()
        return self._plan.drop

    def _end(self, outcome: str, error: str | None = None) -> None:
        self._outcome, self._error = outcome, error

    def add_to(self, result: ReplayResult, began: float) -> None:
        """Add the figures of the request, which has ended, to *result*."""
        ended, arrived, times = self._clock(), self._arrived, self._times
        gaps, (p50, p90, p99) = token_gaps(times)
        result.running -= 1
        result.itl.add(gaps)
        result.tokens += self._tokens
        result.tokens_by_s.update([int(time - began) for time in times])
        result.duration_s = ended - began
        result.requests.append(
            RequestFigures(
                index=self._index,
                arrival_s=round(arrived - began, 6),
                prompt_tokens=self._row.prompt_tokens,
                asked_tokens=self._row.output_tokens,
                tokens=self._tokens,
                outcome=self._outcome,
                error=self._error,
                ttft_ms=round((times[0] - arrived) * 1000, 2) if times else None,
                itl_p50_ms=p50,
                itl_p90_ms=p90,
                itl_p99_ms=p99,
                duration_ms=round((ended - arrived) * 1000, 2),
            )
        )
