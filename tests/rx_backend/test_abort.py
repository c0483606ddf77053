"""Stop and kill, and when the engine's abort is called: count and time, in all three modes."""

from __future__ import annotations

import asyncio
import threading
from itertools import product

import pytest
from reactivex.subject import ReplaySubject

from operators import AbortStep, deferred_abort
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import BackendError, Disconnected
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput
from tests.engines import (
    PASSES,
    ScriptedEngine,
    Step,
    adapter_of,
    now,
    request,
    serve,
    settle,
    stop,
    token,
    virtual,
)
from tests.engines.leaving import (
    Leave,
    aclose,
    aclose_while_another_task_pulls,
    cancel_in_a_pull,
    close_without_waiting,
    lose_the_last_reference,
    run_out_of_time_in_timeout,
)
from tests.logs import capture_logs
from tests.spans import Spans

MODES = list(DisaggregationMode)
HANDSHAKE = LLMEngineOutput(engine_data="handshake")
STOP, KILL, NOTIFY = "stop_generating", "kill", "notify_first_token"
ENDS: list[Step] = [stop(), LLMEngineOutput.cancelled(), Disconnected("gone"), 0.0]


def notify(context: RequestContext) -> None:
    context.notify_first_token()


# Which modes, the steps of the set-up and of the stream, the signals, and when the engine is aborted.
CASES: dict[str, tuple[str, list[Step], list[Step], list[tuple[float, str]], list[float]]] = {
    "live": ("agg prefill decode", [], [token(1), 5, stop()],
             [(2, STOP), (2, KILL), (2, STOP), (2.5, KILL)], [2]),
    "killed": ("agg prefill decode", [], [token(1), 5, stop()], [(2, KILL), (3, STOP)], [2]),
    "before the first token": ("agg prefill", [], [60, token(1), stop()], [(1, STOP)], [1]),
    "before the set-up": ("agg prefill", [2], [3, token(1), stop()], [(0, STOP)], [2]),
    "in the set-up": ("agg prefill", [2], [3, token(1), stop()], [(1, KILL)], [2]),
    "by the engine": ("agg prefill decode", [],
                      [token(1), 1, RequestContext.stop_generating, token(2), stop()], [], [1]),
    "deferred": ("decode", [], [1, HANDSHAKE, 1, HANDSHAKE, 1, token(1), 1, token(2), stop()],
                 [(0.5, STOP), (2.5, KILL)], [3]),
    "deferred from before the set-up": ("decode", [2], [3, token(1), stop()], [(0, STOP)], [5]),
    "deferred to a terminal": ("decode", [], [2, LLMEngineOutput.length().with_tokens([1])],
                               [(1, STOP)], [2]),
    "noticed in the set-up": ("decode", [notify, 0], [9, stop()], [(1.5, STOP)], [1.5]),
    "noticed before": ("decode", [], [9, stop()], [(1, NOTIFY), (1.5, STOP)], [1.5]),
    "noticed later, twice": ("decode", [], [9, stop()],
                             [(1.5, STOP), (2, NOTIFY), (4, NOTIFY)], [2]),
    "noticed by the engine": ("decode", [], [2, notify, 9, stop()], [(1, STOP)], [2]),
    "noticed in another mode": ("agg prefill", [], [notify, 3, stop()], [(1, STOP)], [1]),
    "too late": ("agg prefill decode", [], [token(1), stop()], [(5, STOP), (5, KILL)], []),
    **{f"no first token, {end!r}": ("decode", [], [HANDSHAKE, 2, end], [(1, KILL), (5, NOTIFY)], [])
       for end in ENDS},
}  # fmt: skip


@pytest.mark.rows("A2", "A3", "A4", "A5", "A6", "C4", "F1")
@pytest.mark.reference(
    "adapter_cancellation_triggers_engine_abort",
    "decode_defers_abort_until_first_chunk",
    "decode_side_channel_hook_releases_deferred_abort",
)
@pytest.mark.parametrize("case", CASES)
@virtual
async def test_when_the_engine_is_aborted(case: str) -> None:
    """Once, at the first signal, or in decode mode with the first token; every chunk is forwarded."""
    modes, setup, script, signals, aborts = CASES[case]
    for mode, traced in product(modes.split(), (True, False)):
        began = now()
        engine = ScriptedEngine(*script, setup=setup)
        served = await serve(engine, mode, signals=signals, traced=traced)
        assert [at - began for at in engine.aborts] == aborts, (mode, traced)
        chunks = [step for step in script if isinstance(step, LLMEngineOutput)]
        assert served.tokens == [chunk.token_ids for chunk in chunks]


@pytest.mark.rows("A4")
@virtual
async def test_a_pipeline_may_omit_deferring() -> None:
    """`defer=False` counts in a pipeline too: the abort of a decode request is made at once."""
    engine = ScriptedEngine(5, token(1), stop())
    at_once = standard_pipeline.replace("deferred_abort", deferred_abort(defer=False))
    await serve(engine, "decode", signals=[(1, STOP)], pipeline=at_once)
    assert engine.aborts == [1]


@pytest.mark.rows("A4")
@virtual
async def test_explicit_arguments_override_the_scope() -> None:
    """Not the request's signals then, nor the engine's abort."""
    stopped, notified, told = ReplaySubject[bool](), ReplaySubject[bool](), list[object]()
    given = deferred_abort(
        lambda: told.append(now()), stop=stopped, notified=notified, on_step=told.append
    )
    stopped.on_next(True)
    notified.on_next(True)
    engine = ScriptedEngine(HANDSHAKE, 5, stop())
    pipeline = standard_pipeline.replace("deferred_abort", given)
    await serve(engine, "decode", signals=[(1, NOTIFY), (1, STOP)], pipeline=pipeline)
    assert (told, engine.aborts) == (
        [AbortStep.REQUESTED, 0.0, AbortStep.CALLED_AFTER_DEFERRAL],
        [],
    )


@pytest.mark.rows("A2", "S5")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_failed_setup_is_not_aborted(mode: DisaggregationMode) -> None:
    """Where no stream came to be there is nothing to abort."""
    engine = ScriptedEngine(setup=[1, Disconnected("gone")])
    with pytest.raises(BackendError):
        await serve(engine, mode, signals=[(0, KILL)])
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("A7")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delay", [0, 3], ids=["at-once", "after-the-stream"])
@pytest.mark.parametrize("error", [RuntimeError("no such request"), asyncio.CancelledError()])
@virtual
async def test_an_abort_that_raises_is_logged(
    mode: DisaggregationMode, delay: float, error: BaseException
) -> None:
    """The stream is undisturbed, and the log has the request's id and the error's class and place."""
    engine = ScriptedEngine(token(1), 1, stop(), abort=[delay, error])
    with capture_logs() as logs:
        served = await serve(engine, mode, signals=[(0.5, STOP)])
    assert served.tokens == [[1], []]
    (log,) = [log for log in logs if log["log_level"] == "warning"]
    assert log.pop("raised_at").startswith("tests.engines.scripted:")
    assert log == {
        "event": "engine abort failed",
        "log_level": "warning",
        "request_id": "r1",
        "error_class": type(error).__name__,
    }


@pytest.mark.rows("A3", "A7")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_slow_abort_does_not_delay_the_stream(mode: DisaggregationMode) -> None:
    """Chunks flow while the abort runs, and it continues after the stream has ended."""
    ended: list[float] = []
    engine = ScriptedEngine(token(1), 1, token(2), stop(), abort=[5, lambda _: ended.append(now())])
    served = await serve(engine, mode, signals=[(0.5, STOP)])
    assert served.tokens == [[1], [2], []]
    assert (engine.aborts, engine.closes, ended) == ([0.5], [1], [5.5])


# The gate closes with the drop.


LEAVES: list[Leave] = [
    *(aclose_while_another_task_pulls, cancel_in_a_pull, run_out_of_time_in_timeout),
    *(close_without_waiting, aclose, lose_the_last_reference),
]


PIPELINES = [
    standard_pipeline,
    PASSES["map_async before the gate"],
    PASSES["map_async on items"],
]


@pytest.mark.rows("A5", "C3")
@pytest.mark.parametrize("leave", ["close", "cancel", "lose"])
@pytest.mark.parametrize("notice", ["thread", "loop", "before"])
@virtual
async def test_a_first_token_notification_in_the_iteration_of_the_drop_wins(
    leave: str, notice: str
) -> None:
    """In either order, from a thread too, and without a pull: the transfer is through."""
    for pipeline, is_pulled in product(PIPELINES, (False, True)):
        began, spans, context = now(), Spans(), RequestContext()
        engine = ScriptedEngine(60, token(1))
        adapter = adapter_of(engine, "decode", spans, pipeline=pipeline)
        held = [await adapter.generate(request(), context)]
        pull = asyncio.ensure_future(anext(held[0], None)) if is_pulled else None
        await asyncio.sleep(1)
        context.stop_generating()
        await asyncio.sleep(1)
        assert engine.aborts == []
        if notice == "before":
            context.notify_first_token()
        if leave == "close":
            held[0].close()
        elif pull is not None:
            pull.cancel()
        held.clear()
        if notice == "thread":
            thread = threading.Thread(target=context.notify_first_token)
            thread.start()
            thread.join()
        else:
            context.notify_first_token()
        await asyncio.sleep(10)
        if pull is not None:
            await asyncio.wait([pull])
            del pull
        assert engine.aborts == [began + 2]
        events = [event.name for event in spans.one().events]
        assert "abort_called" in events
        assert "abort_suppressed" not in events


@pytest.mark.rows("A5", "P5")
@pytest.mark.parametrize("leave", LEAVES)
@virtual
async def test_a_suppressed_abort_is_on_the_span(leave: Leave) -> None:
    """A drop before the first token leaves a span that says that the abort was not made."""
    spans, context = Spans(), RequestContext()
    engine = ScriptedEngine(LLMEngineOutput(), 60, token(1))
    held = [await adapter_of(engine, "decode", spans).generate(request(), context)]
    await anext(held[0])
    context.stop_generating()
    await settle()
    await leave(held)
    held.clear()
    await asyncio.sleep(10)
    assert engine.aborts == []
    names = [event.name for event in spans.one().events]
    assert names[-1] == "abort_suppressed"
    assert "abort_requested" in names
    assert spans.one().status.description == "stream dropped before terminal"
