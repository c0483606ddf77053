"""Replay a workload: each request arrives at its time and has its own client."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager, suppress
from typing import NamedTuple, cast

from opentelemetry.trace import Tracer

from operators import TokenTimes
from operators.assembly import loop_clock
from operators.authoring import has_content
from rx_backend.adapter import EngineAdapter
from rx_backend.checks import fraction, function, instance, integer
from rx_backend.context import RequestContext
from rx_backend.engine import (
    EngineConfig,
    LLMEngine,
    call_optional,
    check_config,
    check_methods,
)
from rx_backend.errors import BackendError, InvalidArgument, Unknown, as_backend_error
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    StopConditions,
)
from rx_backend.replay.figures import ReplayResult, RequestFigures, token_gaps
from rx_backend.replay.workload import Request, checked
from rx_backend.stream import ResponseStream

__all__ = ("check_rates", "replay")


async def replay(
    workload: Iterable[Request],
    engine: LLMEngine,
    *,
    cancel_rate: float = 0.0,
    drop_rate: float = 0.0,
    seed: int = 0,
    vocab_size: int | None = None,
    pipeline: PipelineSource = standard_pipeline,
    tracer: Tracer | None = None,
    record: bool | None = None,
    on_end: Callable[[ReplayResult], None] | None = None,
    result: ReplayResult | None = None,
) -> ReplayResult:
    """
    Send *workload* through an `EngineAdapter` over *engine*, and measure at the clients.

    The engine is started first and cleaned up at the end. Time is the running loop's: virtual under
    `rx_backend.testing.run_virtual`, real under `asyncio.run`. A request that exceeds the engine's
    `context_length` is truncated: its output to half of that, its prompt to the rest. The engine's
    end-of-text tokens are ignored, so that answers have the workload's lengths.

    Args:
        workload: The requests, in the order of arrival; iterated as they are due.
        engine: The engine, not yet started.
        cancel_rate: Share of the clients, 0 to 1, that call `context.stop_generating()` after some
            tokens and read to the end.
        drop_rate: Share of the clients, 0 to 1, that close the stream after some tokens.
        seed: Seed for the choice of these clients, their numbers of tokens, and the prompts.
        vocab_size: Prompts are random token ids from 1 to below this; zeros by default, which
            suffice for an engine without a model.
        pipeline: The adapter's.
        tracer: The adapter's.
        record: The adapter's.
        on_end: Called with the result so far whenever a request has ended.
        result: Filled while the replay runs; a new one by default. It keeps the figures so far if
            the replay is cancelled; requests in flight are `interrupted` then.

    Returns:
        The figures of all requests.

    Raises:
        InvalidArgument: An argument is invalid, *engine* has no required method, or the two rates
            sum to more than 1. Also, once the requests in flight have ended: the workload raised
            it, a request in it is invalid, or the pipeline yields something other than `Annotated`.
        Unknown: The engine's `start`, `drain` or `cleanup` failed; the message names which, and
            why.
    """
    result = ReplayResult() if result is None else result
    check_rates(cancel_rate, drop_rate)
    _check(engine, seed, on_end, result)
    requests = checked(workload)
    draw, draw_prompt = random.Random(seed), random.Random(seed)  # noqa: S311  # no secrets
    token_ids = [0] if vocab_size is None else range(1, integer("vocab_size", vocab_size, low=2))
    clock = loop_clock(asyncio.get_running_loop())
    adapter = EngineAdapter(engine, pipeline=pipeline, tracer=tracer, record=record)
    result.planned = len(workload) if isinstance(workload, Sized) else None
    problem: InvalidArgument | None = None
    try:
        config = await _started(engine, result)
        began = clock()

        async def serve(client: _Client) -> None:
            nonlocal problem
            result.running += 1
            try:
                await client.run(adapter, config.model)
            finally:
                problem = problem or client.problem
                client.add_to(result, began)
                if on_end is not None:
                    on_end(result)

        async with asyncio.TaskGroup() as tasks:
            try:
                for index, asked in enumerate(requests):
                    row = _cut(asked, config.context_length)
                    result.truncated += row != asked
                    prompt = draw_prompt.choices(token_ids, k=row.prompt_tokens)
                    plan = _plan(draw, row, cancel_rate, drop_rate)
                    delay = began + row.arrival_s - clock()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    if problem is not None:
                        break
                    tasks.create_task(serve(_Client(index, row, prompt, plan, clock)))
            except InvalidArgument as error:
                problem = error
        with _named(engine, "drain"):
            await call_optional(engine, "drain")
    except BaseException:
        with suppress(Exception):  # only the first error is raised
            await engine.cleanup()
        raise
    with _named(engine, "cleanup"):
        await engine.cleanup()
    if problem is not None:
        raise problem
    return result


async def _started(engine: LLMEngine, result: ReplayResult) -> EngineConfig:
    with _named(engine, "start"):
        config = check_config(await engine.start(0))
    result.model = config.served_model_name or config.model
    result.context_length = config.context_length
    return config


def check_rates(
    cancel_rate: float, drop_rate: float, names: tuple[str, str] = ("cancel_rate", "drop_rate")
) -> None:
    """Raise ``InvalidArgument`` unless both are from 0 to 1, and their sum is at most 1."""
    if fraction(names[0], cancel_rate) + fraction(names[1], drop_rate) > 1:
        raise InvalidArgument(f"{' and '.join(names)} must not sum to more than 1")


def _check(engine: LLMEngine, seed: object, on_end: object, result: object) -> None:
    check_methods(engine)
    integer("seed", seed)
    if on_end is not None:
        function("on_end", on_end)
    instance("result", result, ReplayResult)


@contextmanager
def _named(engine: LLMEngine, step: str) -> Generator[None]:
    """Raise failures of the block as ``Unknown``, with the names of the engine and the step."""
    try:
        yield
    except Exception as error:
        why = error.message if isinstance(error, BackendError) else error
        message = f"{type(engine).__name__}.{step} raised {type(error).__name__}: {why}"
        raise Unknown(message) from error


def _cut(row: Request, context_length: int | None) -> Request:
    """Return *row* truncated to the context: at most half of that for the output."""
    if not context_length:
        return row
    output = min(row.output_tokens, max(context_length // 2, 1))
    prompt = min(row.prompt_tokens, context_length - output)
    return Request(row.arrival_s, prompt, min(row.output_tokens, context_length - prompt))


class _Plan(NamedTuple):
    """A client's action on its own request."""

    after: float = math.inf
    """After how many tokens; a chunk with other content counts as one."""
    drop: bool = False
    """Whether to drop the stream; otherwise stop the request and continue reading."""


def _plan(draw: random.Random, row: Request, cancel_rate: float, drop_rate: float) -> _Plan:
    fate = draw.random()
    after = draw.randrange(row.output_tokens)
    if fate >= cancel_rate + drop_rate:
        return _Plan()
    return _Plan(after, drop=fate >= cancel_rate)


class _Client:
    """
    The client of one request, and its measurements so far.

    Attributes:
        problem: The error that makes the replay pointless; None if there is none.
    """

    def __init__(
        self,
        index: int,
        row: Request,
        prompt: list[int],
        plan: _Plan,
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._row = row
        self._prompt = prompt
        self._plan = plan
        self._clock = clock
        self._arrived = clock()
        self._seen = TokenTimes(clock)
        self.problem: InvalidArgument | None = None
        # A stream that ends without a terminal is incomplete.
        self._end("error", "StreamIncomplete")

    async def run(self, adapter: EngineAdapter, model: str) -> None:
        """Send the request and read its stream."""
        request = PreprocessedRequest(
            model=model,
            token_ids=self._prompt,
            stop_conditions=StopConditions(max_tokens=self._row.output_tokens, ignore_eos=True),
        )
        try:
            context = RequestContext(f"request-{self._index}")
            async with await adapter.generate(request, context) as stream:
                await self._read(stream)
        except Exception as failure:
            self._end("error", as_backend_error(failure).kind)
        except asyncio.CancelledError:
            self._end("interrupted")
            raise

    async def _read(self, stream: ResponseStream[Annotated[LLMEngineOutput]]) -> None:
        seen, left = self._seen, self._plan.after
        if left == 0 and self._leaves(stream):
            return
        async for item in stream:
            if not isinstance(cast("object", item), Annotated):
                got = type(item).__name__
                self.problem = InvalidArgument(f"pipeline: expected Annotated items, got {got}")
                self._end("error", self.problem.kind)
                return
            if item.error is not None:
                self._end("error", item.error.kind)
                return
            chunk = item.data
            if chunk is None:  # an event without a chunk, such as a heartbeat
                continue
            if has_content(chunk):
                seen.record_content(len(chunk.token_ids))
                left -= max(1, len(chunk.token_ids))
            reason = chunk.finish_reason
            if reason is not None:
                seen.record_terminal(chunk)
                self._end(reason.kind, "terminal" if reason.is_error else None)
            elif left <= 0 and self._leaves(stream):
                return

    def _leaves(self, stream: ResponseStream[Annotated[LLMEngineOutput]]) -> bool:
        """Execute the plan; return whether the stream is dropped."""
        if self._plan.drop:
            self._end("dropped")
        else:
            stream.context.stop_generating()
        return self._plan.drop

    def _end(self, outcome: str, error: str | None = None) -> None:
        self._outcome, self._error = outcome, error

    def add_to(self, result: ReplayResult, began: float) -> None:
        """Add the figures of the ended request to *result*."""
        ended, arrived, times = self._clock(), self._arrived, self._seen.times
        tokens = self._seen.output_tokens
        gaps, (p50, p90, p99) = token_gaps(times)
        result.running -= 1
        result.itl.add(gaps)
        result.tokens += tokens
        for place, time in enumerate(times):
            result.tokens_by_s[int(time - began)] += self._seen.sizes.get(place, 1)
        result.duration_s = ended - began
        result.requests.append(
            RequestFigures(
                index=self._index,
                arrival_s=round(arrived - began, 6),
                prompt_tokens=self._row.prompt_tokens,
                requested_tokens=self._row.output_tokens,
                tokens=tokens,
                outcome=self._outcome,
                error=self._error,
                ttft_ms=round((times[0] - arrived) * 1000, 2) if times else None,
                itl_p50_ms=p50,
                itl_p90_ms=p90,
                itl_p99_ms=p99,
                duration_ms=round((ended - arrived) * 1000, 2),
            )
        )
