"""The standard pipeline: what happens to every request's stream, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from operators import (
    AnyOperator,
    Clock,
    OperatorList,
    SetupFailed,
    TokenTimes,
    annotate_errors,
    deferred_abort,
    first_token,
    itl_window,
    on_outcome,
    record_span,
    trace_link,
    until_terminal,
    validate_chunks,
)
from operators.span_events import add_event
from operators.span_names import SETUP_FAILED
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import InvalidArgument, as_backend_error
from rx_backend.protocols import (
    Annotated,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    convert_output,
)
from rx_backend.telemetry import worker_trace_link
from rx_backend.telemetry.outcomes import error_type
from rx_backend.telemetry.report import RequestReport

__all__ = ("Pipeline", "RequestScope", "standard_pipeline")


@dataclass(slots=True)
class RequestScope:
    """
    What one request's pipeline is made from.

    Attributes:
        request: The request.
        context: Its context.
        span: Its span ``engine.generate``.
        mode: The worker's role.
        clock: Monotonic clock, in seconds.
        loop: The event loop that the request runs on.
        recording: Whether to measure and to write span attributes (row P8).
        times: When the tokens came, for whoever wants to know.
        report: Where the pipeline tells how the request fares.
        abort: Starts ``engine.abort`` for this request, and returns at once.
    """

    request: PreprocessedRequest
    context: RequestContext
    span: Span
    mode: DisaggregationMode
    clock: Clock
    loop: asyncio.AbstractEventLoop
    recording: bool
    times: TokenTimes
    report: RequestReport
    abort: Callable[[], None]

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Add an event to the span, now by the request's clock."""
        add_event(self.span, self.times, name, attributes)


Pipeline: TypeAlias = Callable[[RequestScope], Sequence[AnyOperator]]
"""From a request's scope to its operators; called once per request, before the engine is."""


def standard_pipeline(scope: RequestScope) -> OperatorList:
    """
    The operators that every request gets, from engine chunks to annotated items.

    Adding one of your own takes one line::

        EngineAdapter(engine, pipeline=lambda scope: [*standard_pipeline(scope), mine()])

    and so does putting it elsewhere: ``standard_pipeline(scope).insert_before("record_span", mine())``.
    """
    context, span, is_decode = scope.context, scope.span, scope.mode.is_decode
    report = scope.report
    times = scope.times if scope.recording or report.counts else None

    def is_cancelled() -> bool:
        return context.is_stopped

    return OperatorList(
        [
            _WELL_FORMED,
            _UNTIL_TERMINAL,
            *([itl_window(times, count_only=not scope.recording)] if times is not None else []),
            *([first_token(lambda _chunk: context.notify_first_token())] if is_decode else []),
            deferred_abort(
                lambda: scope.abort(),  # noqa: PLW0108 - an operator may have replaced it by then
                stop=context.stopped(),
                notified=context.first_token() if is_decode else None,
                defer=is_decode,
                end_of_turn=scope.loop.call_soon,
                on_step=report.abort_step,
            ),
            trace_link(worker_trace_link(span), on_terminal=scope.mode.is_prefill),
            *([first_token(report.first_token)] if report.awaits_first_token else []),
            record_span(
                span,
                times,
                attributes=scope.recording,
                is_cancelled=is_cancelled,
                reason_name=_reason_name,
                error_kind=_error_kind,
                error_type=error_type,
                more=report.attributes,
            ),
            *(
                [on_outcome(report.ended, times=times, is_cancelled=is_cancelled)]
                if report.is_told
                else []
            ),
            _ANNOTATED,
        ]
    )


def _reason_name(reason: FinishReason) -> str:
    return reason.span_value


def _error_kind(error: Exception) -> str:
    if isinstance(error, SetupFailed):
        return SETUP_FAILED
    return as_backend_error(error).span_kind


def _read_finish_reason(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return *chunk* with its finish reason read; engines may give it as text or as its JSON."""
    reason: Any = chunk.finish_reason
    if reason is None or isinstance(reason, FinishReason):
        return chunk
    return convert_output(chunk)


# The same for every request.
_WELL_FORMED = validate_chunks(
    LLMEngineOutput, convert_output, error=InvalidArgument, normalize=_read_finish_reason
)
_UNTIL_TERMINAL: AnyOperator = until_terminal()
_ANNOTATED = annotate_errors(Annotated, Annotated.from_error)
