"""The adapter: from an engine to response streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property
from time import time_ns
from typing import Any, Generic, cast, overload

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import INVALID_SPAN, Tracer
from typing_extensions import TypeVar

from operators import NotAnOperator, Pipeline, TokenTimes
from operators.assembly import Plan, draw_plan, loop_clock, make_stream
from operators.authoring import AnyOperator, Clock, Transform
from rx_backend import telemetry
from rx_backend.checks import function, instance
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine, is_engine, open_chunks
from rx_backend.errors import InvalidArgument, engine_failure
from rx_backend.pipeline import (
    PipelineSource,
    as_pipeline,
    check_pipeline,
    plan_for,
    standard_pipeline,
)
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    convert_request,
    to_builtins,
)
from rx_backend.scope import RequestScope
from rx_backend.stream import ResponseStream
from rx_backend.telemetry.metrics import ServerMetrics
from rx_backend.telemetry.request_log import RequestLog

__all__ = ("EngineAdapter",)


A = TypeVar("A")
B = TypeVar("B")
T_co = TypeVar("T_co", covariant=True, default=Annotated[LLMEngineOutput])


class EngineAdapter(Generic[T_co]):
    """
    Turn an engine's chunks into response streams, through a pipeline of operators.

    Args:
        engine: The engine, which its owner starts and cleans up.
        mode: The worker's role, or its name: ``agg``, ``prefill`` or ``decode``.
        pipeline: The operators of each request, `standard_pipeline` by default; or a function that
            returns them for a request's scope.
        tracer: Creates spans; the global provider's by default.
        meter_provider: Receives metrics; by default the global provider that is installed at the
            first request.
        clock: Monotonic clock, in seconds; by default the system's, or a virtual event loop's.
        record: Whether to measure and write span attributes; None to let the environment decide when
            the adapter is made, or else each span (row P8).

    Raises:
        InvalidArgument: *engine* is not an engine, *mode* is unknown, *pipeline* is neither a
            pipeline nor a function, or another argument has the wrong type.

    >>> import asyncio
    >>> from rx_backend import PreprocessedRequest
    >>> from rx_backend.engines import SampleEngine
    >>> async def main():
    ...     adapter = EngineAdapter(SampleEngine(token_interval_ms=0))
    ...     request = PreprocessedRequest(token_ids=[1, 2], stop_conditions={"max_tokens": 3})
    ...     async for item in await adapter.generate(request):
    ...         print(item.data.token_ids, item.data.finish_reason)
    >>> asyncio.run(main())
    [0] None
    [1] None
    [2] length
    """

    def __init__(
        self,
        engine: LLMEngine,
        mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
        pipeline: PipelineSource[T_co] | None = None,
        *,
        tracer: Tracer | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
        record: bool | None = None,
    ) -> None:
        if not is_engine(engine):
            raise InvalidArgument(f"engine: expected an engine with generate(), got {engine!r}")
        self.engine = engine
        self.mode = DisaggregationMode.parse(mode)
        source = standard_pipeline if pipeline is None else pipeline
        check_pipeline(source)
        self.pipeline = cast("PipelineSource[T_co]", source)
        fixed = as_pipeline(source)
        self._plan = None if fixed is None else plan_for(fixed)
        if clock is not None:
            function("clock", clock)
        if tracer is not None:
            instance("tracer", tracer, Tracer)
        if meter_provider is not None:
            instance("meter_provider", meter_provider, MeterProvider)
        if not (record is None or isinstance(record, bool)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"record: expected True, False or None, got {record!r}")
        self._tracer = tracer or trace.get_tracer("rx_backend")
        self._meter_provider = meter_provider
        self._clock = clock
        self._record = telemetry.recording_switch() if record is None else record

    def __repr__(self) -> str:
        return f"EngineAdapter({self.engine!r}, {self.mode.value!r}, {self.pipeline!r})"

    @overload
    def with_operators(self, operator: Transform[T_co, B], /) -> EngineAdapter[B]: ...
    @overload
    def with_operators(self, *operators: Transform[A, A]) -> EngineAdapter[T_co]: ...
    @overload
    def with_operators(self, *operators: AnyOperator) -> EngineAdapter[Any]: ...
    def with_operators(self, *operators: AnyOperator) -> EngineAdapter[Any]:
        """
        Return an adapter for the same engine with *operators* added to its pipeline.

        A chunk operator is added after the other chunk operators, any other at the end.

        Raises:
            InvalidArgument: Something is not an operator.
        """
        return EngineAdapter(
            self.engine,
            self.mode,
            self._pipeline_with(operators),
            tracer=self._tracer,
            meter_provider=self._meter_provider,
            clock=self._clock,
            record=self._record,
        )

    def _pipeline_with(self, operators: Sequence[AnyOperator]) -> PipelineSource:
        fixed = as_pipeline(self.pipeline)
        try:
            # The function's result is not known yet, so validate the operators on another pipeline.
            changed = (fixed or standard_pipeline).with_operators(*operators)
        except NotAnOperator as error:
            raise InvalidArgument(f"with_operators: {error}") from error
        if fixed is not None:
            return changed
        make = cast("Callable[[RequestScope], Pipeline]", self.pipeline)
        return lambda scope: make(scope).with_operators(*operators)

    def draw(self) -> str:
        """
        Return a drawing of the pipeline: what is fused, and what runs outside the consumer's pull.

        Raises:
            InvalidArgument: The pipeline is a function of the scope; draw its result instead.
        """
        if self._plan is None:
            raise InvalidArgument(
                "draw: the pipeline is a function of a request's scope; draw its result"
            )
        return draw_plan(self._plan)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext | None = None
    ) -> ResponseStream[T_co]:
        """
        Start one request and return the stream of its items.

        Args:
            request: The request.
            context: Its identity and cancellation; a new one by default.

        Raises:
            BackendError: The engine's set-up failed, or the function that makes the pipeline did
                (rows S5, S6); an ``InvalidArgument`` for a bad request.
        """
        if not isinstance(request, PreprocessedRequest):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(
                f"request: expected a PreprocessedRequest, got {type(request).__name__}"
            )
        if context is None:
            context = RequestContext()
        if not isinstance(context, RequestContext):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(
                f"context: expected a RequestContext, got {type(context).__name__}"
            )
        loop = asyncio.get_running_loop()
        context.bind(loop, decode=self.mode.is_decode)
        cancellations = _cancellations(loop)
        scope = self._open_scope(request, context, loop)
        try:
            plan = self._plan or self._plan_of(scope)
            own, times, recording = scope.own_context, scope.times, scope.recording
            called = times.clock() if recording else 0.0
            if recording:
                times.epoch_ns = time_ns() - int(called * 1e9)
            chunks = await open_chunks(self.engine, request, context, own_context=own)
            if recording:
                times.setup_ms = (times.clock() - called) * 1000.0
            return make_stream(chunks, plan, _Stream, own_context=own, scope=scope, observer=scope)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _cancellations(loop) > cancellations:
                scope.dropped_setup()
                raise
            typed = engine_failure(error)
            scope.failed_setup(typed)
            if typed is error:
                raise
            raise typed from error
        except BaseException:
            scope.dropped_setup()
            raise

    @cached_property
    def _metrics(self) -> ServerMetrics | None:
        """The metrics; a global provider may be installed until the first request."""
        return ServerMetrics.of(self._meter_provider)

    def _open_scope(
        self, request: PreprocessedRequest, context: RequestContext, loop: asyncio.AbstractEventLoop
    ) -> RequestScope:
        """Start the request's span, metrics and log; leave nothing open if that fails."""
        clock = self._clock or loop_clock(loop)
        metrics = self._metrics
        span = INVALID_SPAN
        try:
            span = telemetry.start_request_span(self._tracer, request, context, self.mode)
            times = TokenTimes(clock, answers=_answers(request))
            series = None if metrics is None else metrics.series(request.model, self.mode)
        except (AttributeError, TypeError) as error:
            malformed = _malformed(request, error)
            telemetry.record_failed_setup(span, malformed)
            raise malformed from error
        log = RequestLog(span, request, context, self.mode, clock=clock, record=self._record)
        recording = telemetry.should_record(span, self._record, metered=metrics is not None)
        own = telemetry.own_context(span)
        scope = RequestScope(
            request, context, self.mode, span, loop, recording, times, own, self.engine, series, log
        )
        scope.opened()
        return scope

    def _plan_of(self, scope: RequestScope) -> Plan:
        """Return the plan of one request's pipeline."""
        make = self.pipeline
        try:
            return plan_for(cast("Callable[[RequestScope], object]", make)(scope))
        except Exception as error:
            # It keeps its kind and its message, like a failure of the engine.
            error.add_note(f"raised by the pipeline {getattr(make, '__qualname__', repr(make))}")
            raise


# Unparametrized: calling a parametrized generic costs as much as ten plain calls.
_Stream: type[ResponseStream[Any]] = ResponseStream


def _cancellations(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many requested cancellations the current task has not caught."""
    task = asyncio.current_task(loop)
    return 0 if task is None else task.cancelling()


def _answers(request: PreprocessedRequest) -> int:
    """
    Return how many answers a request asks for.

    Raises:
        TypeError: The number or the model's name has the wrong type, which otherwise would only
            show at the end of the stream, or with metrics.
    """
    answers = request.sampling_options.n or 1
    if type(answers) is not int or answers < 1 or not isinstance(request.model, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("expected another type")
    return answers


def _malformed(request: PreprocessedRequest, error: Exception) -> InvalidArgument:
    """Return the error of a request that could not be read."""
    try:
        read = convert_request(to_builtins(request))
    except InvalidArgument as found:
        return found
    for name in read.__struct_fields__:
        fitting, given = (type(getattr(one, name)).__name__ for one in (read, request))
        if given != fitting:
            return InvalidArgument(f"request: {name}: expected {fitting}, got {given}")
    return InvalidArgument(f"context: the trace headers could not be read: {error}")
