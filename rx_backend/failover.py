"""Go on with another engine when the one that a request is at is lost."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from operators import NotResumable, ResumePoint, fuse, resume_on
from operators.authoring import AnyOperator, FusedRun
from rx_backend.engine import LLMEngine
from rx_backend.errors import (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    StreamIncomplete,
    as_backend_error,
)
from rx_backend.live_engines import LiveEngines, check_engine, check_functions
from rx_backend.logger import describe, get_logger
from rx_backend.pipeline import RequestScope
from rx_backend.protocols import PreprocessedRequest, TraceLink
from rx_backend.resumption import amended, continued, has_hand_off, nothing_left, obstacle
from rx_backend.telemetry import worker_trace_link

__all__ = ("LOST_WORKER", "HandOff", "NextEngine", "resume_on_engine")

LOST_WORKER: Final[tuple[type[Exception], ...]] = (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    StreamIncomplete,
)
"""The errors that mean a lost worker."""

NextEngine: TypeAlias = (
    LLMEngine | Callable[[ResumePoint], LLMEngine | Awaitable[LLMEngine | None] | None]
)
"""An engine, or a function that chooses one; it gives None when there is none."""

HandOff: TypeAlias = Callable[
    [PreprocessedRequest], PreprocessedRequest | Awaitable[PreprocessedRequest]
]
"""Gives a request with a hand-off for the engine that is to take it."""

_log = get_logger(__name__)


def resume_on_engine(
    scope: RequestScope,
    next_engine: NextEngine,
    *,
    errors: tuple[type[Exception], ...] = LOST_WORKER,
    limit: int = 1,
    hand_off: HandOff | None = None,
) -> AnyOperator:
    """
    Make the operator that goes on with another engine when the one so far is lost.

    It stands first, and is made first, so that all others see one stream: one first token, one
    span, and a gap where the engine was lost::

        pipeline=lambda scope: [resume_on_engine(scope, spare), *standard_pipeline(scope)]

    The next engine gets the request with the tokens that were handed out as a part of its prompt,
    with `max_tokens` and `min_tokens` smaller by as many, and with the lost worker's span as
    `migration_link` (row T1); and a context of its own, ``<id>/resume-1``, that is stopped with the
    request's. What the client gets are the figures of the whole request. Each engine is aborted at
    most once, by a stop while it is the one at work, and in decode mode not before its own first
    token (rows A2 to A5). After a stop nothing is resumed.

    A request is not resumed where its state can't move: guided decoding, several choices
    (``n``, ``best_of``, beams, chunks with an index), a prompt of embeddings, text without token ids,
    a health check, and a hand-off from another worker unless *hand_off* can repeat it. Sampling
    with a seed, and penalties on what was generated, begin anew at the seam; so does the search for
    stop strings.

    An error that is raised before there is a stream, by the set-up of the first engine, still goes
    to the caller of ``generate`` (row S5).

    Args:
        scope: The request.
        next_engine: An engine that is started, or a function that chooses one.
        errors: What means that an engine is lost; `StreamIncomplete` stands for an end without a
            terminal too.
        limit: How often one request is resumed, 0 or more.
        hand_off: Makes the hand-off anew for a request that has one (`prefill_result`,
            `bootstrap_info`, `encoder_result`), its prompt being as long as it is by then.

    Raises:
        ValueError, TypeError: An argument is something else.

    Errors: the error of the lost engine goes on where the request can't be resumed, with a note and
        a cause of class ``operators.NotResumable`` that say why.

    >>> import asyncio
    >>> from structlog.testing import capture_logs
    >>> from rx_backend import EngineAdapter, LLMEngineOutput, standard_pipeline
    >>> from rx_backend.engines import SampleEngine
    >>> class Lost(SampleEngine):
    ...     async def generate(self, request, context):
    ...         yield LLMEngineOutput.token(7)
    ...         raise Disconnected("the worker is gone")
    >>> async def main():
    ...     def pipeline(scope):
    ...         return [resume_on_engine(scope, SampleEngine()), *standard_pipeline(scope)]
    ...     request = PreprocessedRequest(token_ids=[1, 2], stop_conditions={"max_tokens": 3})
    ...     async for item in await EngineAdapter(Lost(), pipeline=pipeline).generate(request):
    ...         print(item.data.token_ids, item.data.finish_reason)
    ...     print(item.data.completion_usage)
    >>> with capture_logs():
    ...     asyncio.run(main())
    [7] None
    [0] None
    [1] length
    CompletionUsage(prompt_tokens=2, completion_tokens=3, total_tokens=5)
    """
    check_engine("resume_on_engine: next_engine", next_engine)
    check_functions("resume_on_engine", hand_off=hand_off)
    _check_errors(errors)
    engines = LiveEngines(scope)

    def is_lost(error: Exception) -> bool:
        return isinstance(error, errors) or isinstance(as_backend_error(error), errors)

    async def reopen(point: ResumePoint) -> FusedRun[Any]:
        engines.leave_first()
        reason = obstacle(scope.request, point.token_ids)
        if reason is not None:
            raise NotResumable(reason)
        link = cast("TraceLink | None", _link_of(point.link)) or worker_trace_link(scope.span)
        request = continued(scope.request, list(point.token_ids), link)
        if request.stop_conditions.max_tokens == 0 and point.token_ids:
            return fuse(nothing_left(request), [])
        if has_hand_off(request):
            if hand_off is None:
                raise NotResumable(
                    "its hand-off from another worker was for the engine that is lost"
                )
            request = await _awaited(hand_off(request))
        engine = next_engine
        if not hasattr(engine, "generate"):
            engine = await _awaited(cast("Callable[[ResumePoint], Any]", engine)(point))
        if engine is None:
            raise NotResumable("there is no other engine")
        _log.warning(
            "request resumed on another engine",
            request_id=scope.context.id,
            attempt=point.attempt,
            output_tokens=len(point.token_ids),
            **describe(point.error),
        )
        if scope.recording:
            scope.add_event("resumed", {"output_tokens": len(point.token_ids)})
        return await engines.open(cast("LLMEngine", engine), request, f"resume-{point.attempt}")

    return resume_on(
        is_lost,
        reopen,
        limit=limit,
        incomplete=lambda: StreamIncomplete("the engine's stream ended before its terminal"),
        amend=amended,
        is_stopped=lambda: scope.context.is_stopped,
    )


def _check_errors(errors: object) -> None:
    entries = cast("tuple[object, ...]", errors) if isinstance(errors, tuple) else (None,)
    if not all(isinstance(entry, type) and issubclass(entry, Exception) for entry in entries):
        raise TypeError(f"resume_on_engine: errors: expected classes of errors, got {errors!r}")


async def _awaited(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def _link_of(link: object) -> object:
    """The link that came with a chunk, which need not have been checked yet."""
    if isinstance(link, Mapping):
        fields = cast("Mapping[str, Any]", link)
        return TraceLink(str(fields.get("trace_id", "")), str(fields.get("span_id", "")))
    return link if isinstance(link, TraceLink) else None
