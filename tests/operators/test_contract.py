"""What every operator that is exported promises, checked for each of them in the same way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import reactivex
from opentelemetry.trace import INVALID_SPAN
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.scheduler import ImmediateScheduler
from reactivex.subject import Subject
from reactivex.testing import TestScheduler

import operators
from operators import Pipeline, TokenTimes, fuse
from operators.authoring import AnyOperator, Operator
from rx_backend.testing import Marbles
from tests.operators._help import (
    LETTERS,
    LIVES,
    Chunk,
    Engine,
    Life,
    Seen,
    fused,
    handshake,
    pushed,
    same,
    terminal,
    token,
    virtual,
    watch,
)


def nothing(*_: object) -> None:
    """A callback that does nothing."""


# How each operator is made; a new one belongs here. Clocks stand still, so that two runs of an
# operator give the same.
MADE: dict[str, Callable[[], Operator[Any, Any]]] = {
    "annotate_errors": lambda: operators.annotate_errors(lambda item: (item,), repr),
    "deferred_abort": lambda: operators.deferred_abort(nothing, stop=reactivex.never()),
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

EVERY_OPERATOR = pytest.mark.parametrize("name", MADE)

INPUTS: dict[str, list[Any]] = {
    "nothing": [],
    "handshakes": [handshake(), handshake()],
    "tokens": [token(1), token(2), handshake(), token(3, 4)],
    "terminal-alone": [terminal()],
    "sound": [handshake(), token(1), token(2), terminal()],
    "terminal-with-tokens": [token(1), terminal(2, 3)],
    "after-the-terminal": [token(1), terminal(), token(2), terminal()],
    "malformed": [token(1), token(-1), token(2)],
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


def test_every_operator_is_here() -> None:
    """Whatever is written with ``@operator`` or ``@callbacks(shared=True)`` and exported is in the table."""
    written = {
        name for name in operators.__all__ if hasattr(getattr(operators, name), "__wrapped__")
    }
    assert written >= set(MADE)


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


@EVERY_OPERATOR
def test_it_is_an_operator(name: str) -> None:
    """It is a value that a pipeline takes, and any ``pipe``."""
    made = MADE[name]()
    assert isinstance(made, Operator)
    assert Pipeline([made]).operators == (made,)
    assert isinstance(reactivex.never().pipe(made), Observable)


@EVERY_OPERATOR
def test_its_repr_shows_how_it_was_made(name: str) -> None:
    """The name is there, and every argument's value."""
    made = MADE[name]()
    assert made.name == name
    assert repr(made).startswith(f"{name}(")
    assert repr(made).endswith(")")


def test_a_repr_shows_arguments() -> None:
    """Arguments are shown as they were given, by place and by name."""
    assert repr(operators.trace_link("ours", on_terminal=True)) == (
        "trace_link('ours', on_terminal=True)"
    )
    assert repr(operators.until_terminal()) == "until_terminal()"


@EVERY_OPERATOR
def test_it_keeps_the_documentation_of_its_body(name: str) -> None:
    """Name, docstring and signature are those of the function that was decorated."""
    function = getattr(operators, name)
    assert function.__name__ == name
    assert function.__doc__
    assert inspect.signature(function) == inspect.signature(function.__wrapped__)


@EVERY_OPERATOR
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


@EVERY_OPERATOR
@pytest.mark.parametrize("ending", ["dispose", "complete", "fail", "dispose-inside"])
def test_it_disposes_its_source_once(name: str, ending: str) -> None:
    """At the end and at a drop, however often the subscription is disposed after that."""
    source = Source()
    subscription = Disposable()

    def on_next(item: Any) -> None:
        if ending == "dispose-inside":
            subscription.dispose()

    subscription = source.pipe(MADE[name]()).subscribe(on_next, nothing)
    assert source.disposed == 0
    (observer,) = source.observers
    for item in (token(1), token(2)):
        observer.on_next(item)
    if ending == "complete":
        observer.on_completed()
    elif ending == "fail":
        observer.on_error(LookupError())
    for _ in range(2):
        subscription.dispose()
    assert source.disposed == 1


@EVERY_OPERATOR
def test_it_subscribes_when_it_is_subscribed_to(name: str) -> None:
    """Not before, and once for each subscription."""
    source = Source()
    stream = source.pipe(MADE[name]())
    assert source.observers == []
    for count in (1, 2):
        stream.subscribe()
        assert len(source.observers) == count


@EVERY_OPERATOR
@pytest.mark.parametrize("ending", ["complete", "fail", "dispose"])
def test_it_ignores_what_comes_late(name: str, ending: str) -> None:
    """After the end, one way or another, nothing that the source still says comes out."""
    source = Source()
    seen, subscription = watch(source.pipe(MADE[name]()))
    (observer,) = source.observers
    observer.on_next(token(1))
    if ending == "complete":
        observer.on_completed()
    elif ending == "fail":
        observer.on_error(LookupError())
    else:
        subscription.dispose()
    before = Seen([*seen.items], seen.end)
    observer.on_next(token(2))
    observer.on_next(terminal())
    observer.on_error(ValueError())
    observer.on_completed()
    assert seen == before


@EVERY_OPERATOR
def test_it_bears_a_source_that_gives_all_at_once(name: str) -> None:
    """A source that has given everything before its subscription is made is like any other."""
    for items in INPUTS.values():
        seen, subscription = watch(Source(items).pipe(MADE[name]()))
        assert seen == pushed(items, MADE[name](), ends=False)
        subscription.dispose()


@EVERY_OPERATOR
@EVERY_END
def test_every_way_to_run_it_gives_the_same(name: str, how: dict[str, Any]) -> None:
    """Pushed, synchronous, fused with a source that waits and with one that doesn't."""
    for items in INPUTS.values():
        first, *others = [life(items, MADE[name](), **how) for life in LIVES]
        for other in others:
            assert other == first


@EVERY_OPERATOR
@EVERY_END
def test_neighbours_change_nothing(name: str, how: dict[str, Any]) -> None:
    """Fused with operators of ours and with stock ones on both sides it gives what it gives alone."""
    for items in INPUTS.values():
        alone = fused(items, MADE[name](), **how)
        stock: AnyOperator = ops.map(lambda item: item)
        for ahead, behind in ((same(), same()), (stock, stock), (same(), stock)):
            assert fused(items, ahead, MADE[name](), behind, **how) == alone


@EVERY_OPERATOR
def test_two_streams_share_nothing(name: str) -> None:
    """Two subscriptions of one operator, item by item in turns, give what one of them gives alone."""
    made = MADE[name]()
    for items in INPUTS.values():
        alone = pushed(items, made)
        sources = Subject[Any](), Subject[Any]()
        both = [watch(source.pipe(made))[0] for source in sources]
        for item in items:
            for source in sources:
                source.on_next(item)
        for source in sources:
            source.on_completed()
        assert both == [alone, alone]


@EVERY_OPERATOR
def test_it_can_be_used_again(life: Life, name: str) -> None:
    """A second stream of the same operator is as fresh as the first, whatever became of that."""
    made = MADE[name]()
    for items in INPUTS.values():
        first = life(items, made)
        life(items, made, error=LookupError())
        life(items, made, take=1)
        assert life(items, made) == first


@EVERY_OPERATOR
def test_it_emits_when_its_source_does(name: str) -> None:
    """No operator holds an item back or lets it out at another time; never stays never."""
    test = Marbles(LETTERS)
    result = test.record(test.cold("-h-a--b-U-c").pipe(MADE[name]()))
    assert {event.frame for event in result.events} <= {1, 3, 6, 8, 10}
    silent = Marbles()
    assert silent.record(silent.cold("-----").pipe(MADE[name]())).events == ()


@EVERY_OPERATOR
@EVERY_END
def test_a_failure_behind_it_closes_the_source(name: str, how: dict[str, Any]) -> None:
    """An operator behind that fails ends the stream there."""

    def refuse(item: Any) -> Any:
        raise ValueError("behind")

    broken = operators.annotate_errors(refuse, repr)
    seen = fused([token(1), token(2), terminal()], MADE[name](), broken, **how)
    assert seen == pushed([token(1), token(2), terminal()], MADE[name](), broken, **how)


@pytest.mark.rows("S4")
@EVERY_OPERATOR
@virtual
async def test_one_pull_for_one_chunk(name: str) -> None:
    """No operator pulls ahead; one that leaves chunks out pulls until one comes out."""
    engine = Engine([token(n) for n in range(1, 9)], ends=False)
    stream = fuse(engine(), [MADE[name]()])
    assert engine.pulls == 0
    await anext(stream)
    begun = engine.pulls
    assert begun == (2 if name == "sliding_itl" else 1)
    for number in range(1, 4):
        await anext(stream)
        assert engine.pulls == begun + number
    await stream.aclose()
    assert engine.closed == 1


@pytest.mark.rows("S6")
@EVERY_OPERATOR
@virtual
async def test_an_interrupt_is_never_an_item(name: str) -> None:
    """What is no ``Exception`` comes out of the pull as it is."""
    engine = Engine(error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        await anext(fuse(engine(), [MADE[name]()]))
    assert engine.closed == 1
