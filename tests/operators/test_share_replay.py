"""Sharing as an operator: what goes in, where it stands, and the laws of ``replay`` and ``ref_count``."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.scheduler import TimeoutScheduler
from reactivex.subject import Subject

from operators import (
    NotAnOperator,
    Pipeline,
    SharedStream,
    SourceClosed,
    fuse,
    limit_tokens,
    share_replay,
)
from rx_backend import standard_pipeline
from rx_backend.testing import run_virtual
from tests.operators._help import LONG_S, Engine, Seen, busy, now, settle, watch

# What it takes.


class Countdown:
    """An asynchronous iterable, and no iterator."""

    def __aiter__(self) -> AsyncIterator[int]:
        return Engine([3, 2, 1])()


class Countup:
    """What ``aioreactive`` would make."""

    async def subscribe_async(self, send: Any, throw: Any, close: Any) -> Any:
        for number in (3, 2, 1):
            await send(number)
        await close()
        return self

    async def dispose_async(self) -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Engine([3, 2, 1]), id="async-generator"),
        pytest.param(Countdown, id="async-iterable"),
        pytest.param(lambda: fuse(Engine([3, 2, 1])(), []), id="stream"),
        pytest.param(lambda: reactivex.of(3, 2, 1), id="observable"),
        pytest.param(Countup, id="async-observable"),
        pytest.param(lambda: share_replay()(Engine([3, 2, 1])()), id="shared"),
    ],
)
async def test_any_form_of_a_stream_can_be_shared(make: Callable[[], Any]) -> None:
    """Any form of a stream; each reader gets all of it, whenever it comes."""
    shared = share_replay()(make())
    assert isinstance(shared, SharedStream)
    both = await asyncio.gather(shared.pipe(ops.to_list()), shared.pipe(ops.to_list()))
    assert both == [[3, 2, 1], [3, 2, 1]]
    assert [item async for item in shared.read(after=1)] == [2, 1]


@pytest.mark.parametrize("wrong", [5, None, [3, 2, 1]])
def test_a_non_stream_is_rejected(wrong: Any) -> None:
    """What is no stream, by name."""
    with pytest.raises(TypeError, match="share_replay: expected an Observable or an async"):
        share_replay()(wrong)


async def test_a_pipeline_rejects_it() -> None:
    """A stream of a pipeline has one consumer; the error says where sharing belongs."""
    match = r"\[1\] can't be part of a pipeline: .* apply it to what generate\(\) returns"
    share: Any = share_replay()
    with pytest.raises(NotAnOperator, match=match):
        Pipeline([limit_tokens(3), share])
    with pytest.raises(NotAnOperator, match=match):
        fuse(Engine()(), [limit_tokens(3), share])
    with pytest.raises(NotAnOperator, match="can't be part of a pipeline"):
        standard_pipeline.with_operators(share)


# As an Observable.


async def test_a_hot_source_is_received_from_the_first_subscription() -> None:
    """What is pushed right after it has subscribed is not lost; what was pushed before is."""
    subject: Subject[str] = Subject()
    shared = subject.pipe(share_replay())
    assert not subject.observers
    subject.on_next("lost")
    first, subscription = watch(shared)
    subject.on_next("a")
    await settle()
    second, other = watch(shared)
    subject.on_next("b")
    subject.on_completed()
    await settle()
    assert first == second == Seen(["a", "b"], "completed")
    subscription.dispose()
    other.dispose()


@pytest.mark.rows("O6")
async def test_timers_stay_on_the_loop() -> None:
    """Those of the source, and of later operators; also where it was made before the loop."""
    ticks = reactivex.interval(1.0).pipe(ops.take(3), share_replay())
    late: list[tuple[float, int]] = []
    delayed = ticks.pipe(ops.delay(10.0))
    delayed.subscribe(lambda item: late.append((now(), item)))
    assert await ticks.pipe(ops.to_list()) == [0, 1, 2]
    assert now() == 3.0
    await asyncio.sleep(LONG_S)
    assert late == [(11.0, 0), (12.0, 1), (13.0, 2)]
    given = ticks.pipe(ops.map(str), ops.publish())
    assert type(given) is not Observable
    piped = ticks.pipe(ops.delay(1.0))
    done: list[str] = []
    scheduler = TimeoutScheduler.singleton()
    piped.subscribe(on_completed=lambda: done.append("late"), scheduler=scheduler).dispose()
    await settle()
    assert not done


async def test_a_subscriber_in_the_same_iteration_keeps_the_source() -> None:
    """A subscriber that replaces the last one finds the source open."""
    engine = Engine(range(3), every_s=1.0)
    shared = share_replay()(engine())
    _, first = watch(shared)
    second, _ = watch(shared)
    first.dispose()
    await asyncio.sleep(10.0)
    assert second == Seen([0, 1, 2], "completed")


async def test_subscribing_from_another_thread() -> None:
    """Once it has a loop, any thread may subscribe and dispose; items come on the loop."""
    shared = share_replay()(Engine(range(9), every_s=1.0)())
    first, _ = watch(shared, take=3)
    await settle()
    items: list[tuple[int, int]] = []
    subscriptions: list[abc.DisposableBase] = []

    def subscribe() -> None:
        subscriptions.append(
            shared.subscribe(lambda item: items.append((item, threading.get_ident())))
        )
        shared.subscribe(lambda _: pytest.fail("it was disposed of at once")).dispose()

    await asyncio.to_thread(subscribe)
    await asyncio.sleep(2.5)
    await asyncio.to_thread(subscriptions[0].dispose)
    await asyncio.sleep(2.0)
    assert items == [(0, threading.get_ident()), (1, threading.get_ident())]
    assert first.items == [0, 1, 2]


def test_subscribing_without_a_loop() -> None:
    """Subscribing says what is missing."""
    seen, _ = watch(share_replay()(Engine([1])()))
    assert seen.end == repr(
        RuntimeError("a shared stream needs a running event loop to be subscribed to")
    )


async def test_a_subscription_keeps_the_stream() -> None:
    """A pipe without references continues, as any in Rx."""
    engine = Engine("abc", every_s=1.0)
    seen, _ = watch(share_replay()(engine()).pipe(ops.map(str.upper)))
    gc.collect()
    await asyncio.sleep(10.0)
    assert (seen, engine.closed) == (Seen(["A", "B", "C"], "completed"), 1)


# Laws.

Ends = Literal["completes", "fails", "hangs"]
Event = tuple[float, str, object]


@dataclass
class Timed(Observable[int]):
    """
    A source that pushes items at their times after each subscription.

    Attributes:
        lives: When it was subscribed to, and disposed of.
    """

    delays_s: list[float]
    ends: Ends
    lives: list[list[float]] = field(default_factory=list[list[float]])

    def __post_init__(self) -> None:
        super().__init__()

    def _subscribe_core(
        self, observer: abc.ObserverBase[int], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        loop = asyncio.get_running_loop()
        life = [now()]
        self.lives.append(life)
        timers: list[asyncio.TimerHandle] = []
        due_s = 0.0
        for number, delay_s in enumerate(self.delays_s):
            due_s += delay_s
            timers.append(loop.call_later(due_s, observer.on_next, number))
        if self.ends == "completes":
            timers.append(loop.call_later(due_s + 1.0, observer.on_completed))
        elif self.ends == "fails":
            timers.append(loop.call_later(due_s + 1.0, observer.on_error, LookupError("gone")))

        def dispose() -> None:
            life.append(now())
            for timer in timers:
                timer.cancel()

        return Disposable(dispose)


@dataclass(frozen=True)
class Stay:
    """When a subscriber comes, and for how long it stays."""

    comes_s: float
    stays_s: float | None


async def played(
    source: Timed, share: Callable[[Timed], Observable[int]], stays: list[Stay]
) -> list[list[Event]]:
    """Return what each subscriber got, and when."""
    shared = share(source)

    async def subscribe(stay: Stay) -> list[Event]:
        events: list[Event] = []
        await asyncio.sleep(stay.comes_s)
        subscription = shared.subscribe(
            lambda item: events.append((now(), "next", item)),
            lambda error: events.append((now(), "error", repr(error))),
            lambda: events.append((now(), "completed", None)),
        )
        await asyncio.sleep(LONG_S if stay.stays_s is None else stay.stays_s)
        subscription.dispose()
        return events

    seen = await asyncio.gather(*map(subscribe, stays))
    await asyncio.sleep(LONG_S)
    assert busy() == []
    return seen


@given(
    delays_s=st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0]), max_size=8),
    ends=st.sampled_from(["completes", "fails", "hangs"]),
    buffer=st.none() | st.integers(1, 4),
    stays=st.lists(
        st.builds(
            Stay,
            # Nobody comes or goes in the instant of an item.
            st.sampled_from([0.25, 0.25, 1.35, 3.45, 6.55]),
            st.sampled_from([None, 1.02, 3.02, 5.02]),
        ),
        min_size=1,
        max_size=4,
    ),
)
@example(delays_s=[1.0], ends="completes", buffer=None, stays=[Stay(0.25, 1.02), Stay(1.35, None)])
def test_it_behaves_as_replay_with_ref_count(
    *, delays_s: list[float], ends: Ends, buffer: int | None, stays: list[Stay]
) -> None:
    """Subscribers get the same at the same times, up to when all have left or the source has ended."""
    theirs, ours = Timed(delays_s, ends), Timed(delays_s, ends)
    replayed = ops.replay(buffer_size=buffer)
    expected = run_virtual(
        played(theirs, lambda source: source.pipe(replayed, ops.ref_count()), stays)
    )
    actual = run_virtual(played(ours, lambda source: source.pipe(share_replay(buffer)), stays))
    first_life = theirs.lives[0]
    assert ours.lives == [first_life]
    over_s = first_life[1] if len(first_life) > 1 else float("inf")
    end: tuple[str, object] = (
        "error",
        repr(SourceClosed("the shared stream was closed before its source ended")),
    )
    for stay, events in zip(stays, expected, strict=True):
        if stay.comes_s < over_s and events and events[-1][1] != "next":
            end = events[-1][1:]
            break
    for stay, theirs_seen, ours_seen in zip(stays, expected, actual, strict=True):
        if stay.comes_s < over_s:
            assert ours_seen == theirs_seen
        else:
            # They subscribe to the source once more; here its first life is replayed.
            first_s = first_life[0]
            times = [first_s + sum(delays_s[: place + 1]) for place in range(len(delays_s))]
            held = [place for place, time_s in enumerate(times) if time_s < over_s]
            held = held[-buffer:] if buffer else held
            assert ours_seen == [
                *((stay.comes_s, "next", place) for place in held),
                (stay.comes_s, *end),
            ]
