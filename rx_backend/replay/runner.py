"""Replay a workload: each request arrives at its time and has a client of its own."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Iterable, Sized
from typing import NamedTuple

from opentelemetry.trace import Tracer

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
    loop = asyncio.get_running_loop()
    adapter = EngineAdapter(
        engine, pipeline=pipeline, tracer=tracer, clock=loop.time, record=record
    )
    result = result or ReplayResult()
    result.planned = len(workload) if isinstance(workload, Sized) else None
    bad_row: InvalidArgument | None = None
    try:
        config = check_config(await engine.start(0))
        clients = _Clients(adapter, config.model, result, on_end)
        async with asyncio.TaskGroup() as tasks:
            try:
                for index, row in enumerate(workload):
                    plan = _plan(draw, row, cancel_rate, drop_rate)
                    delay = clients.began + row.arrival_s - loop.time()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    tasks.create_task(clients.run(index, row, plan))
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

    def act(self, context: RequestContext, seen: _Seen) -> bool:
        """Do it; return whether to read on."""
        if self.drop:
            seen.outcome, seen.error = "dropped", None
        else:
            context.stop_generating()
        return not self.drop


def _plan(draw: random.Random, row: Request, cancel_rate: float, drop_rate: float) -> _Plan:
    if not cancel_rate + drop_rate:
        return _Plan()
    fate = draw.random()
    after = draw.randrange(row.output_tokens)
    if fate >= cancel_rate + drop_rate:
        return _Plan()
    return _Plan(after, drop=fate >= cancel_rate)


class _Clients:
    """The clients of one replay, and the result that they add to."""

    def __init__(
        self,
        adapter: EngineAdapter,
        model: str,
        result: ReplayResult,
        on_end: Callable[[ReplayResult], None] | None,
    ) -> None:
        self._result = result
        self._adapter = adapter
        self._model = model
        self._on_end = on_end
        self._clock = asyncio.get_running_loop().time
        self.began = self._clock()

    async def run(self, index: int, row: Request, plan: _Plan) -> None:
        """Run the client of one request."""
        self._result.running += 1
        seen = _Seen(index, row, self._clock())
        request = PreprocessedRequest(
            model=self._model,
            token_ids=[0] * row.prompt_tokens,
            stop_conditions=StopConditions(max_tokens=row.output_tokens),
        )
        context = RequestContext(f"request-{index}")
        try:
            async with await self._adapter.generate(request, context) as stream:
                await self._read(stream, plan, seen)
        except BackendError as failure:
            seen.fail(failure.kind)
        except asyncio.CancelledError:
            seen.outcome, seen.error = "interrupted", None
            raise
        finally:
            self._add(seen)

    async def _read(
        self, stream: ResponseStream[Annotated[LLMEngineOutput]], plan: _Plan, seen: _Seen
    ) -> None:
        """Read the stream, and act on it as planned."""
        clock, times, add_time = self._clock, seen.times, seen.times.append
        if plan.after == 0 and not plan.act(stream.context, seen):
            return
        async for item in stream:
            chunk = item.data
            if chunk is None:
                seen.fail(item.error.kind if item.error is not None else "Unknown")
                return
            if chunk.token_ids:
                add_time(clock())
                seen.tokens += len(chunk.token_ids)
            reason = chunk.finish_reason
            if reason is not None:
                seen.outcome = reason.kind
                seen.error = "terminal" if reason.is_error else None
            elif len(times) == plan.after and not plan.act(stream.context, seen):
                return

    def _add(self, seen: _Seen) -> None:
        ended, began, times = self._clock(), self.began, seen.times
        gaps, (p50, p90, p99) = token_gaps(times)
        result = self._result
        result.running -= 1
        result.itl.add(gaps)
        result.tokens += seen.tokens
        result.tokens_by_s.update([int(time - began) for time in times])
        result.duration_s = ended - began
        result.requests.append(
            RequestFigures(
                index=seen.index,
                arrival_s=round(seen.arrived - began, 6),
                prompt_tokens=seen.row.prompt_tokens,
                asked_tokens=seen.row.output_tokens,
                tokens=seen.tokens,
                outcome=seen.outcome,
                error=seen.error,
                ttft_ms=round((times[0] - seen.arrived) * 1000, 2) if times else None,
                itl_p50_ms=p50,
                itl_p90_ms=p90,
                itl_p99_ms=p99,
                duration_ms=round((ended - seen.arrived) * 1000, 2),
            )
        )
        if self._on_end is not None:
            self._on_end(result)


class _Seen:
    """What one client has seen so far. A stream that ends without a terminal is incomplete."""

    __slots__ = ("arrived", "error", "index", "outcome", "row", "times", "tokens")

    def __init__(self, index: int, row: Request, arrived: float) -> None:
        self.index = index
        self.row = row
        self.arrived = arrived
        self.times = array("d")
        self.tokens = 0
        self.fail("StreamIncomplete")

    def fail(self, kind: str) -> None:
        self.outcome = "error"
        self.error: str | None = kind
