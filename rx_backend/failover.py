"""An engine that resumes a request on another engine when the one at work is lost."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

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
)
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumption import NotResumable, ResumeState, continuation_request, has_hand_off
from rx_backend.retry_budget import RetryBudget
from rx_backend.telemetry import worker_trace_link

__all__ = ("LOST_WORKER", "FailoverEngine", "HandOff", "NotResumable")

LOST_WORKER: Final[tuple[type[Exception], ...]] = (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    StreamIncomplete,
)
"""The errors that mean a lost worker."""

HandOff: TypeAlias = Callable[
    [PreprocessedRequest], PreprocessedRequest | Awaitable[PreprocessedRequest]
]
"""Returns a request with a hand-off for the engine that is to take it."""


class FailoverEngine(CombinedEngine):
    """
    Resume a request on the next engine when the one at work is lost.

    The adapter sees one stream: one first token, one span, and a gap where the engine was lost. The
    next engine gets the tokens that were handed out as a part of its prompt, `max_tokens` and
    `min_tokens` reduced by as many, the lost worker's span as `migration_link` (row T1), and a
    context of its own, ``<id>/resume-1``. The client gets the usage of the whole request.

    An answer that lacks only its terminal gets it here, without another engine: its last token is an
    end token, or the last one allowed.

    A request is not resumed after a stop, nor where its state can't move: guided decoding, several
    choices (``n``, ``best_of``, beams, chunks with an index), a prompt of embeddings, text without
    token ids, a health check, and a hand-off from another worker unless *hand_off* can repeat it.
    Sampling with a seed, and penalties on what was generated, start anew at the seam; so does the
    search for stop strings.

    Args:
        engines: In the order in which they are asked; after the last one the first is asked again.
        limit: How often one request is resumed, 0 or more.
        errors: What means that an engine is lost; `StreamIncomplete` stands for an end without a
            terminal too.
        hand_off: Repeats the hand-off of a request that has one (`prefill_result`,
            `bootstrap_info`, `encoder_result`), for a prompt that is longer by then.
        budget: Bounds the resumed requests among all; by default a fifth of them, and 100 at once.
            Where a connection was refused the engine had no load, so that costs nothing.

    Raises:
        ValueError, TypeError: An argument is something else.

    Where a request can't be resumed it fails with the error of the engine that was lost. A note and
    a cause of class `NotResumable` say why.

    >>> import asyncio
    >>> from structlog.testing import capture_logs
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
    >>> with capture_logs():
    ...     asyncio.run(main())
    [7] None
    [0] None
    [1] length
    CompletionUsage(prompt_tokens=2, completion_tokens=3, total_tokens=5)
    """

    def __init__(
        self,
        *engines: LLMEngine,
        limit: int = 1,
        errors: tuple[type[Exception], ...] = LOST_WORKER,
        hand_off: HandOff | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        super().__init__(engines)
        _check(engines, limit, errors, hand_off)
        self._limit = limit
        self._errors = errors
        self._hand_off = hand_off
        self._budget = RetryBudget(ratio=0.2, burst=100.0) if budget is None else budget

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the request's chunks from one engine after the other."""
        self._budget.add_request()
        state = ResumeState(request)
        part, attempt = request, 0
        while True:
            failure: Exception | None = None
            engine = self.engines[attempt % len(self.engines)]
            call = EngineCall(engine, context, self._live, f"resume-{attempt}" if attempt else "")
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
                is_over = state.has_terminal or context.is_stopped
                if failure is None:
                    failure = StreamIncomplete("the engine's stream ended before its terminal")
                    if is_over or not self._means_lost(failure):
                        return
                elif is_over or not self._means_lost(failure):
                    raise failure
                terminal = state.missing_terminal()
                if terminal is not None:
                    _log.warning(
                        "engine lost behind a complete answer",
                        request_id=context.id,
                        output_tokens=len(state.token_ids),
                        **describe(failure),
                    )
                    yield terminal
                    return
                attempt += 1
                following = await self._next_part(request, context, state, failure, attempt)
                if isinstance(following, NotResumable):
                    _explain(failure, following)
                    raise failure
                part = following
            finally:
                # This frame is in its traceback: a reference back would be a cycle.
                del failure

    async def _next_part(
        self,
        request: PreprocessedRequest,
        context: RequestContext,
        state: ResumeState,
        failure: Exception,
        attempt: int,
    ) -> PreprocessedRequest | NotResumable:
        """Return the request for the next engine, or why there is none."""
        if attempt > self._limit:
            times = "once" if self._limit == 1 else f"{self._limit} times"
            return NotResumable(f"resumed {times} already, the limit is {self._limit}")
        blocker = state.blocker()
        if blocker is None and has_hand_off(request) and self._hand_off is None:
            blocker = "its hand-off from another worker was for the engine that is lost"
        if blocker is not None:
            return NotResumable(blocker)
        # An engine that refused the connection has not read the prompt.
        is_free = isinstance(as_backend_error(failure), CannotConnect)
        if not is_free and not self._budget.withdraw():
            return NotResumable("the retry budget is spent")
        span = trace.get_current_span()
        tokens = state.token_ids.tolist()
        part = continuation_request(request, tokens, state.link or worker_trace_link(span))
        if has_hand_off(request) and self._hand_off is not None:
            try:
                part = await _awaited(self._hand_off(part))
            except Exception as error:
                drop_top_frame(error)
                if isinstance(error, NotResumable):
                    return error
                reason = NotResumable(f"its hand-off could not be repeated: {error}")
                reason.__cause__ = error
                return reason
        if not is_free and context.wasted is not None:
            context.wasted.input += len(part.token_ids)
        state.next_part()
        if span.is_recording():
            span.add_event("resumed", {"output_tokens": len(tokens)})
        _log.warning(
            "request resumed on another engine",
            request_id=context.id,
            attempt=attempt,
            output_tokens=len(tokens),
            **describe(failure),
        )
        return part

    def _means_lost(self, error: Exception) -> bool:
        return isinstance(error, self._errors) or isinstance(as_backend_error(error), self._errors)


def _check(engines: tuple[LLMEngine, ...], limit: object, errors: object, hand_off: object) -> None:
    if not engines:
        raise TypeError("FailoverEngine: engines: expected one or more")
    if type(limit) is not int or limit < 0:
        raise ValueError(f"FailoverEngine: limit: expected 0 resumptions or more, got {limit!r}")
    entries = cast("tuple[object, ...]", errors) if isinstance(errors, tuple) else (None,)
    if not all(isinstance(entry, type) and issubclass(entry, Exception) for entry in entries):
        raise TypeError(f"FailoverEngine: errors: expected classes of errors, got {errors!r}")
    if hand_off is not None and not callable(hand_off):
        raise TypeError(f"FailoverEngine: hand_off: expected a function, got {hand_off!r}")


async def _awaited(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def _explain(error: BaseException, reason: NotResumable) -> None:
    """Make *reason* the nearest cause of *error*; what was its cause is then the farthest."""
    error.add_note(f"not resumed: {reason}")
    end: BaseException = reason
    while end.__cause__ is not None:
        end = end.__cause__
    if error.__cause__ is not end:
        end.__cause__ = error.__cause__
    error.__cause__ = reason


_log = get_logger(__name__)
