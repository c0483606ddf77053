"""What every operator that is exported promises, checked for each of them in the same way."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, ParamSpec

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.scheduler import ImmediateScheduler
from reactivex.testing import TestScheduler

import operators
from operators import Pipeline, TokenTimes, fuse
from operators._core.failures import SourceCancelled
from operators.authoring import AnyOperator, Operator
from rx_backend import LLMEngineOutput
from rx_backend.testing import Marbles, run_virtual
from tests.engines import virtual
from tests.examples import examples
from tests.operators._help import (
    LETTERS,
    LONG_S,
    Chunk,
    Engine,
    How,
    Seen,
    collect,
    fused,
    fused_waiting,
    handshake,
    observed,
    pulled,
    pushed,
    pushed_on_the_loop,
    pushed_slowly,
    same,
    spy,
    synchronous,
    terminal,
    token,
    watch,
)
from tests.tokenizer import byte_tokenizer

P = ParamSpec("P")


def nothing(*_: object) -> None:
    """Do nothing, as a callback."""


async def itself(item: Any) -> Any:
    await asyncio.sleep(0.25)
    return item


# How each operator is made; a new one belongs here. Clocks stand still, so that two runs of an
# operator give the same.
MADE: dict[str, Callable[[], Operator[Any, Any]]] = {
    "annotate_errors": lambda: operators.annotate_errors(lambda item: (item,), repr),
    "deferred_abort": lambda: operators.deferred_abort(nothing, stop=reactivex.never()),
    "detokenize": lambda: operators.detokenize(byte_tokenizer()),
    "first_token": lambda: operators.first_token(nothing),
    "itl_window": lambda: operators.itl_window(TokenTimes(lambda: 0.0), nothing),
    "limit_tokens": lambda: operators.limit_tokens(5),
    "on_outcome": lambda: operators.on_outcome(nothing),
    "record_span": lambda: operators.record_span(INVALID_SPAN),
    "slo": lambda: operators.slo(
        500, 50, windows=operators.SloWindows(clock=lambda: 0.0), key="model"
    ),
    "sliding_itl": lambda: operators.sliding_itl(count=2, clock=lambda: 0.0),
    "stop_on": lambda: operators.stop_on([7, [8, 9]]),
    "stop_on_text": lambda: operators.stop_on_text(["a", "bc"]),
    "tap": lambda: operators.tap(nothing),
    "trace_link": lambda: operators.trace_link("link", on_terminal=True),
    "until_terminal": operators.until_terminal,
    "usage": lambda: operators.usage(3, complex, on_end=nothing),
    "validate_chunks": lambda: operators.validate_chunks(Chunk, Chunk),
    "validate_contract": operators.validate_contract,
}

# Those that need an event loop. Their times are long beside the second between two items here.
MADE_ASYNC: dict[str, Callable[[], Operator[Any, Any]]] = {
    # With one waiting there is nothing to merge; merging is another way to give the same tokens.
    "coalesce": lambda: operators.coalesce(max_chunks=1),
    "deadlines": lambda: operators.deadlines(first_token_s=1e9, idle_s=1e9, total_s=1e9),
    # What it lets go on after a drop is no business of a contract that tells of what is released.
    "drain_until_first_token": lambda: operators.drain_until_first_token(
        nothing, drains=operators.Drains(limit=0)
    ),
    "enforce_cancellation": lambda: operators.enforce_cancellation(
        1e9, terminal, stop=reactivex.never(), kill=reactivex.never()
    ),
    "heartbeat": lambda: operators.heartbeat(1e9, "beat"),
    "map_async": lambda: operators.map_async(itself),
    "tap_async": lambda: operators.tap_async(itself),
}
ALL = {**MADE, **MADE_ASYNC}

EVERY_OPERATOR = pytest.mark.parametrize("name", ALL)
EVERY_SYNCHRONOUS = pytest.mark.parametrize("name", MADE)
EVERY_ASYNCHRONOUS = pytest.mark.parametrize("name", MADE_ASYNC)

INPUTS: dict[str, list[Any]] = {
    "nothing": [],
    "handshakes": [handshake(), handshake()],
    "tokens": [token(1), token(2), handshake(), token(3, 4)],
    "terminal-alone": [terminal()],
    "sound": [handshake(), token(1), token(2), terminal()],
    "terminal-with-tokens": [token(1), terminal(2, 3)],
    "after-the-terminal": [token(1), terminal(), token(2), terminal()],
    "malformed": [token(1), token(-1), token(2)],
    "beyond-the-limit": [token(1, 2, 3), token(4, 5, 6), token(1)],
    "stopped": [token(1), token(8), token(9), token(1)],
    "held-back": [token(8), token(1), token(8)],
}

EVERY_END = pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="completed"),
        pytest.param({"error": LookupError("gone")}, id="failed"),
        pytest.param({"ends": False}, id="open"),
        pytest.param({"take": 1}, id="dropped-after-1"),
        pytest.param({"take": 2}, id="dropped-after-2"),
    ],
)


def settled(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time, until what operators do on their own has come to its end."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        await test(*args, **kwargs)
        await asyncio.sleep(LONG_S)

    return virtual(run)


class Source(Observable[Any]):
    """
    An Observable that is driven by hand, and obeys nobody.

    Attributes:
        observers: Those that subscribed, in order.
        schedulers: The schedulers that they gave.
        disposed: How often they were disposed.
    """

    def __init__(self, items: Sequence[Any] = ()) -> None:
        super().__init__()
        self._items = items
        self.observers: list[abc.ObserverBase[Any]] = []
        self.schedulers: list[abc.SchedulerBase | None] = []
        self.disposed = 0

    def _subscribe_core(
        self, observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        self.observers.append(observer)
        self.schedulers.append(scheduler)
        for item in self._items:
            observer.on_next(item)
        return Disposable(self._dispose)

    def _dispose(self) -> None:
        self.disposed += 1


def test_every_exported_operator_is_tested_here() -> None:
    """Whatever is written with a decorator of ours and exported is in one of the tables."""
    written = {
        name for name in operators.__all__ if hasattr(getattr(operators, name), "__wrapped__")
    }
    assert written == set(ALL)


@EVERY_OPERATOR
def test_it_is_an_operator_with_name_and_repr(name: str) -> None:
    """It is a value that a pipeline takes, and any ``pipe``, and that shows how it was made."""
    made = ALL[name]()
    assert isinstance(made, Operator)
    assert Pipeline([made]).operators == (made,)
    assert isinstance(reactivex.never().pipe(made), Observable)
    assert made.name == name
    assert repr(made).startswith(f"{name}(")
    assert repr(made).endswith(")")
    function = getattr(operators, name)
    assert function.__name__ == name
    stands = "chunks;" if made.takes == "chunks" else ("anywhere", "between the two:")
    phase = (inspect.getdoc(function) or "").partition("\nPhase: ")[2].partition("\n")[0]
    assert phase.startswith(stands), f"Phase: expected {stands} and where it belongs, got {phase!r}"
    parameters = dict(inspect.signature(function.__wrapped__).parameters)
    parameters.pop("source", None)
    assert dict(inspect.signature(function).parameters) == parameters


@EVERY_SYNCHRONOUS
@pytest.mark.parametrize(
    "scheduler",
    [None, ImmediateScheduler(), TestScheduler()],
    ids=["none", "immediate", "virtual"],
)
def test_it_forwards_the_scheduler(name: str, scheduler: abc.SchedulerBase | None) -> None:
    """The scheduler that a subscription is made with reaches the source."""
    source = Source()
    source.pipe(MADE[name]()).subscribe(scheduler=scheduler)
    assert source.schedulers == [scheduler]


@EVERY_ASYNCHRONOUS
def test_it_needs_an_event_loop_in_a_pipe(name: str) -> None:
    """Subscribed to where none runs, it says so as an error."""
    seen, _ = watch(reactivex.of(1).pipe(MADE_ASYNC[name]()))
    assert "running event loop" in seen.end


@pytest.mark.rows("S7")
@EVERY_OPERATOR
@pytest.mark.parametrize("ending", ["complete", "fail", "dispose", "dispose-inside"])
@settled
async def test_it_disposes_of_its_source_once(name: str, ending: str) -> None:
    """It subscribes when subscribed to; after an end or a drop nothing of the source arrives."""
    source = Source()
    subscriptions: list[abc.DisposableBase] = []
    seen = Seen()

    def on_next(item: Any) -> None:
        seen.items.append(item)
        if ending == "dispose-inside" and subscriptions:
            subscriptions[0].dispose()

    stream = source.pipe(ALL[name]())
    assert source.observers == []
    subscriptions.append(stream.subscribe(on_next, seen.fail))
    (observer,) = source.observers
    observer.on_next(token(1))
    observer.on_next(token(2))
    await asyncio.sleep(LONG_S)
    assert source.disposed == (ending == "dispose-inside")
    if ending == "complete":
        observer.on_completed()
    elif ending == "fail":
        observer.on_error(LookupError())
    await asyncio.sleep(LONG_S)
    if ending == "dispose":
        subscriptions[0].dispose()
    before = Seen([*seen.items], seen.end)
    observer.on_next(token(3))
    observer.on_next(terminal())
    observer.on_error(ValueError())
    observer.on_completed()
    await asyncio.sleep(LONG_S)
    for _ in range(2):
        subscriptions[0].dispose()
    assert source.disposed == 1
    assert seen == before


@EVERY_OPERATOR
@EVERY_END
async def test_every_way_to_run_it_gives_the_same_result(name: str, how: How) -> None:
    """Pushed, synchronous where it may be, pulled, also between stock and asynchronous neighbours."""
    stock: AnyOperator = ops.map(lambda item: item)
    waits = operators.map_async(itself)
    make = ALL[name]
    for items in INPUTS.values():
        expected = await pulled(items, make(), **how)
        assert await pulled(items, make(), every_s=1.0, **how) == expected
        assert await pulled(items, stock, make(), waits, **how) == expected
        assert await pulled(items, waits, make(), stock, **how) == expected
        if name in MADE:
            assert pushed(items, make(), **how) == synchronous(items, make(), **how) == expected
        else:
            assert await pushed_slowly(items, make(), **how) == expected


@pytest.mark.rows("S8")
@EVERY_OPERATOR
@settled
async def test_streams_share_no_state(name: str) -> None:
    """Streams of one operator, at once and one after another, are as fresh as the first."""
    made = ALL[name]()

    async def one(items: list[Any], **how: Any) -> Seen:
        engine = Engine(copy.deepcopy(items), every_s=1.0)
        return await collect(fuse(engine(), [made]), **how)

    for items in INPUTS.values():
        first = await one(items)
        await one(items, take=1)
        await collect(fuse(Engine(error=LookupError())(), [made]))
        assert await asyncio.gather(one(items), one(items)) == [first, first]


@EVERY_SYNCHRONOUS
def test_it_emits_when_its_source_does(name: str) -> None:
    """No operator holds an item back or lets it out at another time; never stays never."""
    test = Marbles(LETTERS)
    result = test.record(test.cold("-h-a--b-U-c").pipe(MADE[name]()))
    assert {event.frame for event in result.events} <= {1, 3, 6, 8, 10}
    silent = Marbles()
    assert silent.record(silent.cold("-----").pipe(MADE[name]())).events == ()


@EVERY_OPERATOR
@settled
async def test_a_failure_after_it_closes_the_source(name: str) -> None:
    """A later operator that fails ends the stream there, and the engine is closed."""

    def refuse(item: Any) -> Any:
        raise ValueError("behind")

    engine = Engine([token(1), token(2), terminal()], every_s=1.0)
    broken = operators.annotate_errors(refuse, repr)
    seen = await collect(fuse(engine(), [ALL[name](), broken]))
    assert seen == Seen([], "ValueError('behind')")
    assert engine.closed == 1


ENDING: dict[str, tuple[AnyOperator, int]] = {
    "limit_tokens": (operators.limit_tokens(2), 2),
    "stop_on": (operators.stop_on([[2, 3]]), 3),
    "stop_on_text": (operators.stop_on_text("bc"), 3),
    "until_terminal": (operators.until_terminal(), 4),
}


@pytest.mark.rows("S2", "S4")
@pytest.mark.parametrize("name", ENDING)
@settled
async def test_an_operator_that_ends_the_stream_closes_the_engine(name: str) -> None:
    """It is not pulled again, and its ``finally`` has run when the iteration is over."""
    ending, pulls = ENDING[name]
    chunks = [LLMEngineOutput([n], text=" abc"[n]) for n in (1, 2, 3)]
    engine = Engine([*chunks, LLMEngineOutput.stop(), *chunks])
    seen = await collect(fuse(engine(), [ending]))
    assert (seen.end, engine.pulls, engine.closed) == ("completed", pulls, 1)
    assert seen.items[-1].finish_reason is not None


@pytest.mark.rows("S4", "S7")
@EVERY_OPERATOR
@settled
async def test_one_pull_of_the_consumer_is_one_pull_of_the_engine(name: str) -> None:
    """A consumer that comes back at once finds nothing pulled ahead; closing waits for the engine."""
    engine = Engine([token(n) for n in range(1, 9)], ends=False, closing_s=1.0)
    journal: list[str] = []
    stream = fuse(engine(), [spy(journal), ALL[name]()])
    assert engine.pulls == 0
    await anext(stream)
    begun = engine.pulls
    assert begun == (2 if name == "sliding_itl" else 1)
    for number in range(1, 4):
        await anext(stream)
        assert engine.pulls == begun + number
    stream.close()
    assert journal[-1] == "!"
    await stream.aclose()
    assert engine.closed == 1


@pytest.mark.rows("S6")
@EVERY_SYNCHRONOUS
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), BaseExceptionGroup("", [SystemExit()])])
async def test_an_interrupt_is_never_an_item(name: str, interrupt: BaseException) -> None:
    """What is no ``Exception`` comes out of the pull as it is."""
    engine = Engine(error=interrupt)
    with pytest.raises(type(interrupt)):
        await anext(fuse(engine(), [MADE[name]()]))
    assert engine.closed == 1


@pytest.mark.rows("S6")
@pytest.mark.parametrize("name", sorted({*ALL} - {"annotate_errors"}))
@pytest.mark.parametrize("signal", [asyncio.CancelledError, GeneratorExit])
@settled
async def test_an_engine_that_cancels_itself_fails(name: str, signal: type[BaseException]) -> None:
    """Nobody cancelled the consumer, so it is a failure like any other, and a cause is kept."""
    engine = Engine([token(1)], error=signal())
    seen = await collect(fuse(engine(), [same(), ALL[name](), same()]))
    assert isinstance(seen.error, SourceCancelled)
    assert type(seen.error.__cause__) is signal
    assert str(seen.error) == f"the source raised {signal.__name__}"
    assert engine.closed == 1


NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("number")


@pytest.mark.rows("P9")
@pytest.mark.parametrize(
    "name", [*MADE_ASYNC, "at once", "detached", "until_terminal", "validate_contract"]
)
@pytest.mark.parametrize("take", [None, 1])
@settled
async def test_the_engine_keeps_its_context_variables(name: str, take: int | None) -> None:
    """What it sets in a step, it finds and takes back in the next, and in its clean-up."""
    outcome: list[str] = []

    async def engine() -> AsyncIterator[Any]:
        token_of_number = NUMBER.set(7)
        try:
            for chunk in (token(1), token(2), terminal()):
                await asyncio.sleep(1.0)
                yield chunk
        finally:
            await asyncio.sleep(1.0)
            NUMBER.reset(token_of_number)
            outcome.append("reset")

    made: dict[str, AnyOperator] = {
        "at once": ops.map(lambda item: item),
        "detached": ops.merge(reactivex.empty()),
    }
    stage = made.get(name) or ALL[name]()
    context = contextvars.copy_context()
    stream = fuse(engine(), [same(), stage, same()], own_context=context)
    await collect(stream, take=take)
    await asyncio.sleep(LONG_S)
    assert outcome == ["reset"]


# Random pipelines of the operators as they are.

CHUNKS = st.one_of(
    st.builds(handshake),
    st.builds(token, st.integers(1, 9)),
    st.builds(token, st.integers(1, 9), st.integers(1, 9)),
    st.builds(terminal),
    st.builds(terminal, st.integers(1, 9)),
)
STREAMS = st.lists(CHUNKS, max_size=6)
ERRORS = st.sampled_from([None, LookupError("gone")])
ANY = st.one_of(
    st.lists(st.sampled_from(sorted(MADE)), max_size=6),
    st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=5),
    st.tuples(st.sampled_from(sorted(MADE_ASYNC))),
)


def made_of(names: Sequence[str]) -> list[AnyOperator]:
    return [ALL[name]() for name in names]


@pytest.mark.rows("S1", "S2", "S6", "E3")
@examples(200)
@given(names=ANY, chunks=STREAMS, error=ERRORS, take=st.none() | st.integers(1, 5))
def test_fused_operators_give_the_same_as_a_pipe(
    names: Sequence[str], chunks: list[Any], error: Exception | None, take: int | None
) -> None:
    """Pulled and pushed; and after ``until_terminal`` there is one terminal, the last."""
    is_synchronous = set(names) <= set(MADE)
    lives = (pushed, fused) if is_synchronous else (pushed_on_the_loop,)
    pulled = fused_waiting(copy.deepcopy(chunks), *made_of(names), error=error, take=take)
    for life in lives:
        assert life(copy.deepcopy(chunks), *made_of(names), error=error, take=take) == pulled
    if [*names[-1:]] == ["until_terminal"]:
        ends = [item for item in pulled.items if getattr(item, "finish_reason", None) is not None]
        assert ends == [item for item in pulled.items[-1:] if item in ends]


@pytest.mark.rows("S7")
@examples(150)
@given(
    names=ANY,
    chunks=STREAMS,
    error=ERRORS,
    at_s=st.floats(0.1, 8.0),
    how=st.sampled_from(["cancel", "close", "lose", "not at all"]),
)
def test_the_engine_is_closed_once(
    names: list[str], chunks: list[Any], error: Exception | None, at_s: float, how: str
) -> None:
    """
    However and whenever the stream ends, with any operators in it.

    And the end is reported once.
    """
    ended: list[str] = []

    async def run() -> Engine:
        engine = Engine(copy.deepcopy(chunks), error=error, every_s=1.0)
        stream = observed(engine(), made_of(names), on_end=lambda _dropped: ended.append("end"))
        if how == "lose":
            with suppress(Exception):
                await anext(stream)
            del stream
            await asyncio.sleep(LONG_S)
            return engine
        consumer = asyncio.create_task(collect(stream))
        await asyncio.sleep(at_s)
        if how == "cancel":
            consumer.cancel()
        elif how == "close":
            stream.close()
        await asyncio.wait([consumer])
        await asyncio.sleep(LONG_S)
        return engine

    engine = run_virtual(run())
    assert engine.closed == 1
    assert ended == ["end"]
