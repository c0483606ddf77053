"""What every asynchronous operator that is exported promises, checked for each in the same way."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, ParamSpec

import pytest
import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

import operators
from operators import Pipeline, fuse
from operators._core.failures import SourceCancelled
from operators.authoring import AnyOperator, Operator
from rx_backend.testing import run_virtual
from tests.operators._help import (
    LONG_S,
    Engine,
    Life,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    fused,
    fused_waiting,
    handshake,
    same,
    terminal,
    token,
    virtual,
    watch,
)
from tests.operators.test_contract import INPUTS, MADE, Source, nothing

P = ParamSpec("P")


async def itself(item: Any) -> Any:
    await asyncio.sleep(0.25)
    return item


async def has_tokens(item: Any) -> bool:
    await asyncio.sleep(0.25)
    return bool(item.token_ids)


# How each operator is made; a new one belongs here. Their times are long beside the second that
# lies between two items here.
MADE_ASYNC: dict[str, Callable[[], Operator[Any, Any]]] = {
    # With one waiting there is nothing to merge; merging is another way to give the same tokens.
    "coalesce": lambda: operators.coalesce(max_chunks=1),
    "deadlines": lambda: operators.deadlines(
        first_token_s=1e9, idle_s=1e9, total_s=1e9, on_expiry=nothing
    ),
    # What it lets go on after a drop is no business of a contract that tells of what is released.
    "drain_until_first_token": lambda: operators.drain_until_first_token(
        nothing, drains=operators.Drains(limit=0)
    ),
    "enforce_cancellation": lambda: operators.enforce_cancellation(
        1e9, terminal, stop=reactivex.never(), kill=reactivex.never()
    ),
    "filter_async": lambda: operators.filter_async(has_tokens),
    "heartbeat": lambda: operators.heartbeat(1e9, "beat"),
    "map_async": lambda: operators.map_async(itself),
    "tap_async": lambda: operators.tap_async(itself),
}

ALL = {**MADE, **MADE_ASYNC}

EVERY_OPERATOR = pytest.mark.parametrize("name", MADE_ASYNC)

EVERY_END = pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="completed"),
        pytest.param({"error": LookupError("gone")}, id="failed"),
        pytest.param({"take": 1}, id="dropped-after-1"),
        pytest.param({"take": 2}, id="dropped-after-2"),
    ],
)


def pushed(
    items: Sequence[Any],
    *operators: AnyOperator,
    error: Exception | None = None,
    ends: bool = True,
    take: int | None = None,
) -> Seen:
    """As ``reactivex`` operators, the source being pushed from outside, an item a second."""

    async def run() -> Seen:
        subject: Subject[Any] = Subject()
        seen, subscription = watch(subject.pipe(*operators), take=take)
        for item in items:
            subject.on_next(item)
            await asyncio.sleep(1.0)
        if error is not None:
            subject.on_error(error)
        elif ends:
            subject.on_completed()
        await asyncio.sleep(LONG_S)
        subscription.dispose()
        await asyncio.sleep(LONG_S)
        return seen

    return run_virtual(run())


LIVES: tuple[Life, ...] = (pushed, fused, fused_waiting)


def settled(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time, until what operators do on their own has come to its end."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        await test(*args, **kwargs)
        await asyncio.sleep(LONG_S)

    return virtual(run)


def test_every_operator_is_here() -> None:
    """Whatever is written with ``@operator`` or ``@callbacks(shared=True)`` and exported is in one table."""
    written = {
        name for name in operators.__all__ if hasattr(getattr(operators, name), "__wrapped__")
    }
    assert written == {*MADE, *MADE_ASYNC}


@EVERY_OPERATOR
def test_it_is_an_operator(name: str) -> None:
    """It is a value with a name that a pipeline takes, and any ``pipe``."""
    made = MADE_ASYNC[name]()
    assert isinstance(made, Operator)
    assert Pipeline([made]).operators == (made,)
    assert isinstance(reactivex.never().pipe(made), Observable)
    assert repr(made).startswith(f"{name}(")


@EVERY_OPERATOR
def test_it_keeps_the_documentation_of_its_body(name: str) -> None:
    """Name, docstring and arguments are those of the decorated function; its source is left out."""
    function = getattr(operators, name)
    assert function.__name__ == name
    assert function.__doc__
    assert "source" not in inspect.signature(function).parameters


@EVERY_OPERATOR
@EVERY_END
def test_every_way_to_run_it_gives_the_same(name: str, how: dict[str, Any]) -> None:
    """Pushed, and fused with a source that waits and with one that doesn't."""
    for items in INPUTS.values():
        first, *others = [life(items, MADE_ASYNC[name](), **how) for life in LIVES]
        for other in others:
            assert other == first


@EVERY_OPERATOR
@EVERY_END
def test_neighbours_change_nothing(name: str, how: dict[str, Any]) -> None:
    """Between operators of ours, stock ones and asynchronous ones it gives what it gives alone."""
    stock: AnyOperator = ops.map(lambda item: item)
    waits = operators.map_async(itself)
    for items in INPUTS.values():
        alone = fused(items, MADE_ASYNC[name](), **how)
        for ahead, behind in ((same(), same()), (stock, stock), (waits, waits), (same(), stock)):
            assert fused(items, ahead, MADE_ASYNC[name](), behind, **how) == alone


@EVERY_OPERATOR
def test_it_needs_an_event_loop_in_a_pipe(name: str) -> None:
    """Subscribed to where none runs, it says so as an error."""
    seen, _ = watch(reactivex.of(1).pipe(MADE_ASYNC[name]()))
    assert "running event loop" in seen.end


@pytest.mark.rows("S7")
@EVERY_OPERATOR
@pytest.mark.parametrize("ending", ["complete", "fail", "dispose", "dispose-inside"])
@settled
async def test_it_disposes_its_source_once(name: str, ending: str) -> None:
    """At the end and at a drop; what the source says after that is not heard."""
    source = Source()
    subscriptions: list[abc.DisposableBase] = []
    seen = Seen()

    def on_next(item: Any) -> None:
        seen.items.append(item)
        if ending == "dispose-inside":
            subscriptions[0].dispose()

    stream = source.pipe(MADE_ASYNC[name]())
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
    before = Seen([*seen.items], seen.end)
    for _ in range(2):
        subscriptions[0].dispose()
    observer.on_next(token(3))
    observer.on_error(ValueError())
    await asyncio.sleep(LONG_S)
    assert source.disposed == 1
    assert seen == before


@EVERY_OPERATOR
@settled
async def test_two_streams_share_nothing(name: str) -> None:
    """Two streams of one operator, item by item in turns, give what one of them gives alone."""
    made = MADE_ASYNC[name]()
    items = [handshake(), token(1), token(2), terminal()]
    alone = await collect(fuse(Engine(items, every_s=1.0)(), [made]))
    both = await asyncio.gather(
        *(collect(fuse(Engine(items, every_s=1.0)(), [made])) for _ in range(2))
    )
    assert both == [alone, alone]


@EVERY_OPERATOR
@EVERY_END
@settled
async def test_a_failure_behind_it_closes_the_source(name: str, how: dict[str, Any]) -> None:
    """An operator behind that fails ends the stream there, and the engine is closed."""

    def refuse(item: Any) -> Any:
        raise ValueError("behind")

    engine = Engine([token(1), token(2), terminal()], every_s=1.0)
    broken = operators.annotate_errors(refuse, repr)
    seen = await collect(fuse(engine(), [MADE_ASYNC[name](), broken]))
    assert seen == Seen([], "ValueError('behind')")
    assert engine.closed == 1


@pytest.mark.rows("S4")
@EVERY_OPERATOR
@settled
async def test_one_pull_for_one_chunk(name: str) -> None:
    """A consumer that comes back at once finds nothing pulled ahead."""
    engine = Engine([token(n) for n in range(1, 9)], ends=False)
    stream = fuse(engine(), [MADE_ASYNC[name]()])
    assert engine.pulls == 0
    for number in range(1, 5):
        await anext(stream)
        assert engine.pulls == number
    await stream.aclose()
    assert engine.closed == 1


@pytest.mark.rows("S6")
@pytest.mark.parametrize("name", sorted({*ALL} - {"annotate_errors"}))
@pytest.mark.parametrize("signal", [asyncio.CancelledError, GeneratorExit])
@settled
async def test_an_engine_that_cancels_itself_has_failed(
    name: str, signal: type[BaseException]
) -> None:
    """Nobody cancelled the consumer, so it is a failure like any other, and a cause is kept."""
    engine = Engine([token(1)], error=signal())
    seen = await collect(fuse(engine(), [same(), ALL[name](), same()]))
    assert isinstance(seen.error, SourceCancelled)
    assert type(seen.error.__cause__) is signal
    assert str(seen.error) == f"the source raised {signal.__name__}"
    assert engine.closed == 1


@pytest.mark.rows("S7")
@EVERY_OPERATOR
@pytest.mark.parametrize("drop", [by_close, by_aclose, by_losing_it])
@pytest.mark.parametrize("after", [0, 1])
@settled
async def test_a_drop_releases_the_engine(name: str, drop: Any, after: int) -> None:
    """Before the first pull and between two pulls."""
    engine = Engine([token(1), token(2), terminal()], every_s=1.0)
    owner = [fuse(engine(), [same(), MADE_ASYNC[name](), same()])]
    for _ in range(after):
        await anext(owner[0])
    await drop(owner)
    await asyncio.sleep(LONG_S)
    assert engine.closed == (1 if after else 0)
    if owner:
        with pytest.raises(StopAsyncIteration):
            await anext(owner[0])


@pytest.mark.rows("S7")
@EVERY_OPERATOR
@pytest.mark.parametrize("at_s", [0.5, 1.1, 1.5])
@pytest.mark.parametrize("how", ["cancel", "close"])
@settled
async def test_a_drop_in_a_pull_releases_the_engine(name: str, at_s: float, how: str) -> None:
    """While the engine is waited for, and while the operator itself waits."""
    engine = Engine([handshake(), handshake(), token(1), terminal()], every_s=1.0)
    stream = fuse(engine(), [MADE_ASYNC[name]()])

    async def consume() -> None:
        async for _ in stream:
            pass

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(at_s)
    if how == "cancel":
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
    else:
        stream.close()
        await consumer
    await asyncio.sleep(LONG_S)
    assert engine.closed == 1


class TestContext:
    """An engine lives in one context, whatever stands behind it (row P9)."""

    NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("number")

    async def engine(self, outcome: list[str]) -> AsyncIterator[Any]:
        """Sets a variable, and takes it back when its slow clean-up is through."""
        token_of_number = self.NUMBER.set(7)
        try:
            for chunk in (token(1), token(2), terminal()):
                await asyncio.sleep(1.0)
                yield chunk
        finally:
            await asyncio.sleep(1.0)
            self.NUMBER.reset(token_of_number)
            outcome.append("reset")

    @pytest.mark.rows("P9")
    @pytest.mark.parametrize(
        "name", [*MADE_ASYNC, "at once", "detached", "until_terminal", "validate_contract"]
    )
    @pytest.mark.parametrize("take", [None, 1])
    @settled
    async def test_the_engine_keeps_its_context(self, name: str, take: int | None) -> None:
        """What it sets in a step, it finds and takes back in the next, and in its clean-up."""
        made: dict[str, AnyOperator] = {
            "at once": ops.map(lambda item: item),
            "detached": ops.merge(reactivex.empty()),
        }
        stage = made.get(name) or ALL[name]()
        outcome: list[str] = []
        context = contextvars.copy_context()
        stream = fuse(self.engine(outcome), [same(), stage, same()], own_context=context)
        await collect(stream, take=take)
        await asyncio.sleep(LONG_S)
        assert outcome == ["reset"]
