"""From an engine to response streams."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Sequence
from functools import partial
from time import time_ns

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import INVALID_SPAN, Tracer

from operators import (
    AnyOperator,
    Clock,
    NotAnOperator,
    OperatorList,
    TokenTimes,
    check_operators,
    fuse,
)
from rx_backend import telemetry
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine, open_chunks, start_abort
from rx_backend.errors import InvalidArgument, as_backend_error
from rx_backend.pipeline import Pipeline, RequestScope, standard_pipeline
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    convert_request,
    to_builtins,
)
from rx_backend.stream import ResponseStream
from rx_backend.telemetry.metrics import ServerMetrics
from rx_backend.telemetry.report import RequestReport
from rx_backend.telemetry.request_log import RequestLog

__all__ = ("EngineAdapter",)


class EngineAdapter:
    """
    Turns an engine's chunks into response streams, through a pipeline of operators.

    Args:
        engine: The engine; started and cleaned up by its owner.
        mode: The worker's role, or its name: ``agg``, ``prefill`` or ``decode``.
        pipeline: Makes a request's list of operators from its scope.
        tracer: Where spans come from; the global provider's by default.
        meter_provider: Where metrics go; the global provider by default.
        clock: Monotonic clock, in seconds; the event loop's by default, virtual time included.
        record: Whether to measure and write span attributes; None to decide by the environment
            and the span (row P8).

    Raises:
        InvalidArgument: Unknown *mode*, or a *pipeline* that can't be called.

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
        pipeline: Pipeline = standard_pipeline,
        *,
        tracer: Tracer | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
        record: bool | None = None,
    ) -> None:
        if not callable(pipeline):
            raise InvalidArgument(
                "pipeline: expected a function from a request's scope to a list of operators, "
                f"got {type(pipeline).__name__}"
            )
        self.engine = engine
        self.mode = DisaggregationMode.parse(mode)
        self.pipeline = pipeline
        self._tracer = tracer or trace.get_tracer("rx_backend")
        self._meter_provider = meter_provider
        self._clock = clock
        self._record = record

    def with_operators(self, *operators: AnyOperator) -> EngineAdapter:
        """An adapter for the same engine with *operators* at the end of its pipeline."""
        pipeline = self.pipeline
        return EngineAdapter(
            self.engine,
            self.mode,
            lambda scope: [*pipeline(scope), *operators],
            tracer=self._tracer,
            meter_provider=self._meter_provider,
            clock=self._clock,
            record=self._record,
        )

    def draw(self, request: PreprocessedRequest | None = None) -> str:
        """
        Draw what a request's pipeline does: what is fused, and what leaves the consumer's pull.

        No engine is called and no span is made.

        Args:
            request: For a pipeline that looks at it; an empty one by default.

        Raises:
            InvalidArgument: The pipeline could not be made, or holds what is no operator.
            RuntimeError: No event loop is running.
        """
        context = RequestContext()
        scope = RequestScope(
            request=PreprocessedRequest(token_ids=[]) if request is None else request,
            context=context,
            span=INVALID_SPAN,
            mode=self.mode,
            clock=time.monotonic,
            loop=asyncio.get_running_loop(),
            recording=True,
            times=TokenTimes(),
            report=RequestReport(INVALID_SPAN, context, TokenTimes()),
            abort=context.stop_generating,
        )
        return OperatorList(self._operators(scope)).draw()

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext | None = None
    ) -> ResponseStream[Annotated[LLMEngineOutput]]:
        """
        Start one request.

        Args:
            request: The request.
            context: Its identity and cancellation; a fresh one when left out.

        Returns:
            Its stream, of the items that the pipeline's last operator hands out.

        Raises:
            BackendError: The engine's set-up failed (row S5), or the pipeline could not be made;
                an ``InvalidArgument`` for a bad request, pipeline or operator list.
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
        clock = self._clock or _loop_clock(loop)
        try:
            span = telemetry.start_request_span(self._tracer, request, context, self.mode)
        except (AttributeError, TypeError) as error:
            raise _malformed(request) from error
        metrics = ServerMetrics.of(self._meter_provider)
        log = RequestLog.of(span, request, context, self.mode, clock=clock, record=self._record)
        recording = telemetry.should_record(span, self._record, metered=metrics is not None)
        times = TokenTimes(clock)
        labels = () if metrics is None else metrics.labels(request.model, self.mode)
        report = RequestReport(span, context, times, metrics, labels, log=log, recording=recording)
        report.opened(len(request.token_ids))
        try:
            own = telemetry.own_context(span)
            enter = operator.call if own is None else own.run
            scope = RequestScope(
                request=request,
                context=context,
                span=span,
                mode=self.mode,
                clock=clock,
                loop=loop,
                recording=recording,
                times=times,
                report=report,
                abort=partial(start_abort, self.engine, context, own),
            )
            operators = self._operators(scope)
            called = 0.0
            if recording:
                called = clock()
                times.epoch_ns = time_ns() - int(called * 1e9)
            chunks = await open_chunks(self.engine, request, context, enter=enter)
            if recording:
                times.setup_ms = (clock() - called) * 1000.0
            return fuse(
                chunks,
                operators,
                enter=enter,
                on_end=report.closed,
                stream=partial(_Stream, context=context, loop=loop),
            )
        except Exception as error:
            typed = as_backend_error(error)
            report.failed_setup(typed)
            if typed is error:
                raise
            raise typed from error
        except BaseException:
            report.dropped_setup()
            raise

    def _operators(self, scope: RequestScope) -> Sequence[AnyOperator]:
        try:
            return check_operators(self.pipeline(scope))
        except Exception as error:
            name = getattr(self.pipeline, "__qualname__", repr(self.pipeline))
            if isinstance(error, NotAnOperator):
                raise InvalidArgument(f"{name}: {error}") from error
            raise InvalidArgument(
                f"pipeline: {name} raised {type(error).__name__}: {error}"
            ) from error


# The class itself: calling a parametrized generic costs as much as ten plain calls.
_Stream: type[ResponseStream[Annotated[LLMEngineOutput]]] = ResponseStream


def _malformed(request: PreprocessedRequest) -> InvalidArgument:
    """What is wrong with a request that could not be read."""
    try:
        convert_request(to_builtins(request))
    except InvalidArgument as error:
        return error
    return InvalidArgument(f"request: could not be read: {request!r}")


def _loop_clock(loop: asyncio.AbstractEventLoop) -> Clock:
    """The loop's clock; the function behind it where the loop is a stock one, which is faster."""
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
