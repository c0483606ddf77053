"""Stop and kill, and when the engine's abort is called: count and time, in all three modes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from reactivex.subject import Subject
from structlog.testing import capture_logs

from operators import abort_gate
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import BackendError, Disconnected
from rx_backend.protocols import LLMEngineOutput
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    settle,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans

MODES = list(DisaggregationMode)
AT_ONCE = [DisaggregationMode.AGGREGATED, DisaggregationMode.PREFILL]

Signal = Callable[[RequestContext], None]
NO_TERMINAL: Step = 0.0
ENDS = [
    pytest.param(stop(), id="stop"),
    pytest.param(LLMEngineOutput.cancelled(), id="cancelled"),
    pytest.param(Disconnected("gone"), id="error"),
    pytest.param(NO_TERMINAL, id="no-terminal"),
]
SIGNALS: list[Signal] = [RequestContext.stop_generating, RequestContext.kill]


@pytest.fixture(params=["spans", "no-spans"])
def spans(request: pytest.FixtureRequest) -> Spans | None:
    """Both kinds of deployment: only with real spans has the engine a context of its own."""
    return Spans() if request.param == "spans" else None


def handshake() -> LLMEngineOutput:
    return LLMEngineOutput(engine_data="handshake")


def after(seconds: float, function: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, function)


def in_background(stream: Stream) -> asyncio.Task[object]:
    return asyncio.create_task(collect(stream))


@pytest.mark.rows("A1")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ENDS)
@virtual
async def test_a_stream_that_ends_by_itself_aborts_nothing(
    mode: DisaggregationMode, end: Step, spans: Spans | None
) -> None:
    """Without a signal the engine's abort is not called, whichever way the stream ends."""
    engine = ScriptedEngine(token(1), end)
    await collect(await adapter_of(engine, mode, spans).generate(request()))
    await asyncio.sleep(10)
    assert engine.aborts == []


@pytest.mark.rows("A2", "A3")
@pytest.mark.reference("adapter_cancellation_triggers_engine_abort")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("signal", SIGNALS)
@virtual
async def test_a_live_stream_is_aborted_once(
    mode: DisaggregationMode, signal: Signal, spans: Spans | None
) -> None:
    """After the first token the first signal aborts at once, in every mode; later ones don't."""
    context = RequestContext()
    freed = asyncio.Event()
    engine = ScriptedEngine(
        token(1), freed, LLMEngineOutput.cancelled(), abort=[1, lambda _: freed.set()]
    )
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    for seconds in (2, 2, 2.5):
        after(seconds, lambda: signal(context))
        after(seconds, context.kill)
    items = await collect(stream)
    await asyncio.sleep(10)
    assert engine.aborts == [2]
    assert str(chunk_of(items[-1]).finish_reason) == "cancelled"


@pytest.mark.rows("A2", "C3")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_signals_of_many_threads_abort_once(
    mode: DisaggregationMode, spans: Spans | None
) -> None:
    """However many threads signal, the engine's abort runs once, on the stream's loop."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), 60, stop())
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    await anext(stream)
    signals = [context.stop_generating, context.kill] * 5
    await asyncio.gather(*map(asyncio.to_thread, signals))
    await asyncio.sleep(1)
    assert len(engine.aborts) == 1
    await stream.aclose()


@pytest.mark.rows("A3")
@pytest.mark.reference("aggregated_fires_abort_immediately")
@pytest.mark.parametrize("mode", AT_ONCE)
@pytest.mark.parametrize("is_pulled", [True, False], ids=["pulled", "idle"])
@virtual
async def test_aggregated_and_prefill_abort_at_once(
    mode: DisaggregationMode, is_pulled: bool, spans: Spans | None
) -> None:
    """The abort doesn't wait for a token or for a pull."""
    context = RequestContext()
    engine = ScriptedEngine(60, token(1), stop())
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    reading = in_background(stream) if is_pulled else None
    await asyncio.sleep(1)
    context.stop_generating()
    await asyncio.sleep(1)
    assert engine.aborts == [1]
    await stream.aclose()
    await settle()
    assert reading is None or reading.done()


@pytest.mark.rows("A3", "A4")
@pytest.mark.parametrize(("mode", "aborted"), [("agg", 2), ("prefill", 2), ("decode", 5)])
@pytest.mark.parametrize("stopped", [0, 1])
@virtual
async def test_a_stop_before_the_stream_counts(
    mode: str, aborted: float, stopped: float, spans: Spans | None
) -> None:
    """A stop before or during the set-up aborts when there is a stream, not before."""
    context = RequestContext()
    if stopped:
        after(stopped, context.stop_generating)
    else:
        context.stop_generating()
    engine = ScriptedEngine(3, token(1), stop(), setup=[2])
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    assert tokens_of(await collect(stream)) == [[1], []]
    await asyncio.sleep(1)
    assert engine.aborts == [aborted]


@pytest.mark.rows("A2", "S5")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_failed_setup_is_not_aborted(mode: DisaggregationMode, spans: Spans | None) -> None:
    """Where no stream came to be there is nothing to abort."""
    context = RequestContext()
    context.kill()
    engine = ScriptedEngine(setup=[1, Disconnected("gone")])
    with pytest.raises(BackendError):
        await adapter_of(engine, mode, spans).generate(request(), context)
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("A4", "F1")
@pytest.mark.reference("decode_defers_abort_until_first_chunk")
@pytest.mark.parametrize("signal", SIGNALS)
@virtual
async def test_decode_waits_for_the_first_token(signal: Signal, spans: Spans | None) -> None:
    """The abort comes with the first chunk that has tokens; handshakes before it don't count."""
    context = RequestContext()
    engine = ScriptedEngine(1, handshake(), 1, handshake(), 1, token(1), 1, token(2), 1, stop())
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    after(0.5, lambda: signal(context))
    after(2.5, lambda: signal(context))
    assert tokens_of(await collect(stream)) == [[], [], [1], [2], []]
    assert engine.aborts == [3]


@pytest.mark.rows("A4", "C4")
@pytest.mark.reference("decode_side_channel_hook_releases_deferred_abort")
@pytest.mark.parametrize("notified", [0, 1, 2], ids=["in-setup", "before-stop", "after-stop"])
@virtual
async def test_a_notice_releases_the_abort(notified: float, spans: Spans | None) -> None:
    """An engine that knows of its first token early may say so; telling it again does nothing."""
    context = RequestContext()

    def notify(seen: RequestContext) -> None:
        after(notified, seen.notify_first_token)
        after(notified + 2, seen.notify_first_token)

    engine = ScriptedEngine(9, stop(), setup=[notify, 0])
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    reading = in_background(stream)
    after(1.5, context.stop_generating)
    await reading
    assert engine.aborts == [max(1.5, notified)]


@pytest.mark.rows("A4", "C3", "C4")
@virtual
async def test_a_notice_may_come_from_a_thread(spans: Spans | None) -> None:
    """The abort is called on the stream's loop, whichever thread tells of the token."""
    context = RequestContext()
    engine = ScriptedEngine(9, stop())
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    context.stop_generating()
    assert engine.aborts == []
    await asyncio.to_thread(context.notify_first_token)
    await collect(stream)
    assert len(engine.aborts) == 1


@pytest.mark.rows("A3", "C4")
@pytest.mark.parametrize("mode", AT_ONCE)
@virtual
async def test_a_notice_in_another_mode_does_nothing(mode: DisaggregationMode) -> None:
    """Outside decode mode the abort hangs on the signal alone."""
    context = RequestContext()
    engine = ScriptedEngine(lambda seen: seen.notify_first_token(), 3, stop())
    stream = await adapter_of(engine, mode).generate(request(), context)
    after(1, context.stop_generating)
    await collect(stream)
    assert engine.aborts == [1]


@pytest.mark.rows("A5")
@pytest.mark.parametrize("end", ENDS)
@virtual
async def test_an_end_before_the_first_token_gives_the_abort_up(
    end: Step, spans: Spans | None
) -> None:
    """A decode stream that ends or fails without a token is not aborted, nor is it later."""
    context = RequestContext()
    engine = ScriptedEngine(handshake(), 2, end)
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    after(1, context.kill)
    await collect(stream)
    await asyncio.sleep(1)
    context.notify_first_token()
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("A5")
@virtual
async def test_a_terminal_with_the_first_token_releases_the_abort(spans: Spans | None) -> None:
    """A stream of one chunk has its first token and its end at once, and the token counts."""
    context = RequestContext()
    engine = ScriptedEngine(2, LLMEngineOutput.length().with_tokens([1]))
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    after(1, context.stop_generating)
    await collect(stream)
    await asyncio.sleep(1)
    assert engine.aborts == [2]


@pytest.mark.rows("A5", "S7")
@pytest.mark.reference("decode_stream_drop_without_first_token_does_not_abort")
@pytest.mark.parametrize("is_pulled", [True, False], ids=["pulled", "idle"])
@virtual
async def test_a_drop_before_the_first_token_gives_the_abort_up(
    is_pulled: bool, spans: Spans | None
) -> None:
    """A decode stream that is dropped while it waits for a token is not aborted, nor is it later."""
    context = RequestContext()
    stream = await adapter_of(engine := ScriptedEngine(60, token(1)), "decode", spans).generate(
        request(), context
    )
    reading = in_background(stream) if is_pulled else None
    after(1, context.stop_generating)
    await asyncio.sleep(2)
    await stream.aclose()
    await settle()
    assert reading is None or reading.done()
    await asyncio.sleep(1)
    context.notify_first_token()
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("A5")
@pytest.mark.parametrize("drop", ["close-idle", "close-pulled", "cancel-pulled"])
@pytest.mark.parametrize("order", ["notice-first", "drop-first"])
@virtual
async def test_a_first_token_wins_over_a_drop_in_its_turn(
    drop: str, order: str, spans: Spans | None
) -> None:
    """When notice and drop come in one turn of the loop the abort is made, in either order."""
    context = RequestContext()
    engine = ScriptedEngine(60, token(1))
    stream = await adapter_of(engine, "decode", spans).generate(request(), context)
    reading = None if drop == "close-idle" else in_background(stream)
    context.stop_generating()
    await asyncio.sleep(2)
    leave = reading.cancel if reading and drop == "cancel-pulled" else stream.close
    both: list[Callable[[], object]] = [context.notify_first_token, leave]
    for step in both if order == "notice-first" else reversed(both):
        step()
    await asyncio.sleep(1)
    assert engine.aborts == [2]
    assert reading is None or reading.done()


@pytest.mark.rows("A5", "A6")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_stop_in_the_turn_of_the_drop_counts_if_it_came_first(
    mode: DisaggregationMode, spans: Spans | None
) -> None:
    """The stream is live until it is dropped, and not after."""
    adapter = adapter_of(engine := ScriptedEngine(token(1), 60), mode, spans)
    stopped, dropped = RequestContext(), RequestContext()
    stop_first = await adapter.generate(request(), stopped)
    drop_first = await adapter.generate(request(), dropped)
    await anext(stop_first)
    await anext(drop_first)
    stopped.stop_generating()
    stop_first.close()
    assert engine.aborts == []
    await asyncio.sleep(1)
    assert engine.aborts == [0]
    drop_first.close()
    dropped.stop_generating()
    await asyncio.sleep(1)
    assert engine.aborts == [0]


@pytest.mark.rows("A6", "P6a")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_exhausted", [True, False], ids=["exhausted", "terminal-taken"])
@virtual
async def test_signals_after_the_terminal_do_nothing(
    mode: DisaggregationMode, is_exhausted: bool, spans: Spans | None
) -> None:
    """Once the terminal was handed out nothing is left to abort, also before the next pull."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), stop())
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    await anext(stream)
    await anext(stream)
    if is_exhausted:
        assert await collect(stream) == []
    context.stop_generating()
    context.kill()
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("A6")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("signal", SIGNALS)
@virtual
async def test_a_stop_does_not_end_the_stream(
    mode: DisaggregationMode, signal: Signal, spans: Spans | None
) -> None:
    """What the engine still sends is forwarded, and its own finish reason stands."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), 1, token(2), 1, LLMEngineOutput.length())
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    await anext(stream)
    signal(context)
    *chunks, last = await collect(stream)
    assert tokens_of(chunks) == [[2]]
    assert str(chunk_of(last).finish_reason) == "length"
    assert engine.aborts == [0]


@pytest.mark.rows("A2", "A6")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_an_engine_may_stop_its_own_request(
    mode: DisaggregationMode, spans: Spans | None
) -> None:
    """A signal out of the engine's own step is a signal like any other."""
    engine = ScriptedEngine(token(1), 1, lambda seen: seen.stop_generating(), token(2), stop())
    items = await collect(await adapter_of(engine, mode, spans).generate(request()))
    assert tokens_of(items) == [[1], [2], []]
    await asyncio.sleep(1)
    assert engine.aborts == [1]


@pytest.mark.rows("A7")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delay", [0, 3], ids=["at-once", "after-the-stream"])
@virtual
async def test_an_abort_that_raises_is_logged(
    mode: DisaggregationMode, delay: float, spans: Spans | None
) -> None:
    """The stream goes on, and the log has the request's id and the error's class and place."""
    context = RequestContext("r-17")
    engine = ScriptedEngine(token(1), 1, stop(), abort=[delay, RuntimeError("no such request")])
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    await anext(stream)
    with capture_logs() as logs:
        context.stop_generating()
        assert tokens_of(await collect(stream)) == [[]]
        await asyncio.sleep(5)
    assert logs[0].pop("raised_at").startswith("tests.rx_backend._engines:")
    assert logs == [
        {
            "event": "engine abort failed",
            "log_level": "warning",
            "request_id": "r-17",
            "error_class": "RuntimeError",
        }
    ]


@pytest.mark.rows("A7")
@virtual
async def test_an_abort_that_cancels_itself_has_failed(spans: Spans | None) -> None:
    """It is logged as one that raises anything else, and does not disturb the stream."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), 1, stop(), abort=[asyncio.CancelledError()])
    stream = await adapter_of(engine, spans=spans).generate(request(), context)
    context.stop_generating()
    with capture_logs() as logs:
        assert tokens_of(await collect(stream)) == [[1], []]
    (log,) = logs
    assert (log["event"], log["request_id"]) == ("engine abort failed", context.id)
    assert log["error_class"] == "CancelledError"


@pytest.mark.rows("A3", "A7")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_slow_abort_delays_nobody(mode: DisaggregationMode, spans: Spans | None) -> None:
    """Chunks flow while the abort is under way, and it goes on after the stream has ended."""
    context = RequestContext()
    ended: list[float] = []
    engine = ScriptedEngine(
        token(1), 1, token(2), 1, stop(), abort=[5, lambda _: ended.append(now())]
    )
    stream = await adapter_of(engine, mode, spans).generate(request(), context)
    await anext(stream)
    context.stop_generating()
    await collect(stream)
    assert (now(), engine.aborts, ended) == (2, [0], [])
    await asyncio.sleep(10)
    assert ended == [5]


@pytest.mark.rows("A8")
@pytest.mark.parametrize(
    ("signals", "fired"),
    [
        ("stop opened", ["opened"]),
        ("opened stop", ["stop"]),
        ("stop stop opened opened stop", ["opened"]),
        ("stop", []),
        ("opened", []),
        ("closed stop opened", []),
        ("stop closed opened", []),
        ("stop opened closed stop opened", ["opened"]),
    ],
)
def test_the_gate_works_on_its_own(signals: str, fired: list[str]) -> None:
    """Made of three plain Observables it fires once, when stop and opening have both come."""
    subjects: dict[str, Subject[bool]] = {name: Subject() for name in ("stop", "opened", "closed")}
    heard: list[str] = []
    current = ""
    abort_gate(**subjects).subscribe(lambda _: heard.append(current))
    for current in signals.split():
        subjects[current].on_next(True)
    assert heard == fired
