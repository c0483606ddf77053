"""An engine that resumes a request on another engine when the active one is lost."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeAlias

from opentelemetry import trace

from operators.assembly import drop_top_frame
from rx_backend.combined_engine import CombinedEngine, EngineCall
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.errors import (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    StreamIncomplete,
    as_backend_error,
    causes,
)
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumption import NotResumable, ResumeState, continuation_request, has_hand_off
from rx_backend.retry_budget import RetryBudget
from rx_backend.telemetry import worker_trace_link

__all__ = ("FailoverEngine", "HandOff", "NotResumable")

_LOST: Final = (CannotConnect, ConnectionTimeout, Disconnected, EngineShutdown, StreamIncomplete)

HandOff: TypeAlias = Callable[
    [PreprocessedRequest], PreprocessedRequest | Awaitable[PreprocessedRequest]
]
"""Returns a request with a hand-off for the engine that is to take it."""


class FailoverEngine(CombinedEngine):
    """
    Resume a request on the next engine when the active one is lost.

    An engine is lost when it fails with `CannotConnect`, `ConnectionTimeout`, `Disconnected`,
    `EngineShutdown` or `StreamIncomplete`, or ends without a terminal.

    The adapter sees one stream: one first token, one span, and a gap where the engine was lost. The
    next engine gets the tokens that were handed out as part of its prompt, `max_tokens` and
    `min_tokens` reduced by as many, the lost worker's span as `migration_link` (row T1), and a
    context of its own, ``<id>/resume-1``. The client gets the usage of the whole request. An answer
    that lacks only its terminal, because its last token is an end token or the last one allowed,
    gets that terminal without another engine.

    A request is not resumed after a stop, nor if its state cannot be moved: guided decoding, several
    choices (``n``, ``best_of``, beams, chunks with an index), a prompt of embeddings, text without
    token ids, a health check, or a hand-off from another worker that *hand_off* does not repeat.
    Seeded sampling, penalties on generated tokens and the search for stop strings restart at the
    seam. A request that cannot be resumed fails with the error of the lost engine; a note and a
    cause of class `NotResumable` say why.

    Args:
        engines: In the order in which they are asked; after the last one the first is asked again.
            A worker awaits :meth:`lost`; one that has told there that it is lost is left out.
        limit: How often one request is resumed, 0 or more.
        hand_off: Repeats the hand-off of a request that has one (`prefill_result`,
            `bootstrap_info`, `encoder_result`), for the prompt that it then has.
        budget: Bounds the share of resumed requests; by default a fifth of all, and 100 at once. A
            refused connection is free: it put no load on the engine.

    Raises:
        ValueError, TypeError: An argument does not fit.

    >>> import asyncio
    >>> from rx_backend import EngineAdapter
    >>> from rx_backend.engines import SampleEngine
    >>> class Lost(SampleEngine):
    ...     async def generate(self, request, context):
    ...         yield LLMEngineOutput.token(7)
    ...         raise Disconnected("the worker is gone")
    >>> async def main():
    ...     engine = FailoverEngine(Lost(), SampleEngine())
    ...     request = PreprocessedRequest(token_ids=[1, 2], stop_conditions={"max_tokens": 3})
    ...     async for item in await EngineAdapter(engine).generate(request):
    ...         print(item.data.token_ids, item.data.finish_reason)
    ...     print(item.data.completion_usage)
    >>> asyncio.run(main())
    [7] None
    [0] None
    [1] length
    CompletionUsage(prompt_tokens=2, completion_tokens=3, total_tokens=5)
    """

    def __init__(
        self,
        *engines: LLMEngine,
        limit: int = 1,
        hand_off: HandOff | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        super().__init__(engines)
        if not engines:
            raise TypeError("FailoverEngine: engines: expected one or more")
        if type(limit) is not int or limit < 0:
            raise ValueError(
                f"FailoverEngine: limit: expected 0 resumptions or more, got {limit!r}"
            )
        if hand_off is not None and not callable(hand_off):
            raise TypeError(f"FailoverEngine: hand_off: expected a function, got {hand_off!r}")
        self._limit = limit
        self._hand_off = hand_off
        self._budget = RetryBudget(ratio=0.2, burst=100.0) if budget is None else budget

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the request's chunks from one engine after another."""
        self._budget.add_request()
        state, part, place = ResumeState(request), request, 0
        for attempt in itertools.count():
            place = self._working_from(place)
            name = f"resume-{attempt}" if attempt else ""
            call = EngineCall(self.engines[place], context, self._live, name)
            place += 1
            failure: Exception | None = None
            try:
                async for item in await call.open(part):
                    chunk = state.add(item)
                    if state.has_terminal:
                        call.report_queue_time()
                    yield chunk
            except Exception as error:
                drop_top_frame(error)
                failure = error
            finally:
                await call.aclose()
            try:
                has_raised = failure is not None
                if failure is None:
                    failure = StreamIncomplete("the engine's stream ended before its terminal")
                if (
                    state.has_terminal
                    or context.is_stopped
                    or not isinstance(as_backend_error(failure), _LOST)
                ):
                    if has_raised:
                        raise failure
                    return
                terminal = state.missing_terminal()
                if terminal is not None:
                    _log_loss(
                        "engine lost after a complete answer", context, state, attempt, failure
                    )
                    yield terminal
                    return
                is_free = isinstance(as_backend_error(failure), CannotConnect)
                try:
                    part = await self._next_part(context, state, attempt + 1, is_free=is_free)
                except NotResumable as reason:
                    _explain(failure, reason)
                    raise failure from reason
                _log_loss("request resumed on another engine", context, state, attempt, failure)
                state.begin_part()
            finally:
                # This frame is in its traceback: a reference back would be a cycle.
                del failure

    async def _next_part(
        self, context: RequestContext, state: ResumeState, attempt: int, *, is_free: bool
    ) -> PreprocessedRequest:
        """Return the request for the next engine, or raise `NotResumable`."""
        request = state.request
        if attempt > self._limit:
            raise NotResumable(f"the limit of resumptions is reached: {self._limit}")
        blocker = state.blocker()
        if blocker is None and has_hand_off(request) and self._hand_off is None:
            blocker = "its hand-off from another worker was for the lost engine"
        if blocker is not None:
            raise NotResumable(blocker)
        if not is_free and not self._budget.withdraw():
            raise NotResumable("the retry budget is spent")
        span, tokens = trace.get_current_span(), state.token_ids.tolist()
        part = continuation_request(request, tokens, state.link or worker_trace_link(span))
        if has_hand_off(request) and self._hand_off is not None:
            part = await _repeated(self._hand_off, part)
        if not is_free and context.wasted is not None:
            context.wasted.input += len(part.token_ids)
        if span.is_recording():
            span.add_event("resumed", {"output_tokens": len(tokens)})
        return part

    def _working_from(self, place: int) -> int:
        """Return the place of the next engine from *place* on, in a circle, that is not lost."""
        count = len(self.engines)
        places = [(place + step) % count for step in range(count)]
        return next((each for each in places if not self._is_lost(self.engines[each])), places[0])


async def _repeated(hand_off: HandOff, part: PreprocessedRequest) -> PreprocessedRequest:
    try:
        given = hand_off(part)
        return await given if inspect.isawaitable(given) else given
    except NotResumable:
        raise
    except Exception as error:
        raise NotResumable(f"its hand-off could not be repeated: {error}") from error


def _explain(error: BaseException, reason: NotResumable) -> None:
    """Make *reason* the nearest cause of *error*, in front of the cause that it has."""
    error.add_note(f"not resumed: {reason}")
    *_, last = reason, *causes(reason)
    if last is not error.__cause__:
        last.__cause__ = error.__cause__


def _log_loss(
    event: str, context: RequestContext, state: ResumeState, attempt: int, error: Exception
) -> None:
    _log.warning(
        event,
        request_id=context.id,
        attempt=attempt + 1,
        output_tokens=len(state.token_ids),
        **describe(error),
    )


_log = get_logger(__name__)
