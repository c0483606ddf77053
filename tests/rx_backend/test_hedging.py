"""An engine that asks a second engine too when the first is slow to begin."""

from __future__ import annotations

import asyncio
import contextvars
import math
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st

from rx_backend import HedgedEngine
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.failover import FailoverEngine
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    PrefillResult,
    SamplingOptions,
    usage,
)
from rx_backend.retry_budget import RetryBudget
from rx_backend.testing import check_engine, run_virtual
from tests.engines import (
    FunctionEngine,
    Item,
    LosableEngine,
    ScriptedEngine,
    Served,
    Step,
    Stream,
    adapter_of,
    chunk_of,
    collect,
    counting_request,
    flat,
    now,
    serve,
    settle,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.examples import examples
from tests.meters import Meters
from tests.spans import Spans

HANDSHAKE = LLMEngineOutput()
FAILED = LLMEngineOutput(finish_reason=FinishReason.parse("error: boom"))
OVERLONG = LLMEngineOutput([1, 2], finish_reason=FinishReason.error("boom"))
GONE = Disconnected("first")
NONE: list[int] = []


def worded(reason: str) -> LLMEngineOutput:
    """Make a chunk with its finish reason as text, as some engines do."""
    return LLMEngineOutput(finish_reason=cast("FinishReason", reason))


ALL = [3, 4, 5, 6, 7, 8]


def tasks() -> int:
    return len(asyncio.all_tasks())


def winners(spans: Spans) -> list[Any]:
    """Return who won each race, as told by the request's span."""
    events = [event for event in spans.one().events if event.name == "hedged"]
    return [dict(event.attributes or {})["winner"] for event in events]


async def open_stream(
    first: Any, second: Any, after_s: float, mode: str = "agg", **options: Any
) -> Stream:
    engine = HedgedEngine(first, second, after_s=after_s)
    return await adapter_of(engine, mode, **options).generate(counting_request())


async def answer(first: LLMEngine, second: LLMEngine, after_s: float, mode: str = "agg") -> Served:
    engine = HedgedEngine(first, second, after_s=after_s)
    return await serve(engine, mode, asked=counting_request())


def logged(log: list[str], name: str, setup_s: float) -> ScriptedEngine:
    """Return an engine that logs when its ``generate`` has returned, and when it is aborted."""

    def note(what: str) -> Callable[[RequestContext], None]:
        return lambda _: log.append(f"{name} {what}")

    return ScriptedEngine(
        2, token(3), 60, stop(), setup=[setup_s, note("asked")], abort=[note("abort")]
    )


@pytest.mark.rows("A2", "A3")
@given(
    setups=st.tuples(*[st.sampled_from([0.0, 1.0, 3.0])] * 2),
    after_s=st.sampled_from([0.0, 1.0, 3.0, 5.0]),
    stop_s=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 9.0]),
    pull_s=st.sampled_from([0.0, 0.25]),
)
@example(setups=(0.0, 0.0), after_s=9.0, stop_s=0.0, pull_s=0.25)
@example(setups=(3.0, 0.0), after_s=9.0, stop_s=1.0, pull_s=0.0)
@example(setups=(0.0, 0.0), after_s=2.0, stop_s=9.0, pull_s=0.0)
@examples(60)
def test_no_abort_overtakes_its_request(
    setups: tuple[float, float], after_s: float, stop_s: float, pull_s: float
) -> None:
    """
    An engine is aborted once it was asked, and only then; one that was never asked is left alone.

    Wherever a stop, or the other engine's token, comes: before the first pull, during ``generate``,
    or in the iteration of the loop in which the second engine would be asked.
    """
    log: list[str] = []

    async def main() -> None:
        first, second = (logged(log, *one) for one in zip("ab", setups, strict=True))
        engine = HedgedEngine(first, second, after_s=after_s)
        context = RequestContext()
        stream = await adapter_of(engine).generate(counting_request(), context)
        asyncio.get_running_loop().call_later(stop_s, context.stop_generating)
        await asyncio.sleep(pull_s)
        assert await collect(stream)

    run_virtual(main())
    for name in "ab":
        own = [line for line in log if line.startswith(name)]
        assert own in ([], [f"{name} asked"], [f"{name} asked", f"{name} abort"])
    assert "a abort" in log or "b abort" in log


@pytest.mark.parametrize(
    "fields",
    [
        {"is_probe": True},
        {"prefill_result": PrefillResult(disaggregated_params={})},
        {"encoder_result": {"handle": 1}},
    ],
)
@virtual
async def test_requests_that_are_not_hedged(fields: dict[str, Any]) -> None:
    """What only one engine can take, and a health check."""
    slow, fast = LosableEngine(delay_s=60), LosableEngine()
    engine = HedgedEngine(slow, fast, after_s=1)
    items = await collect(await adapter_of(engine).generate(counting_request(**fields)))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    assert fast.opened == 0


@virtual
async def test_a_stopped_request_is_not_hedged() -> None:
    """What counts is the time at which the second engine would be asked."""
    second = LosableEngine()
    engine = HedgedEngine(ScriptedEngine(5, token(1), stop()), second, after_s=2)
    served = await serve(engine, asked=counting_request(), signals=[(1, "stop_generating")])
    assert flat(served.items) == [1]
    assert second.opened == 0


@pytest.mark.rows("S4")
@virtual
async def test_a_timely_first_engine_is_not_hedged() -> None:
    """No second one is asked, and each pull of the consumer is one."""
    first, second = ScriptedEngine(1, HANDSHAKE, 1, token(1), 1, token(2), stop()), LosableEngine()
    spans = Spans()
    stream = await open_stream(first, second, 2.5, spans=spans)
    for pulls in range(1, 4):
        await anext(stream)
        await asyncio.sleep(5)
        assert first.pulls == pulls
    await collect(stream)
    assert (first.closed, second.opened, winners(spans)) == (1, 0, [])


@pytest.mark.rows("S4")
@virtual
async def test_the_second_engine_is_pulled_up_to_its_first_token() -> None:
    """Its chunks follow in order, those before its token too; beyond that none is pulled ahead."""
    first = ScriptedEngine(3.5, HANDSHAKE, 3.5, token(1), stop())
    second = ScriptedEngine(1, HANDSHAKE, 1, token(7), 1, token(8), stop())
    stream = await open_stream(first, second, 4)
    items = [await anext(stream), await anext(stream)]
    assert (now(), second.pulls) == (6.0, 2)
    await asyncio.sleep(10)
    items += [await anext(stream), await anext(stream)]
    assert tokens_of(items) == [[], [], [7], [8]]
    assert second.pulls == 3
    await collect(stream)
    assert (first.closed, second.closed) == (1, 1)


@virtual
async def test_the_second_engine_wins_while_nobody_pulls() -> None:
    """The first is aborted when it has lost, and its later chunks are not seen."""
    first = ScriptedEngine(1, HANDSHAKE, 1, HANDSHAKE, 1, token(1), stop())
    second = ScriptedEngine(1, token(7), stop())
    stream = await open_stream(first, second, 1.5)
    items = [await anext(stream), await anext(stream)]
    await asyncio.sleep(10)
    assert first.aborts == [2.5]
    assert tokens_of(items + await collect(stream)) == [[], [], [7], []]
    assert (first.closed, first.pulls, second.closed) == (1, 2, 1)


@pytest.mark.parametrize("loser", ["first", "second"])
@virtual
async def test_a_slow_clean_up_of_the_loser_delays_nothing(loser: str) -> None:
    """The winner's chunks come when they are made; the close of the stream waits for both."""
    slow = ScriptedEngine(math.inf, closing=[60])
    fast = ScriptedEngine(2 if loser == "second" else 1, token(1), 1, token(2), stop())
    engines = (slow, fast) if loser == "first" else (fast, slow)
    stream = await open_stream(*engines, 1)
    items = [await anext(stream), await anext(stream), await anext(stream)]
    assert (tokens_of(items), now()) == ([[1], [2], []], 3.0)
    await stream.aclose()
    assert (slow.closed, now(), tasks()) == (1, 62.0, 1)


@pytest.mark.rows("E6")
@virtual
async def test_waiting_chunks_are_copies() -> None:
    """An engine that uses a chunk again does not change one that was not handed out yet."""

    class Reusing(LosableEngine):
        async def generate(self, request: Any, context: Any) -> AsyncGenerator[LLMEngineOutput]:
            chunk = LLMEngineOutput([], log_probs=[])
            yield chunk
            chunk.token_ids.append(7)
            (chunk.log_probs or []).append(-1.0)
            yield chunk
            yield stop()

    items = await collect(await open_stream(LosableEngine(delay_s=60), Reusing(), 1))
    assert tokens_of(items) == [[], [7], []]
    assert chunk_of(items[0]).log_probs == []


@pytest.mark.parametrize(
    ("first", "second", "tokens", "end", "winner"),
    [
        pytest.param((3, {"finish_reason": "error: boom"}), (5, token(7), stop()), [[7], NONE], None,
                     "second", id="first-says-error-in-a-mapping"),
        pytest.param((3, worded("error: boom")), (5, token(7), stop()), [[7], NONE], None,
                     "second", id="first-says-error-as-text"),
        pytest.param((worded(""), 6, token(6)), (1, token(7), stop()), [NONE, [7], NONE], None,
                     "second", id="no-reason-as-text"),
        pytest.param((3, GONE), (2, token(7), ValueError()), [[7]], InvalidArgument, "second",
                     id="both-fail-one-after-its-token"),
        pytest.param((5, token(7), stop()), (1, GONE), [[7], NONE], None, "first",
                     id="second-fails"),
        pytest.param((HANDSHAKE, 3, GONE), (1, ValueError()), [NONE], Disconnected, "none",
                     id="both-fail"),
        pytest.param((5, token(7), GONE), (math.inf,), [[7]], Disconnected, "first",
                     id="winner-fails"),
        pytest.param((5, LLMEngineOutput(text="a"), 9, stop()), (4, HANDSHAKE, 3, token(7)),
                     [NONE, NONE], None, "first", id="text-answers"),
        pytest.param((5, asyncio.CancelledError()), (6, token(7), stop()), [[7], NONE], None, "second",
                     id="first-is-cancelled-inside"),
    ],
)  # fmt: skip
@pytest.mark.rows("S6", "E3")
@virtual
async def test_failures(
    first: Sequence[Step],
    second: Sequence[Step],
    tokens: list[list[int]],
    end: type[Exception] | None,
    winner: str,
) -> None:
    """The engine that is left continues; where none is, the stream ends as the first one did."""
    spans = Spans()
    engines = ScriptedEngine(*first), ScriptedEngine(*second)
    items = await collect(await open_stream(*engines, 2, spans=spans))
    if end is not None:
        assert isinstance(items.pop().error, end)
    assert tokens_of(items) == tokens
    assert winners(spans) == [winner]
    assert [engine.closed for engine in engines] == [1, 1]


@pytest.mark.rows("E3")
@virtual
async def test_a_failing_answer_does_not_affect_the_others() -> None:
    """Of several answers, one that begins with its error is an answer as any."""
    error = LLMEngineOutput(finish_reason=FinishReason.error("boom"), index=0)
    second = LLMEngineOutput(token_ids=[7], index=1)
    end = LLMEngineOutput(finish_reason=FinishReason.STOP, index=1)
    engine = HedgedEngine(ScriptedEngine(1, error, 1, second, end), LosableEngine(), after_s=5)
    asked = counting_request(sampling_options=SamplingOptions(n=2))
    served = await serve(engine, asked=asked)
    assert [item.error for item in served.items] == [None] * 3
    assert tokens_of(served.items) == [[], [7], []]


@virtual
async def test_a_second_engine_that_fails_at_set_up() -> None:
    """A set-up that fails is a failure as any other, and so is a result that is no stream."""

    class Useless(ScriptedEngine):
        def generate(self, request: Any, context: Any) -> Any:
            return 7

    for second in (ScriptedEngine(setup=[1, LookupError()]), Useless()):
        first = ScriptedEngine(5, token(1), stop())
        assert flat((await answer(first, second, 1)).items) == [1]


@virtual
async def test_the_consumers_own_time_does_not_count() -> None:
    """Neither before its first pull, nor between two pulls."""
    second = ScriptedEngine(token(7), stop())
    stream = await open_stream(ScriptedEngine(1, HANDSHAKE, math.inf), second, 3)
    await asyncio.sleep(100)
    await anext(stream)
    await asyncio.sleep(100)
    assert second.calls == 0
    before = now()
    assert flat([await anext(stream)]) == [7]
    assert now() == before + 2
    await stream.aclose()


@pytest.mark.rows("P9")
@virtual
async def test_the_other_engines_spans_nest() -> None:
    """Those that it opens in its set-up and in its stream are children of the request's span."""
    spans = Spans()

    class Traced(LosableEngine):
        def generate(self, request: Any, context: Any) -> Any:
            with spans.tracer.start_as_current_span("set-up"):
                return super().generate(request, context)

    def step(context: RequestContext) -> None:
        spans.tracer.start_span("step").end()

    traced = Traced(ScriptedEngine(step, token(1), step, token(2), stop()))
    engines = [
        FailoverEngine(traced),
        FailoverEngine(LosableEngine(lives=0), traced),
        HedgedEngine(traced, LosableEngine(), after_s=60),
        HedgedEngine(LosableEngine(delay_s=60), traced, after_s=1),
    ]
    for engine in engines:
        await collect(await adapter_of(engine, spans=spans).generate(counting_request()))
    requests = [span for span in spans.finished if span.name == "engine.generate"]
    for span in requests:
        children = [one.name for one in spans.finished if one.parent == span.get_span_context()]
        assert sorted(children) == ["set-up", "step", "step"]
    assert len(requests) == 4


_variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


@pytest.mark.parametrize("first_s", [1.0, 60.0])
@virtual
async def test_each_engine_stays_in_one_task(first_s: float) -> None:
    """Scopes of a task, and context variables, may be open across the chunks."""
    found: list[str] = []

    async def scoped(wait_s: float) -> AsyncGenerator[LLMEngineOutput]:
        undo = _variable.set("inside")
        try:
            async with asyncio.timeout(600):
                await asyncio.sleep(wait_s)
                yield token(1)
                found.append(_variable.get())
                yield stop()
        finally:
            _variable.reset(undo)

    first, second = (FunctionEngine(partial(scoped, wait_s)) for wait_s in (first_s, 5.0))
    async for _ in await open_stream(first, second, 2):
        assert _variable.get() == "outside"
    assert found == ["inside"]


@virtual
async def test_an_observable_is_a_stream_too() -> None:
    """An engine may stream in any of the ways that an adapter takes."""

    class Pushing(ScriptedEngine):
        def generate(self, request: Any, context: Any) -> Any:
            return reactivex.of(token(7), stop())

    assert flat((await answer(LosableEngine(delay_s=60), Pushing(), 1)).items) == [7]


@virtual
async def test_queued_s_of_the_winner_is_reported() -> None:
    """The time of the winner, or of the engine at work, counts for the request."""

    def queue(context: RequestContext) -> None:
        context.queued_s = 0.5 if context.id.endswith("hedge") else 30

    second = ScriptedEngine(queue, token(1), stop())
    hedged = await answer(ScriptedEngine(queue, math.inf), second, 1)
    alone = await serve(FailoverEngine(second), asked=counting_request())
    assert (hedged.context.queued_s, alone.context.queued_s) == (0.5, 30)


@virtual
async def test_without_budget_there_is_no_hedge() -> None:
    """The first one is waited for; requests fill the budget again."""
    fast, budget = LosableEngine(), RetryBudget(ratio=0.5, burst=1)
    engine = HedgedEngine(LosableEngine(delay_s=60), fast, after_s=1, budget=budget)
    asked: list[int] = []
    for _ in range(5):
        assert flat((await serve(engine, asked=counting_request())).items) == ALL
        asked.append(fast.opened)
    assert asked == [1, 1, 2, 2, 3]


class Defiant(ScriptedEngine):
    """Answers its cancellation with tokens."""

    async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            yield LLMEngineOutput([1, 2])


@pytest.mark.parametrize(
    ("first", "after_s", "counted", "wasted"),
    [
        (LosableEngine(delay_s=60), 100, {("input",): 3, ("output",): 6}, {}),
        (LosableEngine(delay_s=60), 1, {("input",): 6, ("output",): 6}, {("input",): 3}),
        (Defiant(), 1, None, {("input",): 3, ("output",): 2}),
        (ScriptedEngine(1.5, OVERLONG), 1, None, {("input",): 3, ("output",): 2}),
    ],
)
@virtual
async def test_tokens_of_the_loser_are_counted_as_wasted(
    first: LLMEngine, after_s: float, counted: object, wasted: dict[Any, int]
) -> None:
    """The prompt counts once more, as wasted too; so do tokens that a loser makes in spite of all."""
    meters = Meters()
    engine = HedgedEngine(first, LosableEngine(), after_s=after_s)
    adapter = EngineAdapter(engine, meter_provider=meters.provider)
    assert flat(await collect(await adapter.generate(counting_request()))) == ALL
    tokens = meters.counts("rx_backend.tokens", "gen_ai.token.type")
    assert counted is None or tokens == counted
    assert meters.counts("rx_backend.tokens.wasted", "gen_ai.token.type") == wasted


@pytest.mark.rows("S7")
@virtual
async def test_losing_the_last_reference_in_a_race() -> None:
    """It is a drop of both, also while the second one is being pulled."""
    first = ScriptedEngine(1, HANDSHAKE, 1, HANDSHAKE, 1, HANDSHAKE)
    second = ScriptedEngine(60, token(1))
    owner = [await open_stream(first, second, 1.5)]
    for _ in range(2):
        await anext(owner[0])
    assert tasks() == 3
    owner.clear()
    await asyncio.sleep(1)
    assert (first.closed, second.closed, tasks()) == (1, 1, 1)


@pytest.mark.rows("S7")
@virtual
async def test_a_race_that_is_over_leaves_no_timer() -> None:
    """A timer would hold the request and its context for as long as the first engine may take."""
    stream = await open_stream(ScriptedEngine(1, token(1), stop()), LosableEngine(), after_s=1000)
    context = weakref.ref(stream.context)
    await collect(stream)
    del stream
    await settle()
    assert now() < 1000
    assert context() is None


# Any race, by a model. The first engine's things happen at whole seconds, the second's a third of
# a second later, the second starts at half, and the drop comes at 0.7: no two at the same time.


Script = Sequence[tuple[int, str]]


AFTER = 0.5


THIRD = 1 / 3 - AFTER


def fail(_: RequestContext) -> None:
    raise Disconnected("gone")


ENDS: dict[str, Step] = {"T": stop(), "!": FAILED, "#": fail, "?": math.inf, "|": 0}


class Player(ScriptedEngine):
    """Plays a script: how many seconds until what."""

    def __init__(self, script: Script, last: str, offset_s: float, first_id: int) -> None:
        self.offset_s = offset_s
        self.events = [
            (wait_s, what, token(first_id + place) if what == "t" else ENDS.get(what, HANDSHAKE))
            for place, (wait_s, what) in enumerate([*script, (1, last)])
        ]
        super().__init__(offset_s, *(s for wait_s, _, step in self.events for s in (wait_s, step)))

    def plan(self, begun: float) -> list[tuple[float, str, Step]]:
        """When what comes; the last is the end."""
        found: list[tuple[float, str, Step]] = []
        time = begun + self.offset_s
        for wait_s, what, step in self.events:
            time += wait_s
            found.append((time, what, step))
        return found


def expected(
    first: Player, second: Player, after: float, drop: float
) -> tuple[list[list[int]], bool, int, int]:
    """Return the output before *drop*, whether the second began, and how often each is aborted."""

    def answer(plan: list[tuple[float, str, Step]]) -> tuple[float, float]:
        """When it answers, and when it is out without an answer."""
        time, what, _ = next(entry for entry in plan if entry[1] != "h")
        if what in {"t", "T"}:
            return time, math.inf
        return math.inf, math.inf if what == "?" else time

    ours, theirs = first.plan(0), second.plan(after)
    (first_at, first_out), (second_at, second_out) = answer(ours), answer(theirs)
    if min(first_at, first_out) < after:
        given, begins, aborts = ours, False, (0, 0)
    elif second_at < first_at:
        given = [entry for entry in ours if entry[0] < min(second_at, first_out)]
        given += [(max(time, second_at), what, chunk) for time, what, chunk in theirs]
        begins, aborts = True, (int(first_out > second_at and second_at < drop), 0)
    else:
        # Where the first fails, and the second does too, that is known when both are out.
        out = max(first_out, second_out) if first_at == math.inf else -math.inf
        given = [(t if what == "h" else max(t, out), what, chunk) for t, what, chunk in ours]
        begins, aborts = True, (0, int(first_at < second_out and first_at < drop))
    chunks = [chunk for time, _, chunk in given if time < drop]
    items = [chunk.token_ids for chunk in chunks if isinstance(chunk, LLMEngineOutput)]
    return items, begins and after < drop, *aborts


scripts = st.lists(st.tuples(st.integers(1, 4), st.sampled_from("hht")), max_size=3)


ends = st.sampled_from("TTT!#|?")


@pytest.mark.rows("S1", "S7", "A2")
@given(
    ours=scripts,
    our_end=ends,
    theirs=scripts,
    their_end=ends,
    after_s=st.integers(0, 6),
    drop_s=st.integers(0, 20) | st.just(1000),
    by_cancel=st.booleans(),
)
def test_any_race(  # noqa: PLR0917
    ours: Script,
    our_end: str,
    theirs: Script,
    their_end: str,
    after_s: int,
    drop_s: int,
    by_cancel: bool,
) -> None:
    """Chunks, aborts and closings are the model's, wherever the stream is dropped."""
    first, second = Player(ours, our_end, 0.0, 10), Player(theirs, their_end, THIRD + AFTER, 20)
    items: list[Item] = []

    async def run() -> None:
        stream = await open_stream(first, second, after_s + AFTER)
        task = asyncio.create_task(drive(stream, items))
        await asyncio.sleep(drop_s + 0.7)
        if by_cancel:
            task.cancel()
        else:
            stream.close()
        await asyncio.wait([task])
        await stream.aclose()
        await asyncio.sleep(0)
        assert tasks() == 1

    run_virtual(run())
    chunks, begins, first_aborts, second_aborts = expected(
        first, second, after_s + AFTER, drop_s + 0.7
    )
    assert tokens_of([item for item in items if item.data is not None]) == chunks
    assert (first.calls, first.closed) == (1, 1)
    assert second.calls == second.closed == begins
    assert (len(first.aborts), len(second.aborts)) == (first_aborts, second_aborts)


# Any history of both combinators, nested in either way.


async def drive(stream: Stream, items: list[Item]) -> None:
    async for item in stream:
        items.append(item)  # noqa: PERF401 - those before a drop too


def check_aborts(engine: LosableEngine, stop_at: float | None, mode: str) -> None:
    """Check that an engine is aborted at a stop while it is at work, or for losing a race."""
    times = [at for _, at in engine.aborts]
    token_at = engine.first_token_at
    if stop_at is not None and engine.opened_at < stop_at <= engine.closed_at:
        # In decode mode not before its own first token.
        begins = engine.opened_at if mode == "agg" else token_at
        assert times == ([] if begins is None else [max(begins, stop_at)])
    elif times:
        # The loser had no token yet, so in decode mode it is not aborted at all.
        assert (times, token_at, mode) == ([engine.closed_at], None, "agg")
    if stop_at is None and mode == "decode":
        assert not any(context.is_stopped for context in engine.contexts)


COMBINED: dict[str, Callable[[list[LosableEngine]], LLMEngine]] = {
    "failover": lambda e: FailoverEngine(e[0], e[2]),
    "hedged": lambda e: HedgedEngine(e[0], e[1], after_s=2.25),
    "failover of hedged": lambda e: FailoverEngine(
        HedgedEngine(e[0], e[1], after_s=2.25), e[2]
    ),
    "hedged failover": lambda e: HedgedEngine(FailoverEngine(e[0], e[2]), e[1], after_s=2.25),
    "hedged twice": lambda e: HedgedEngine(
        HedgedEngine(e[0], e[1], after_s=2.25), e[2], after_s=4.5
    ),
}  # fmt: skip


@pytest.mark.rows("S1", "S2", "S7", "A1", "A2", "A3", "A4", "A5", "P7")
@examples(200)
@given(
    lives=st.lists(st.none() | st.integers(0, 4), min_size=3, max_size=3),
    delays=st.lists(st.sampled_from([0.0, 1.0, 7.0]), min_size=3, max_size=3),
    combined=st.sampled_from([*COMBINED]),
    simulated=st.booleans(),
    mode=st.sampled_from(["agg", "decode"]),
    stop_at=st.none() | st.integers(0, 12),
    drop_at=st.none() | st.integers(0, 14),
)
@example([1, None, None], [0, 0, 0], "failover", False, "agg", 2, None)
def test_any_sequence_of_events(  # noqa: PLR0917
    lives: list[int | None],
    delays: list[float],
    combined: str,
    simulated: bool,
    mode: str,
    stop_at: int | None,
    drop_at: int | None,
) -> None:
    """Tokens in order, one end, one span, all closed, and each engine aborted as the rows say."""
    spans, items = Spans(), list[Item]()

    def engine() -> LLMEngine:
        return SimulatedEngine(step_ms=1000) if simulated else SampleEngine(token_interval_ms=1000)

    engines = [
        LosableEngine(engine(), count, delay_s=delay)
        for count, delay in zip(lives, delays, strict=True)
    ]
    context = RequestContext("r1")
    whole: Any = COMBINED[combined](engines)

    async def run() -> None:
        adapter = EngineAdapter(whole, mode, tracer=spans.tracer)
        stream = await adapter.generate(counting_request(), context)
        task = asyncio.create_task(drive(stream, items))
        loop = asyncio.get_running_loop()
        if stop_at is not None:
            loop.call_later(stop_at + 0.4, context.stop_generating)
        if drop_at is not None:
            loop.call_later(drop_at + 0.6, stream.close)
        await asyncio.wait([task])
        await stream.aclose()
        task.result()
        await asyncio.sleep(100)
        assert tasks() == 1
        for one in engines:
            await one.engine.cleanup()

    run_virtual(run())
    ends = [item for item in items if item.data is None or chunk_of(item).finish_reason]
    assert len(ends) <= 1
    assert not ends or items[-1] is ends[0]
    assert ends or drop_at is not None
    chunks = [item for item in items if item.data is not None]
    tokens = flat(chunks)
    assert tokens == list(range(3, 3 + len(tokens)))
    if ends and ends[0].data is not None:
        assert chunk_of(ends[0]).completion_usage == usage(3, len(tokens))
    spans.one()
    for one in engines:
        assert one.opened == one.closed
        check_aborts(one, None if stop_at is None else stop_at + 0.4, mode)


@pytest.mark.parametrize("combined", COMBINED.values(), ids=COMBINED)
@virtual
async def test_the_engines_keep_the_contract(combined: Callable[[Any], LLMEngine]) -> None:
    """What is made of engines that keep it keeps it too."""

    def make() -> LLMEngine:
        return combined([SampleEngine(token_interval_ms=10) for _ in range(3)])

    (await check_engine(make)).raise_if_failed()
