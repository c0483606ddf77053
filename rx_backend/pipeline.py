"""The standard pipeline: what happens to every request's stream, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from typing_extensions import TypeVar

from operators import (
    Pipeline,
    annotate_errors,
    deferred_abort,
    record_span,
    trace_link,
    until_terminal,
    validate_chunks,
)
from operators.assembly import (
    HAS_CONTENT,
    Callbacks,
    DeliveredItems,
    Plan,
    TokenRecorder,
    callbacks,
)
from operators.authoring import SCOPE, StageResult, complete_with, fail_after
from rx_backend.errors import InvalidArgument, StreamIncomplete, as_backend_error
from rx_backend.protocols import Annotated, FinishReason, LLMEngineOutput, convert_output
from rx_backend.scope import RequestScope
from rx_backend.telemetry.outcomes import error_type

__all__ = ("PipelineSource", "as_pipeline", "check_pipeline", "plan_for", "standard_pipeline")

T_co = TypeVar("T_co", covariant=True, default=Any)

PipelineSource: TypeAlias = Pipeline[T_co] | Callable[[RequestScope], Pipeline[T_co]]
"""A pipeline, or a function that returns one request's from its scope."""


@callbacks(takes="chunks")
def first_token(*, scope: RequestScope = SCOPE) -> Callbacks[Any, Any] | None:
    """Release a deferred abort at the first token, and report it to the observer."""
    if not scope.mode.is_decode and not scope.awaits_first_token:
        return None

    def notice(chunk: LLMEngineOutput) -> LLMEngineOutput:
        scope.record_first_token()
        return chunk

    return Callbacks(notice, only=HAS_CONTENT, once=True)


def _reason_name(reason: FinishReason) -> str:
    return reason.span_value


def _error_kind(error: Exception) -> str:
    return as_backend_error(error).span_kind


def _read_finish_reason(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return *chunk* with a `FinishReason`; engines may give it as text or as its JSON."""
    reason: Any = chunk.finish_reason
    if reason is None or isinstance(reason, FinishReason):
        return chunk
    return convert_output(chunk)


standard_pipeline: Pipeline[Annotated[LLMEngineOutput]] = Pipeline(
    chunks=[
        validate_chunks(
            LLMEngineOutput, convert_output, error=InvalidArgument, normalize=_read_finish_reason
        ),
        until_terminal(),
        first_token(),
        deferred_abort(),
        trace_link(),
        record_span(reason_name=_reason_name, error_kind=_error_kind, error_type=error_type),
    ],
    annotate=annotate_errors(Annotated, Annotated.from_error),
)
"""
The operators that every request gets, from an engine's chunks to annotated items.

Add your own operator relative to another by name, or at the end::

    EngineAdapter(
        engine, pipeline=standard_pipeline.insert_before("trace_link", limit_tokens(100))
    )
    EngineAdapter(engine).with_operators(heartbeat(15.0, Annotated(comment=["ping"])))
"""


def as_pipeline(value: object) -> Pipeline | None:
    """Return *value* if it is a pipeline, else None."""
    return cast("Pipeline", value) if isinstance(value, Pipeline) else None


def check_pipeline(source: object, name: str = "pipeline") -> None:
    """Raise ``InvalidArgument`` unless *source* is a pipeline, or may return one."""
    if as_pipeline(source) is None and (isinstance(source, type) or not callable(source)):
        is_class = isinstance(source, type)
        got = f"the class {source.__name__}" if is_class else type(source).__name__
        raise InvalidArgument(
            f"{name}: expected a Pipeline, or a function that returns one from a request's scope, "
            f"got {got}"
        )


def plan_for(made: object) -> Plan:
    """
    Return the plan of a pipeline in an adapter.

    Adds `record_outcome` after the last chunk operator and, if there are item operators,
    `watch_items` after the last of them (row O2).

    Raises:
        TypeError: *made* is not a pipeline.
    """
    pipeline = as_pipeline(made)
    if pipeline is None:
        raise TypeError(
            f"pipeline: expected the function to return a Pipeline, got {type(made).__name__}"
        )
    items = [*pipeline.items, watch_items()] if pipeline.items else []
    between = [] if pipeline.annotate is None else [pipeline.annotate]
    return Plan([*pipeline.chunks, record_outcome(), *between, *items])


@callbacks(takes="chunks")
def record_outcome(*, scope: RequestScope = SCOPE) -> OutcomeRecorder:
    """Record the engine's chunks, and fail a stream without a terminal (row S9)."""
    return OutcomeRecorder(scope)


class OutcomeRecorder(TokenRecorder[Any]):
    """Fills the request's record, and records how the engine's chunks ended."""

    __slots__ = ("_tracker",)

    handles_end = True

    def __init__(self, scope: RequestScope) -> None:
        super().__init__(scope.times, timed=scope.recording, counted=scope.counts_tokens)
        self._tracker = scope.outcome

    def on_end(self, failure: Exception | None, _dropped: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Record the failure of the engine's chunks."""
        if failure is not None:
            self._tracker.failure = failure

    def on_complete(self, ended_by: str | None) -> StageResult | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Fail a stream that ends before the terminal of each answer."""
        times = self._tracker.times
        if len(times.finish_reasons) >= times.answers:
            return None
        self._tracker.failure = _incomplete(ended_by, len(times.finish_reasons), times.answers)
        return fail_after(self._tracker.failure)


@callbacks()
def watch_items(*, scope: RequestScope = SCOPE) -> Callbacks[Any, Any]:
    """Record what the consumer receives, and fail a stream that was cut short (row S9)."""
    handed = scope.outcome.delivered = DeliveredItems(FinishReason.parse)

    def complete(ended_by: str | None) -> StageResult | None:
        if scope.outcome.has_ended():
            return None
        # It is handed out unless the stream is dropped first.
        failure = scope.outcome.failure
        incomplete = _incomplete(ended_by, len(handed.reasons), scope.times.answers)
        scope.outcome.failure = incomplete
        incomplete.__cause__ = failure
        return complete_with(Annotated.from_error(incomplete))

    def end(failure: Exception | None, _dropped: bool) -> None:
        if failure is not None and not (handed.is_known and scope.outcome.has_ended()):
            # It is raised after the last item, unless the stream is dropped first.
            scope.outcome.failure = failure
            handed.is_known = True

    return Callbacks(
        handed.record,
        only=_IS_UNUSUAL,
        names={"annotated": Annotated, "output": LLMEngineOutput, "count": handed.count_one},
        on_complete=complete,
        on_end=end,
    )


# The condition itself counts a chunk of one token; any other item visits.
_IS_UNUSUAL = (
    "type(item) is not annotated or item.error is not None or item.event is not None "
    "or type(handed := item.data) is not output or handed.finish_reason is not None "
    "or type(ids := handed.token_ids) is not list or len(ids) != 1 or count()"
)


# The items with which operators of the standard pipeline end a stream.
_KEPT = {"until_terminal": "the terminal", "annotate_errors": "the error item"}


def _incomplete(ended_by: str | None, ended: int, answers: int) -> StreamIncomplete:
    if ended_by in _KEPT:
        return StreamIncomplete(f"an operator after {ended_by} held back {_KEPT[ended_by]}")
    missing = f" for {answers - ended} of {answers} answers" if answers > 1 else ""
    what = (
        "the engine's stream ended"
        if ended_by is None
        else f"the operator {ended_by} ended the stream"
    )
    return StreamIncomplete(f"{what} without a terminal{missing}")
