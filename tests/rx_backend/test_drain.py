"""Decode streams that are dropped before their first token, through the adapter, with a drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from operators import Drains, Pipeline, drain_until_first_token
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import Disconnected
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.testing import run_virtual
from tests.rx_backend._engines import (
    DROPPED,
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    collect,
    now,
    request,
    settle,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans


@pytest.fixture(params=["spans", "no-spans"])
def spans(request: pytest.FixtureRequest) -> Spans | None:
    """Both kinds of deployment: only with real spans has the engine a context of its own."""
    return Spans() if request.param == "spans" else None


def draining(drains: Drains) -> Pipeline:
    """Return the standard pipeline with a drain where the documentation says."""
    return standard_pipeline.insert_after("deferred_abort", drain_until_first_token(drains=drains))


def decoding(engine: object, drains: Drains, spans: Spans | None = None) -> EngineAdapter:
    return adapter_of(engine, "decode", spans, pipeline=draining(drains))


def handshake() -> LLMEngineOutput:
    return LLMEngineOutput()


# Ways to drop a stream at 1 s, that the caller gets rid of.
Drop = Callable[[list[Stream]], Awaitable[None]]


async def by_cancelling(owner: list[Stream]) -> None:
    pull = asyncio.create_task(collect(owner.pop()))
    await asyncio.sleep(1)
    pull.cancel()
    await asyncio.wait([pull])


async def by_aclose_in_a_pull(owner: list[Stream]) -> None:
    stream = owner.pop()
    pull = asyncio.create_task(collect(stream))
    await asyncio.sleep(1)
    await stream.aclose()
    await pull


async def by_a_timeout_in_a_block(owner: list[Stream]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1), owner.pop() as stream:
            async for _ in stream:
                pass


async def by_aclose(owner: list[Stream]) -> None:
    await asyncio.sleep(1)
    await owner.pop().aclose()


async def by_losing_it(owner: list[Stream]) -> None:
    await asyncio.sleep(1)
    owner.clear()


async def by_disposing(owner: list[Stream]) -> None:
    subscription = owner.pop().subscribe()
    await asyncio.sleep(1)
    subscription.dispose()
    await asyncio.sleep(0)


IN_A_PULL: list[Drop] = [by_cancelling, by_aclose_in_a_pull, by_a_timeout_in_a_block, by_disposing]
UNPULLED: list[Drop] = [by_aclose, by_losing_it]


@pytest.mark.rows("A2", "A4", "P5", "P7", "S7")
@pytest.mark.parametrize("drop", [*IN_A_PULL, *UNPULLED])
@virtual
async def test_a_dropped_stream_is_aborted_by_its_first_token(
    drop: Drop, spans: Spans | None
) -> None:
    """The caller and the span are rid of it at once; the engine is aborted, once, and closed."""
    async with Drains(grace_s=4) as drains:
        engine = ScriptedEngine(3, handshake(), 3, token(1), 1, token(2), 60, stop())
        owner = [await decoding(engine, drains, spans).generate(request())]
        await drop(owner)
        await settle()
        assert (now(), engine.closes, drains.running) == (1, [], 1)
        if spans is not None:
            span = spans.one()
            assert (span.attributes or {})["finish_reason"] == "Dropped"
            assert status_of(span) == DROPPED
        await drains.wait()
        first_s = 7 if drop in UNPULLED else 6
        assert engine.aborts == [first_s]
        assert (engine.closes, engine.closed) == ([first_s + 4], 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("A2", "A4")
@pytest.mark.parametrize("stopped_s", [0.5, 1.5, 6.5], ids=["before", "in-the-drain", "late"])
@pytest.mark.parametrize("signal", [RequestContext.stop_generating, RequestContext.kill])
@virtual
async def test_a_stop_beside_the_drop(
    stopped_s: float, signal: Callable[[RequestContext], None], spans: Spans | None
) -> None:
    """Whoever else asks for the abort and whenever: it is made once, with the first token."""
    async with Drains(grace_s=4) as drains:
        engine = ScriptedEngine(6, token(1), 60, stop())
        context = RequestContext()
        owner = [await decoding(engine, drains, spans).generate(request(), context)]
        asyncio.get_running_loop().call_later(stopped_s, signal, context)
        await by_cancelling(owner)
    assert (engine.aborts, engine.closes) == ([6], [10])


@pytest.mark.rows("A1", "A5")
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(stop(), id="stop"),
        pytest.param(LLMEngineOutput.length().with_tokens([1]), id="length-with-token"),
        pytest.param(Disconnected("gone"), id="error"),
        pytest.param({"token_ids": [-1]}, id="malformed"),
        pytest.param(0.0, id="no-terminal"),
    ],
)
@virtual
async def test_an_engine_that_ends_by_itself_is_not_aborted(end: Step, spans: Spans | None) -> None:
    """Be it with a terminal or an error, the drain is through, and the request was not stopped."""
    async with Drains() as drains:
        context = RequestContext()
        engine = ScriptedEngine(5, end, closing=[2])
        await by_cancelling([await decoding(engine, drains, spans).generate(request(), context)])
    assert (now(), engine.closed, engine.aborts, context.is_stopped) == (7, 1, [], False)
    assert (drains.drained, drains.timed_out) == (1, 0)


@pytest.mark.rows("A4", "E4")
@virtual
async def test_an_engine_that_watches_for_the_stop() -> None:
    """It ends with ``cancelled`` when its first token is out, and need not be closed from outside."""
    ended: list[float] = []
    async with Drains(grace_s=60) as drains:
        engine = ScriptedEngine(
            5,
            token(1),
            lambda context: context.stopped(),
            1,
            lambda _: ended.append(now()),
            LLMEngineOutput.cancelled(),
        )
        await by_cancelling([await decoding(engine, drains).generate(request())])
    assert (now(), ended, engine.aborts) == (6, [6], [5])


@pytest.mark.rows("A4", "A5")
@virtual
async def test_the_time_limit_stops_and_does_not_abort(spans: Spans | None) -> None:
    """The engine sees the stop; its abort still waits for the token, which never comes."""
    async with Drains(timeout_s=10, grace_s=4) as drains:
        context = RequestContext()
        engine = ScriptedEngine(60, token(1))
        await by_cancelling([await decoding(engine, drains, spans).generate(request(), context)])
        await asyncio.sleep(9)
        assert not context.is_stopped
        await asyncio.sleep(1)
        assert context.is_stopped
    assert (engine.aborts, engine.closes, drains.timed_out) == ([], [15], 1)


@pytest.mark.rows("A4", "C4")
@virtual
async def test_a_notice_is_a_first_token(spans: Spans | None) -> None:
    """Told by the side, out of the engine's own step, it aborts before a chunk shows it."""
    async with Drains(grace_s=4) as drains:
        engine = ScriptedEngine(5, lambda context: context.notify_first_token(), 60, token(1))
        await by_cancelling([await decoding(engine, drains, spans).generate(request())])
    assert (engine.aborts, engine.closes) == ([5], [9])


@pytest.mark.rows("A5", "S7")
@virtual
async def test_one_too_many_is_dropped_as_without_a_drain(spans: Spans | None) -> None:
    """It is closed at its drop and not aborted, stopped or not."""
    async with Drains(limit=1, grace_s=0) as drains:
        engine = ScriptedEngine(5, token(1), 60)
        adapter = decoding(engine, drains, spans)
        contexts = [RequestContext() for _ in range(3)]
        streams = [[await adapter.generate(request(), context)] for context in contexts]
        contexts[2].stop_generating()
        await asyncio.gather(*map(by_cancelling, streams))
        assert engine.closes == [1, 1]
        await drains.wait()
        assert (engine.aborts, engine.closes, drains.refused) == ([5], [1, 1, 5], 2)


@pytest.mark.rows("A1", "S1", "S2", "P3", "T3")
@virtual
async def test_a_stream_that_is_not_dropped_is_as_ever(spans: Spans | None) -> None:
    """Items, span and link are those of the standard pipeline, and nothing is left."""
    script = [1, handshake(), 1, token(1), 1, token(2), 1, stop()]
    async with Drains() as drains:
        with_drain = ScriptedEngine(*script)
        items = await collect(await decoding(with_drain, drains, spans).generate(request()))
        plain = await collect(
            await adapter_of(ScriptedEngine(*script), "decode", spans).generate(request())
        )
    assert tokens_of(items) == tokens_of(plain)
    assert (with_drain.aborts, with_drain.closed, drains.drained) == ([], 1, 0)
    if spans is not None:
        first, second = (dict(span.attributes or {}) for span in spans.finished)
        assert first == second
        links = [item.data and item.data.worker_trace_link is not None for item in items]
        assert links == [False, True, False, False]


@pytest.mark.rows("P7", "P9")
@pytest.mark.parametrize("drop", [None, *IN_A_PULL, *UNPULLED])
@virtual
async def test_spans_of_the_engine(drop: Drop | None) -> None:
    """One that is open across its yields nests under the request's and is closed where it began."""
    spans = Spans()

    class Tracing(ScriptedEngine):
        async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
            with spans.tracer.start_as_current_span("work"):
                yield handshake()
                await asyncio.sleep(5)
                with spans.tracer.start_as_current_span("transfer"):
                    await asyncio.sleep(1)
                yield token(1)
                assert trace.get_current_span() is spans.open[-1]
                await asyncio.sleep(1)
                yield stop()

    async with Drains() as drains:
        owner = [await decoding(Tracing(), drains, spans).generate(request())]
        if drop is None:
            await collect(owner[0])
        else:
            await drop(owner)
            await settle()
    ids = {span.name: span.context.span_id for span in spans.finished if span.context}
    parents = {span.name: span.parent.span_id for span in spans.finished if span.parent}
    assert parents == {"work": ids["engine.generate"], "transfer": ids["work"]}


class Transfers(LLMEngine):
    """
    Moves a request's KV blocks from a peer before its first token, as decode engines do.

    Attributes:
        held: Requests whose blocks the peer holds.
        running: Requests that the engine works on.
        aborts: How often each request was aborted.
    """

    def __init__(self, transfer_s: float, token_s: float, is_eager: bool) -> None:
        self._transfer_s = transfer_s
        self._token_s = token_s
        self._is_eager = is_eager
        self.held: set[str] = set()
        self.running: set[str] = set()
        self.aborts: dict[str, int] = {}

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="transfers")

    async def abort(self, context: RequestContext) -> None:
        assert context.id not in self.held, "the abort came in the transfer"
        self.aborts[context.id] = self.aborts.get(context.id, 0) + 1
        self.running.discard(context.id)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.held.add(context.id)
        self.running.add(context.id)
        if self._is_eager:
            yield LLMEngineOutput()
        # A transfer that is broken off leaves the blocks with the peer.
        await asyncio.sleep(self._transfer_s)
        self.held.remove(context.id)
        for number in range(3):
            await asyncio.sleep(self._token_s)
            yield token(number)
            if context.id not in self.running:
                yield LLMEngineOutput.cancelled()
                return
        self.running.discard(context.id)
        yield stop()


@pytest.mark.rows("A2", "A4", "A5", "S7")
@given(
    transfer_s=st.integers(0, 4),
    token_s=st.integers(0, 2),
    is_eager=st.booleans(),
    drops=st.lists(
        st.tuples(st.sampled_from([*IN_A_PULL, *UNPULLED, None]), st.integers(-1, 3)), max_size=6
    ),
)
def test_no_transfer_is_orphaned(
    transfer_s: float, token_s: float, is_eager: bool, drops: Sequence[tuple[Drop | None, int]]
) -> None:
    """Whenever consumers leave and whenever they stop, the peer gets all its blocks back."""

    async def play() -> None:
        engine = Transfers(transfer_s, token_s, is_eager)
        async with Drains() as drains:
            adapter = decoding(engine, drains)

            async def consume(number: int, drop: Drop | None, stopped_s: int) -> None:
                context = RequestContext(str(number))
                stream = await adapter.generate(request(), context)
                if stopped_s >= 0:
                    asyncio.get_running_loop().call_later(stopped_s, context.stop_generating)
                if drop is None:
                    await collect(stream)
                else:
                    owner = [stream]
                    del stream
                    await drop(owner)

            async with asyncio.TaskGroup() as group:
                for number, (drop, stopped_s) in enumerate(drops):
                    group.create_task(consume(number, drop, stopped_s))
        assert engine.held == set()
        assert set(engine.aborts.values()) <= {1}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(play())


@pytest.mark.rows("P5", "P7", "O2")
@pytest.mark.parametrize("behind", ["deferred_abort", "record_span"])
@virtual
async def test_the_span_is_the_consumer_s_wherever_the_drain_stands(behind: str) -> None:
    """It ends with the drop, and says so: the consumer was handed nothing of what came later."""
    recorded = Spans()
    async with Drains(grace_s=4) as drains:
        pipeline = standard_pipeline.insert_after(behind, drain_until_first_token(drains=drains))
        engine = ScriptedEngine(5, token(1), 1, stop())
        adapter = adapter_of(engine, "decode", recorded, pipeline=pipeline)
        await by_cancelling([await adapter.generate(request())])
        assert status_of(recorded.one()) == DROPPED
    assert (recorded.one().attributes or {})["finish_reason"] == "Dropped"
    assert engine.closed == 1
