"""Short ways to serve requests through an adapter, in virtual time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from reactivex import operators as ops

from operators import Pipeline, map_async
from operators.authoring import AnyOperator, FusedRun, operator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest, TraceLink
from rx_backend.stream import ResponseStream
from rx_backend.testing import run_virtual
from tests.spans import Spans, rows_of

__all__ = (
    "DROPPED",
    "ENTRY",
    "PASSES",
    "Item",
    "Served",
    "Stream",
    "adapter_of",
    "after",
    "before",
    "chunk_of",
    "collect",
    "flat",
    "itself",
    "real_time",
    "request",
    "serve",
    "settle",
    "status_of",
    "tokens_of",
    "virtual",
)

Item: TypeAlias = Annotated[LLMEngineOutput]
Stream: TypeAlias = ResponseStream[Item]

P = ParamSpec("P")
A = TypeVar("A")

# What a span of `request()` has from its start, and the status of one whose stream was dropped.
ENTRY = {"model": "mock", "input_tokens": 3, "disagg_role": "agg"}
DROPPED = (StatusCode.ERROR, "stream dropped before terminal")


def virtual(test: Callable[P, Coroutine[Any, Any, A]]) -> Callable[P, A]:
    """Make a test of an asynchronous function: it runs on a fresh loop in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> A:
        return run_virtual(test(*args, **kwargs))

    return run


def real_time(test: Callable[P, Coroutine[Any, Any, A]]) -> Callable[P, A]:
    """Make a test of an asynchronous function: it runs on a fresh loop in real time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> A:
        return asyncio.run(test(*args, **kwargs))

    return run


def request(prompt: int = 3, migrated_from: TraceLink | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="mock", token_ids=list(range(prompt)), migration_link=migrated_from
    )


def adapter_of(
    engine: object,
    mode: DisaggregationMode | str = "agg",
    spans: Spans | None = None,
    *,
    pipeline: PipelineSource = standard_pipeline,
    record: bool | None = None,
) -> EngineAdapter:
    """Make an adapter on the running loop's clock; without *spans* its spans don't record."""
    return EngineAdapter(
        cast("LLMEngine", engine),
        mode,
        pipeline,
        tracer=None if spans is None else spans.tracer,
        clock=asyncio.get_running_loop().time,
        record=record,
    )


@dataclass
class Served:
    """A request that was served: its items, and its span."""

    items: list[Item] = field(default_factory=list[Item])
    spans: Spans = field(default_factory=Spans)
    context: RequestContext = field(default_factory=lambda: RequestContext("r1"))

    @property
    def tokens(self) -> list[list[int]]:
        """The token ids of each chunk."""
        return tokens_of([item for item in self.items if item.data is not None])

    @property
    def last(self) -> Item:
        return self.items[-1]

    @property
    def finish_reason(self) -> str:
        return str(chunk_of(self.last).finish_reason)

    @property
    def row(self) -> dict[str, Any]:
        """The attributes of the span that the rows speak of."""
        return rows_of(self.spans.one("engine.generate"))

    @property
    def status(self) -> tuple[StatusCode, str | None]:
        return status_of(self.spans.one("engine.generate"))


async def serve(
    engine: object,
    mode: DisaggregationMode | str = "agg",
    *,
    signals: Sequence[tuple[float, str]] = (),
    take: int | None = None,
    traced: bool = True,
    asked: PreprocessedRequest | None = None,
    **options: Any,
) -> Served:
    """
    Serve one request and wait for everything that follows from it.

    Args:
        engine: The engine.
        mode: Its role.
        signals: When which method of the context is called; at 0 before the request.
        take: Close the stream after so many items; None to read to its end.
        traced: Whether its span records.
        asked: The request; `request()` by default.
        **options: For `adapter_of`.
    """
    served = Served()
    for at_s, name in signals:
        signal = getattr(served.context, name)
        if at_s:
            after(at_s, signal)
        else:
            signal()
    adapter = adapter_of(engine, mode, served.spans if traced else None, **options)
    stream = await adapter.generate(asked or request(), served.context)
    while take is None or len(served.items) < take:
        item = await anext(stream, None)
        if item is None:
            break
        served.items.append(item)
    await stream.aclose()
    await asyncio.sleep(100)
    return served


def after(seconds: float, function: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, function)


async def collect(stream: AsyncIterable[A]) -> list[A]:
    return [item async for item in stream]


async def settle() -> None:
    """Let the loop turn, so that closings which wait for nothing come to their end."""
    for _ in range(5):
        await asyncio.sleep(0)


def status_of(span: ReadableSpan) -> tuple[StatusCode, str | None]:
    return span.status.status_code, span.status.description


def chunk_of(item: Item) -> LLMEngineOutput:
    assert item.data is not None, f"no chunk in {item!r}"
    return item.data


def tokens_of(items: Sequence[Item]) -> list[list[int]]:
    return [chunk_of(item).token_ids for item in items]


def flat(items: Sequence[Item]) -> list[int]:
    return [token_id for tokens in tokens_of(items) for token_id in tokens]


# Pipelines whose added operators change nothing.


def before(neighbour: str, *added: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators before one of its own, or on the items."""
    if neighbour == "items":
        standard = standard_pipeline
        return Pipeline(standard.chunks, [*standard.items, *added], annotate=standard.annotate)
    return standard_pipeline.insert_before(neighbour, *added)


async def itself(item: Any) -> Any:
    return item


@operator
async def passing(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    """Pass items on, as an operator that pulls its source."""
    async for item in source:
        yield item


PASSES: dict[str, Pipeline] = {
    "standard": standard_pipeline,
    "async operator among the chunks": before("trace_link", passing()),
    "async operator on items": before("items", passing()),
    "map_async on items": before("items", map_async(itself)),
    "map_async before the gate": before("deferred_abort", map_async(itself)),
    "stock": before("items", ops.do_action()),
    "stock, with a timer": before("items", ops.delay(0.001)),
}
