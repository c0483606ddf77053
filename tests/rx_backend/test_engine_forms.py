"""One engine in all the forms that its answer may have, through the same scenarios (row E2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
import reactivex
from opentelemetry import trace
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine, open_chunks
from rx_backend.errors import Cancelled, InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, to_builtins
from rx_backend.testing import run_conformance
from tests.engines import (
    DROPPED,
    ScriptedEngine,
    Step,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    serve,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.engines.leaving import (
    WAYS_OF_LEAVING,
    Box,
    Leave,
)
from tests.spans import Spans, rows_of

if TYPE_CHECKING:
    from aioreactive import AsyncDisposable, AsyncObservable, AsyncObserver

Chunks = AsyncGenerator[Any]
Form = Callable[[Chunks], object]


def generator(chunks: Chunks) -> Chunks:
    """Return the chunks as they are."""
    return chunks


TASKS: set[asyncio.Task[None]] = set()


def started(push: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task, which its engine holds until it is done."""
    task = asyncio.create_task(push)
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)
    return task


def observable(chunks: Chunks) -> Observable[Any]:
    """Chunks that are pushed by a task; disposing cancels it."""

    async def push(observer: abc.ObserverBase[Any]) -> None:
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    observer.on_next(chunk)
            except (Exception, asyncio.CancelledError) as error:
                observer.on_error(cast("Exception", error))
            else:
                observer.on_completed()

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        task = started(push(observer))

        def dispose() -> None:
            task.cancel()

        return Disposable(dispose)

    return Observable(subscribe)


def async_observable(chunks: Chunks) -> AsyncObservable[Any]:
    """Chunks that are sent by a task, which waits until each was taken; disposing cancels it."""
    from aioreactive import AsyncAnonymousObservable, AsyncDisposable

    async def push(observer: AsyncObserver[Any]) -> None:
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    await observer.asend(chunk)
            except (Exception, asyncio.CancelledError) as error:
                await observer.athrow(cast("Exception", error))
            else:
                await observer.aclose()

    async def subscribe(observer: AsyncObserver[Any]) -> AsyncDisposable:
        task = started(push(observer))

        async def dispose() -> None:
            task.cancel()
            await asyncio.wait([task])

        return AsyncDisposable.create(dispose)

    return AsyncAnonymousObservable(subscribe)


def awaited(form: Form) -> Form:
    """Return the same out of a coroutine."""

    async def later(chunks: Chunks) -> object:
        await asyncio.sleep(0)
        return form(chunks)

    return later


NEEDS = pytest.mark.needs("aioreactive")


FORMS = pytest.mark.parametrize(
    "form",
    [
        pytest.param(generator, id="generator"),
        pytest.param(awaited(generator), id="coroutine"),
        pytest.param(observable, id="observable"),
        pytest.param(awaited(observable), id="awaited-observable"),
        pytest.param(async_observable, id="async-observable", marks=NEEDS),
        pytest.param(awaited(async_observable), id="awaited-async-observable", marks=NEEDS),
    ],
)


def iterable(chunks: Chunks) -> AsyncIterable[Any]:
    """Return the chunks as what can be iterated, and is no iterator itself."""

    class OnlyIterable:
        def __aiter__(self) -> AsyncIterator[Any]:
            return chunks

    return OnlyIterable()


@dataclass
class ByHand:
    """Mappings, from an iterator without ``aclose`` that can't be hashed."""

    _: Chunks
    left: list[LLMEngineOutput] = field(default_factory=lambda: [token(1), token(2), stop()])

    def __aiter__(self) -> ByHand:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return {**to_builtins(self.left.pop(0)), "unheard_of": None}


class FormedEngine(ScriptedEngine):
    """A scripted engine that answers in one of the forms."""

    def __init__(self, form: Form, *script: Step, **options: Any) -> None:
        super().__init__(*script, **options)
        self._form = form

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        self.calls = self.calls + 1
        return self._form(self._stream(context))


@pytest.mark.rows("E2", "S1")
@pytest.mark.parametrize("form", [iterable, ByHand])
@virtual
async def test_any_async_iterator_is_accepted(form: Form) -> None:
    """It gives the same items and span."""
    served = await serve(FormedEngine(form, token(1), token(2), stop()))
    assert (served.tokens, served.finish_reason) == ([[1], [2], []], "stop")
    assert (served.row["output_tokens"], served.row["finish_reason"]) == (2, "Stop")


@pytest.mark.rows("E2", "S1", "S2", "S8", "A1", "P3", "P9")
@FORMS
@virtual
async def test_a_clean_end(form: Form) -> None:
    """
    Chunks come in order, none after the terminal; span and engine are closed by it.

    Spans nest.
    """
    spans = Spans()

    def work(_: RequestContext) -> None:
        with spans.tracer.start_as_current_span("work"):
            spans.tracer.start_span("more").end()

    late = (token(3), stop(), LookupError("late"))
    engine = FormedEngine(form, work, token(1), 1, work, token(2), 1, stop(), *late)
    stream = await adapter_of(engine, spans=spans).generate(request())
    items = [await anext(stream) for _ in range(3)]
    assert tokens_of(items) == [[1], [2], []]
    row = rows_of(spans.one("engine.generate"))
    assert (row["output_tokens"], row["finish_reason"]) == (2, "Stop")
    assert await collect(stream) == []
    await asyncio.sleep(1)
    assert (engine.closed, engine.aborts) == (1, [])
    assert trace.get_current_span() is trace.INVALID_SPAN
    names = {span.context.span_id: span.name for span in spans.finished if span.context}
    parents = [(span.name, names[span.parent.span_id]) for span in spans.finished if span.parent]
    assert parents == [("more", "work"), ("work", "engine.generate")] * 2


@pytest.mark.rows("E2", "E4", "S3", "A2", "A6")
@pytest.mark.reference("adapter_forwards_terminal_cancel_chunk_to_downstream")
@FORMS
@virtual
async def test_a_stop(form: Form) -> None:
    """The engine is aborted once, sees the stop itself, and its `cancelled` terminal comes out."""
    terminal = LLMEngineOutput.cancelled()
    engine = FormedEngine(form, token(1), lambda seen: seen.stopped(), terminal)
    served = await serve(engine, signals=[(3, "stop_generating"), (3, "kill")])
    assert [chunk_of(item).token_ids for item in served.items] == [[1], []]
    assert served.last.data == terminal
    assert (served.row["finish_reason"], served.row["cancelled"]) == ("Cancelled", True)
    assert (engine.aborts, engine.closed) == ([3], 1)


@pytest.mark.rows("E2", "S6", "S9", "P4")
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidArgument("bad"), "InvalidArgument"),
        (ValueError("bad"), "InvalidArgument"),
        (LookupError("bad"), "Unknown"),
        (asyncio.CancelledError(), "Unknown"),
        (0.5, "StreamIncomplete"),
    ],
    ids=["typed", "value", "other", "cancelled", "no-terminal"],
)
@FORMS
@virtual
async def test_a_failure(form: Form, error: Step, kind: str) -> None:
    """The chunks before it come out, then one error item with its kind, and the stream ends."""
    engine = FormedEngine(form, token(1), 1, error)
    async with asyncio.timeout(200):
        served = await serve(engine)
    assert [item.event for item in served.items] == [None, "error"]
    failure = served.last.error
    assert failure is not None
    assert isinstance(error, float | asyncio.CancelledError) or error in {
        failure,
        failure.__cause__,
    }
    assert served.row["error_kind"] == f"Backend({kind})"
    assert engine.closed == 1


@pytest.mark.rows("E2", "S7", "P5", "P7", "A1")
@pytest.mark.parametrize("leave", WAYS_OF_LEAVING)
@FORMS
@virtual
async def test_a_drop(form: Form, leave: Leave) -> None:
    """Whichever way: the engine's ``finally`` runs once and to its end, and so does the span."""
    for closing in ((), (0.25, 0.25)):
        began, spans = now(), Spans()
        engine = FormedEngine(form, token(1), token(2), 60, token(3), closing=closing)
        box: Box = [await adapter_of(engine, spans=spans).generate(request())]
        await anext(box[0])
        await leave(box)
        await asyncio.sleep(10)
        assert len(engine.closes) == engine.closed == 1
        assert engine.closes[0] <= began + 1
        assert engine.aborts == []
        assert status_of(spans.one()) == DROPPED
        box.clear()


@pytest.mark.rows("E2", "S4")
@NEEDS
@virtual
async def test_back_pressure() -> None:
    """The engine is never ahead of its consumer: ``asend`` waits as a ``yield`` does."""
    engine = FormedEngine(async_observable, *map(token, range(5)), stop())
    stream = await adapter_of(engine).generate(request())
    for pulled in range(6):
        await asyncio.sleep(10)
        assert engine.pulls == pulled
        await anext(stream)
    assert await collect(stream) == []
    assert engine.pulls == 6


@pytest.mark.rows("E2", "S1")
@virtual
async def test_an_observable_is_ahead_of_its_consumer() -> None:
    """It can't be held back; what it pushes waits, in order, and nothing is lost."""
    engine = FormedEngine(observable, *map(token, range(5)), stop())
    stream = await adapter_of(engine).generate(request())
    items = [await anext(stream)]
    await asyncio.sleep(10)
    assert engine.closed == 1
    items += await collect(stream)
    assert tokens_of(items) == [[0], [1], [2], [3], [4], []]


class RxEngine(LLMEngine):
    """An engine as one would write it with ``reactivex``."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="rx")

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> Observable[LLMEngineOutput]:
        limit = request.stop_conditions.max_tokens or 8
        ticks = reactivex.interval(0.01).pipe(ops.take(limit), ops.map(token))
        stopped = context.stopped().pipe(ops.map(lambda _: LLMEngineOutput.cancelled()))
        done = reactivex.return_value(LLMEngineOutput.length())
        return reactivex.merge(reactivex.concat(ticks, done), stopped).pipe(
            ops.take_while(lambda chunk: chunk.finish_reason is None, inclusive=True)
        )


class AioEngine(LLMEngine):
    """An engine as one would write it with ``aioreactive``, its operators and all they leave."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="aio")

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncObservable[LLMEngineOutput]:
        import aioreactive as rx

        limit = request.stop_conditions.max_tokens or 8

        async def chunk_at(number: int) -> LLMEngineOutput:
            if context.is_stopped:
                raise Cancelled("stopped")
            return LLMEngineOutput.length() if number == limit else token(number)

        return rx.pipe(rx.interval(0.01, 1), rx.map_async(chunk_at), rx.take(limit + 1))


class Talkative(AioEngine):
    """It has more to say after its terminal."""

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncObservable[LLMEngineOutput]:
        import aioreactive as rx

        return rx.from_iterable([token(1), stop(), token(2)])


@pytest.mark.rows("E2", "K1")
@pytest.mark.parametrize("engine", [RxEngine, pytest.param(AioEngine, marks=NEEDS)])
def test_the_conformance_kit_accepts_every_form(engine: Callable[[], LLMEngine]) -> None:
    """Engines written with either library keep every rule, and the kit says so."""
    report = run_conformance(engine)
    assert report.ok, report


@pytest.mark.rows("E2", "K1", "S8")
@NEEDS
def test_the_conformance_kit_checks_every_form() -> None:
    """An item after the terminal is reported of an AsyncObservable too."""
    report = run_conformance(Talkative)
    assert "ITEM_AFTER_TERMINAL" in [violation.rule.name for violation in report.violations]


@pytest.mark.rows("E2")
@virtual
async def test_an_observable_is_not_awaited() -> None:
    """It can be, and would give its last chunk alone."""
    engine = RxEngine()
    chunks = await open_chunks(engine, request(), RequestContext())
    assert (await anext(chunks), now()) == (token(0), 0.01)
    await getattr(chunks, "aclose")()  # noqa: B009 - not all chunk streams have one
