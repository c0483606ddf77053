"""An engine that resumes a request on another engine when the active one is lost."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

from opentelemetry import trace

from operators.assembly import CHECKED, check_arguments, drop_top_frame
from operators.authoring import AtLeast
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
)
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumption import ResumeState, continuation_request
from rx_backend.retry_budget import RetryBudget
from rx_backend.telemetry import worker_trace_link

__all__ = ("FailoverEngine",)

_LOST: Final = (CannotConnect, ConnectionTimeout, Disconnected, EngineShutdown, StreamIncomplete)


class FailoverEngine(CombinedEngine):
    """
    Resume a request on the next engine when the active one is lost.

    An engine is lost when it fails with `CannotConnect`, `ConnectionTimeout`, `Disconnected`,
    `EngineShutdown` or `StreamIncomplete`, or ends without a terminal.

    The adapter sees one stream: one first token, one span, and a gap where the engine was lost. The
    next engine gets the tokens handed out so far as part of its prompt, `max_tokens` and
    `min_tokens` reduced accordingly, the lost worker's span as `migration_link` (row T1), and its
    own context, ``<id>/resume-1``. The client gets the usage of the whole request. An answer in
    which only the terminal is missing, because its last token is an end token or the last one
    allowed, gets it without another engine.

    A request is not resumed after a stop, nor if its state cannot be moved: guided decoding,
    several choices (``n``, ``best_of``, beams, chunks with an index), a prompt of embeddings, text
    without token ids, a health check, or a hand-off from another worker. Seeded sampling, penalties
    on generated tokens and the search for stop strings start over on the next engine. A request
    that can't be resumed fails with the error of the lost engine; a note on it, and the log, say
    why.

    Args:
        engines: In the order in which they are tried, cyclically. An engine that has reported that
            it is :meth:`lost` is skipped.
        limit: How often one request may be resumed, at least 0.
        budget: Limits the share of resumed requests; by default a fifth of all, and bursts of 100.
            A refused connection is free: it caused no load.

    Raises:
        ValueError, TypeError: An argument is invalid.

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
        limit: Annotated[int, AtLeast(0, "resumptions")] = 1,
        budget: Annotated[RetryBudget, CHECKED] | None = None,
    ) -> None:
        super().__init__(engines)
        check_arguments(FailoverEngine, *engines, limit=limit, budget=budget)
        self._limit = limit
        self._budget = RetryBudget(ratio=0.2, burst=100.0) if budget is None else budget

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the request's chunks from one engine after another."""
        self._budget.add_request()
        state, part, place = ResumeState(request), request, 0
        for attempt in itertools.count(1):
            place = self._working_from(place)
            name = f"resume-{attempt - 1}" if attempt > 1 else ""
            try:
                async with aclosing(EngineCall(self.engines[place], context, name)) as call:
                    async for item in await call.open(part):
                        call.report_queue_time()
                        yield state.add(item)
                _check_complete(state)
                return
            except Exception as error:
                drop_top_frame(error)
                is_lost = isinstance(as_backend_error(error), _LOST)
                if state.answers.are_over or context.is_stopped or not is_lost:
                    raise
                is_free = isinstance(as_backend_error(error), CannotConnect)
                log = _log.bind(request_id=context.id, attempt=attempt, **describe(error))
                log = log.bind(output_tokens=len(state.token_ids))
                terminal = state.missing_terminal()
                if terminal is not None:
                    log.warning("engine lost after a complete answer")
                elif blocker := self._blocker(state, attempt, is_free=is_free):
                    log.warning("request not resumed", because=blocker)
                    note = f"not resumed: {blocker}"
                    # An engine may raise the same instance for many requests.
                    if note not in getattr(error, "__notes__", ()):
                        error.add_note(note)
                    raise
                else:
                    log.warning("request resumed on another engine")
            if terminal is not None:
                yield terminal
                return
            part = _next_part(context, state, is_free=is_free)
            place += 1

    def _blocker(self, state: ResumeState, attempt: int, *, is_free: bool) -> str | None:
        """Return why the answer can't be resumed; None if it can, which the budget has paid for."""
        if attempt > self._limit:
            return f"the limit of {self._limit} resumptions is reached"
        blocker = state.blocker()
        if blocker is None and not is_free and not self._budget.withdraw():
            return "the retry budget is spent"
        return blocker

    def _working_from(self, place: int) -> int:
        """Return the index of the next engine from *place* on, cyclically, that is not lost."""
        count = len(self.engines)
        places = [(place + step) % count for step in range(count)]
        return next((each for each in places if not self._is_lost(self.engines[each])), places[0])


def _check_complete(state: ResumeState) -> None:
    if not state.answers.are_over:
        raise StreamIncomplete("the engine's stream ended before its terminal")


def _next_part(
    context: RequestContext, state: ResumeState, *, is_free: bool
) -> PreprocessedRequest:
    """Return the request for the next engine."""
    span, tokens = trace.get_current_span(), state.token_ids.tolist()
    part = continuation_request(state.request, tokens, state.link or worker_trace_link(span))
    if not is_free and context.wasted is not None:
        context.wasted.input += len(part.token_ids)
    span.add_event("resumed", {"output_tokens": len(tokens)})
    state.begin_part()
    return part


_log = get_logger(__name__)
