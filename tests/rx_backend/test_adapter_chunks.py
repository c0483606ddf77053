"""From engine chunks to items: order, ends, and failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import (
    KINDS,
    BackendError,
    Disconnected,
    InvalidArgument,
    ResponseTimeout,
    Unknown,
)
from rx_backend.protocols import FinishReason, LLMEngineOutput, usage
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    adapter_of,
    chunk_of,
    collect,
    request,
    settle,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans, rows_of

MODES = list(DisaggregationMode)

# What engines raise, and what the consumer gets of it.
FAILURES = [
    *(pytest.param(error("it broke"), error, id=kind) for kind, error in KINDS.items()),
    pytest.param(ValueError("it broke"), InvalidArgument, id="ValueError"),
    pytest.param(UnicodeError("it broke"), Unknown, id="UnicodeError"),
    pytest.param(RuntimeError("it broke"), Unknown, id="RuntimeError"),
    pytest.param(ConnectionError("it broke"), Disconnected, id="ConnectionError"),
    pytest.param(TimeoutError("it broke"), ResponseTimeout, id="TimeoutError"),
    pytest.param(ExceptionGroup("g", [Disconnected("it broke")]), Disconnected, id="group"),
]
INTERRUPTS = [KeyboardInterrupt, SystemExit]


@pytest.mark.rows("S1", "A1")
@pytest.mark.reference("adapter_maps_chunks_to_outputs")
@virtual
async def test_chunks_come_out_once_in_order_and_unchanged() -> None:
    """Each chunk is one item's data, the very object that the engine made; nothing is aborted."""
    chunks = [
        LLMEngineOutput(engine_data={"handshake": True}),
        token(11),
        LLMEngineOutput(token_ids=[12, 13], text="ab", log_probs=[-0.5, -0.1]),
        LLMEngineOutput.length().with_tokens([22]).with_usage(usage(3, 2)),
    ]
    engine = ScriptedEngine(*chunks)
    items = await collect(await adapter_of(engine).generate(request()))
    assert len(items) == len(chunks)
    assert all(item.data is chunk for item, chunk in zip(items, chunks, strict=True))
    assert not any(item.is_error or item.event or item.comment for item in items)
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("S1", "T3")
@virtual
async def test_the_engines_own_chunk_is_never_written_to() -> None:
    """The stamped first chunk is a copy, so that an engine may yield one object twice."""
    chunk = token(7)
    engine = ScriptedEngine(chunk, chunk, stop())
    items = await collect(await adapter_of(engine, spans=Spans()).generate(request()))
    assert chunk.worker_trace_link is None
    assert [chunk_of(item).worker_trace_link is not None for item in items] == [True, False, False]
    assert items[1].data is chunk


@pytest.mark.rows("S2", "S8", "E3")
@pytest.mark.parametrize(
    "reason",
    [
        FinishReason.EOS,
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.CANCELLED,
        FinishReason.CONTENT_FILTER,
        FinishReason.error("boom"),
    ],
    ids=str,
)
@virtual
async def test_the_stream_ends_with_its_terminal(reason: FinishReason) -> None:
    """Any terminal is handed out, the engine closed and not pulled again, and what follows lost."""
    engine = ScriptedEngine(
        token(1), LLMEngineOutput(token_ids=[2], finish_reason=reason), token(3), stop()
    )
    stream = await adapter_of(engine).generate(request())
    items = [await anext(stream), await anext(stream)]
    assert chunk_of(items[-1]).finish_reason == reason
    await settle()
    assert (engine.pulls, engine.closed) == (2, 1)
    assert await collect(stream) == []
    assert await anext(stream, None) is None
    assert (engine.pulls, engine.closed) == (2, 1)


@pytest.mark.rows("S2")
@virtual
async def test_a_terminal_does_not_wait_for_the_engine_to_close() -> None:
    """An engine whose ``finally`` takes a while does so after the terminal was handed out."""
    engine = ScriptedEngine(stop(), closing=[5])
    stream = await adapter_of(engine).generate(request())
    await anext(stream)
    await settle()
    assert asyncio.get_running_loop().time() == 0
    assert (engine.closes, engine.closed) == ([0], 0)
    await stream.aclose()
    assert asyncio.get_running_loop().time() == 5
    assert engine.closed == 1


@pytest.mark.rows("S2", "S7")
@pytest.mark.parametrize("end", [stop(), Disconnected("gone")], ids=["terminal", "error"])
@virtual
async def test_an_engine_may_close_under_a_timeout(end: LLMEngineOutput | Disconnected) -> None:
    """A timeout in the engine's ``finally`` bounds that, and leaves the consumer's task alone."""
    outcome: list[str] = []

    async def release(_: RequestContext) -> None:
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(60)
        except TimeoutError:
            outcome.append("timed out")

    engine = ScriptedEngine(token(1), end, closing=[release])
    items = await collect(await adapter_of(engine).generate(request()))
    await asyncio.sleep(5)
    assert len(items) == 2
    assert outcome == ["timed out"]
    assert engine.closed == 1


@pytest.mark.rows("S2", "S7")
@pytest.mark.parametrize("end", [stop(), Disconnected("gone"), 60], ids=["stop", "error", "drop"])
@virtual
async def test_an_engine_closes_within_one_task(end: Step) -> None:
    """Scopes that belong to a task, as HTTP clients use them, can be entered in a ``finally``."""
    tasks: list[object] = []

    async def release(_: RequestContext) -> None:
        while len(tasks) < 3:
            tasks.append(asyncio.current_task())
            await asyncio.sleep(1)

    engine = ScriptedEngine(token(1), end, closing=[release])
    stream = await adapter_of(engine).generate(request())
    await anext(stream)
    if end != 60:
        await anext(stream)
    await stream.aclose()
    assert engine.closed == 1
    assert len(tasks) == 3
    assert all(isinstance(task, asyncio.Task) and task is tasks[0] for task in tasks)


@pytest.mark.rows("S2")
@virtual
async def test_an_engine_that_fails_to_close_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the engine's ``finally`` raises is logged; the consumer has its items."""
    engine = ScriptedEngine(token(1), stop(), closing=[0, RuntimeError("leak")])
    stream = await adapter_of(engine).generate(request())
    assert tokens_of(await collect(stream)) == [[1], []]
    await stream.aclose()
    assert [record.message for record in caplog.records] == [
        "closing the source of a stream failed"
    ]


@pytest.mark.rows("S3", "E4", "A6")
@pytest.mark.reference("adapter_forwards_terminal_cancel_chunk_to_downstream")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_cancelled_terminal_is_forwarded(mode: DisaggregationMode) -> None:
    """A terminal that the engine sends because of a stop comes out like any other."""
    context = RequestContext()
    terminal = LLMEngineOutput.cancelled().with_usage(usage(3, 1))
    engine = ScriptedEngine(token(1), lambda seen: seen.stopped(), terminal)
    stream = await adapter_of(engine, mode).generate(request(), context)
    await anext(stream)
    context.stop_generating()
    (item,) = await collect(stream)
    assert item.data is terminal


@pytest.mark.rows("S5")
@pytest.mark.reference(
    "adapter_engine_setup_error_propagates", "adapter_surfaces_typed_invalid_argument_error"
)
@pytest.mark.parametrize(("raised", "kind"), FAILURES)
@pytest.mark.parametrize("delay", [0, 1], ids=["at-once", "later"])
@virtual
async def test_a_setup_failure_reaches_the_caller(
    raised: Exception, kind: type[BackendError], delay: float
) -> None:
    """What is raised before there is a stream comes out of ``generate``, typed, the cause kept."""
    spans = Spans()
    adapter = adapter_of(ScriptedEngine(setup=[delay, raised]), spans=spans)
    with pytest.raises(BackendError) as caught:
        await adapter.generate(request())
    assert str(caught.value) == f"Backend{kind.kind}: it broke"
    assert caught.value is raised or caught.value.__cause__ is raised
    assert spans.one().status.description == "setup_failed"


@pytest.mark.rows("S5")
@virtual
async def test_generate_itself_may_raise() -> None:
    """An engine whose ``generate`` is a plain function that raises fails its set-up, too."""

    class Refusing:
        def generate(self, *_: object) -> object:
            raise InvalidArgument("bad param")

    with pytest.raises(InvalidArgument, match="BackendInvalidArgument: bad param"):
        await adapter_of(Refusing(), spans=Spans()).generate(request())


@pytest.mark.rows("S6", "E3")
@pytest.mark.reference("adapter_forwards_typed_mid_stream_error_as_annotated_error")
@pytest.mark.parametrize(("raised", "kind"), FAILURES)
@pytest.mark.parametrize("at", [0, 1, 2])
@virtual
async def test_a_failure_in_mid_stream_is_one_error_item(
    raised: Exception, kind: type[BackendError], at: int
) -> None:
    """After any number of chunks the error is the last item, of its kind, with its cause."""
    engine = ScriptedEngine(*[token(7)] * at, 1, raised, token(8))
    stream = await adapter_of(engine).generate(request())
    *chunks, last = await collect(stream)
    assert tokens_of(chunks) == [[7]] * at
    assert last.data is None
    assert (last.event, last.comment, last.is_error) == ("error", ["it broke"], True)
    assert isinstance(last.error, kind)
    assert last.error is raised or last.error.__cause__ is raised
    assert engine.closed == 1
    assert await anext(stream, None) is None


@pytest.mark.rows("S6", "P7")
@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_interrupts_are_never_items(interrupt: type[BaseException]) -> None:
    """An interrupt out of the engine reaches the consumer as it is, and is a drop."""
    spans = Spans()
    engine = ScriptedEngine(token(1), interrupt())

    @virtual
    async def main() -> None:
        stream = await adapter_of(engine, spans=spans).generate(request())
        await anext(stream)
        await anext(stream)

    with pytest.raises(interrupt):
        main()
    assert engine.closed == 1
    assert spans.one().status.description == "stream dropped before terminal"


@pytest.mark.rows("S5", "P7")
@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_interrupts_of_the_setup_pass_as_they_are(interrupt: type[BaseException]) -> None:
    """An interrupt during the set-up is not typed, and the span ends."""
    spans = Spans()

    @virtual
    async def main() -> None:
        engine = ScriptedEngine(setup=[1, interrupt()])
        await adapter_of(engine, spans=spans).generate(request())

    with pytest.raises(interrupt):
        main()
    assert spans.one().status.description == "stream dropped before terminal"


@pytest.mark.rows("S5", "S6", "P4")
@pytest.mark.parametrize("is_caught_before", [False, True])
@virtual
async def test_a_setup_that_cancels_itself_has_failed(is_caught_before: bool) -> None:
    """A ``CancelledError`` although the caller was not cancelled is a failure like any other."""
    spans = Spans()
    if is_caught_before:
        # A cancellation that the caller has survived says nothing of this request.
        this = asyncio.current_task()
        assert this is not None
        this.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)
    engine = ScriptedEngine(setup=[1, asyncio.CancelledError()])
    with pytest.raises(Unknown) as raised:
        await adapter_of(engine, spans=spans).generate(request())
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert spans.one().status.description == "setup_failed"


@pytest.mark.rows("S5", "S7", "P7")
@virtual
async def test_a_caller_may_leave_during_the_setup() -> None:
    """Cancelling who waits for ``generate`` cancels the engine's set-up and ends the span."""
    spans = Spans()
    seen: list[str] = []

    async def slow(_: RequestContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("set-up left")

    adapter = adapter_of(ScriptedEngine(setup=[slow]), spans=spans)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(adapter.generate(request()), 1)
    assert seen == ["set-up left"]
    assert rows_of(spans.one()) == {
        "model": "mock",
        "input_tokens": 3,
        "disagg_role": "agg",
        "cancelled": True,
        "finish_reason": "Dropped",
    }


@pytest.mark.rows("S6")
@virtual
async def test_errors_of_streams_do_not_mix() -> None:
    """Two failing requests of one engine have an error item each, of their own."""
    adapter = adapter_of(ScriptedEngine(1, Disconnected("gone")))
    streams = [await adapter.generate(request()) for _ in range(2)]
    answers: list[Any] = await asyncio.gather(*map(collect, streams))
    assert [item.comment for (item,) in answers] == [["gone"]] * 2
    assert answers[0][0] is not answers[1][0]
