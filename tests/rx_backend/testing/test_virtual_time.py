"""The virtual loop: time jumps, order is kept, threads, sockets and Rx timers still work."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex import Observable, abc, compose
from reactivex import operators as ops

from rx_backend.testing import Deadlock, LoopScheduler, VirtualTimeLoop, assert_marbles, run_virtual
from tests.engines import virtual
from tests.leaks import LeakWatch


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


@virtual
async def test_the_clock_jumps_from_timer_to_timer() -> None:
    """From 0.0 on; a timer that is overdue fires at once, and one that was cancelled meanwhile never."""
    loop = asyncio.get_running_loop()
    fired: list[str] = []
    times = [now()]
    for delay_s in (0.0, 0.25, 86_400.0 * 30):
        await asyncio.sleep(delay_s)
        times.append(now())
    assert times == [0.0, 0.0, 0.25, 86_400.0 * 30 + 0.25]
    instant = now() + 1.0
    loop.call_at(instant, lambda: cancelled.cancel())  # noqa: PLW0108  # not there yet
    cancelled = loop.call_at(instant, fired.append, "cancelled at its instant")
    loop.call_at(1.0, fired.append, "overdue")
    await asyncio.sleep(1.0)
    assert (fired, now()) == (["overdue"], instant)


# A year has no nanoseconds as a float.
STARTS_S = st.sampled_from([0.0, 1.0, 86_400.0 * 30, 86_400.0 * 365])
STEPS_S = st.integers(0, 40).map(lambda n: n * 1e-7) | st.integers(0, 99).map(lambda n: n / 10)


@given(st.lists(st.tuples(st.tuples(STARTS_S, STEPS_S).map(sum), st.booleans()), max_size=30))
@example([(0.2, False), (0.9, False)])  # 0.2 + (0.9 - 0.2) is less than 0.9
def test_timers_fire_at_their_instants(timers: list[tuple[float, bool]]) -> None:
    """In order, equal ones in the order in which they were set, and cancelled ones not at all."""

    async def main() -> list[tuple[int, float]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[int, float]] = []
        for number, (instant, is_cancelled) in enumerate(timers):
            timer = loop.call_at(instant, lambda number=number: fired.append((number, now())))
            if is_cancelled:
                timer.cancel()
        await asyncio.sleep(86_400.0 * 366)
        return fired

    kept = [(number, at) for number, (at, is_cancelled) in enumerate(timers) if not is_cancelled]
    fired = run_virtual(main())
    wanted = sorted(kept, key=lambda one: one[1])
    assert [number for number, _ in fired] == [number for number, _ in wanted]
    for (_, at), (_, instant) in zip(fired, wanted, strict=True):
        assert at == (instant if instant < 86_400 * 90 else pytest.approx(instant, abs=1e-8))


def test_a_busy_moment_costs_no_time_and_a_busy_wait_does() -> None:
    """
    Thousands of iterations are one instant, in which due timers fire.

    Without end they meet a timeout.
    """

    async def main() -> None:
        fired = asyncio.Event()
        asyncio.get_running_loop().call_later(0, fired.set)
        for turn in range(5_000):
            await asyncio.sleep(0)
            assert fired.is_set() or turn < 2
        assert now() == 0.0
        async with asyncio.timeout(2.0):
            while True:  # noqa: ASYNC110  # the busy wait is the point
                await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        run_virtual(main())


def test_cancelled_timers_do_not_move_the_clock() -> None:
    """Timeouts that are not reached leave it alone."""

    async def main() -> float:
        for _ in range(1_000):
            async with asyncio.timeout(60.0):
                await asyncio.sleep(0.001)
        return now()

    assert run_virtual(main()) == pytest.approx(1.0)


@virtual
async def test_a_thread_of_the_executor_answers_before_time_moves() -> None:
    """Its work takes no virtual time; where it is slower than a timer, the clock runs in real time."""
    release = threading.Event()
    timer = asyncio.create_task(asyncio.sleep(3600.0))
    assert await asyncio.to_thread(lambda: 42) == 42
    assert now() == 0.0
    timer.cancel()
    work = asyncio.get_running_loop().run_in_executor(None, release.wait)
    await asyncio.sleep(0.01)
    assert now() == 0.01
    release.set()
    assert await work


@pytest.mark.parametrize("holds", [False, True])
def test_another_thread_wakes_the_loop(holds: bool) -> None:
    """An idle one waits for threads that are alive; with timers set, inside ``real_time``."""

    async def main() -> float:
        loop = virtual_loop()
        answer: asyncio.Future[None] = loop.create_future()
        timer = asyncio.create_task(asyncio.sleep(3600.0 if holds else 0.0))
        await asyncio.sleep(0)
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(answer.set_result, None))
        with loop.real_time() if holds else nullcontext():
            thread.start()
            await answer
        thread.join()
        timer.cancel()
        return now()

    assert run_virtual(main()) == 0.0


def test_sockets_work() -> None:
    """A socket is read as on any loop, with and without timers beside it."""

    async def main() -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            loop.call_soon(there.send, b"ping")
            first = await loop.sock_recv(here, 4)
            loop.call_later(1.0, there.send, b"pong")
            return first, await loop.sock_recv(here, 4)

    assert run_virtual(main()) == (b"ping", b"pong")


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio has no signal handlers there")
def test_signals_are_seen() -> None:
    """A signal handler runs, also when the loop is idle with timers set."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, seen.set)
        try:
            loop.call_later(1.0, os.kill, os.getpid(), signal.SIGUSR1)
            await seen.wait()
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)
        return now()

    assert run_virtual(main()) == 1.0


async def wait_forever() -> AsyncGenerator[int]:
    await asyncio.Event().wait()
    yield 1


async def consume() -> None:
    async for _ in wait_forever():
        pass


def test_waiting_forever_fails_at_once_and_says_where(leaks: LeakWatch) -> None:
    """A program that nothing can wake raises, with each task and the calls it waits in."""
    leaks.allow("(task|async generator) not")

    async def main() -> None:
        await asyncio.sleep(3.0)
        await asyncio.gather(asyncio.create_task(consume(), name="consumer"))

    with pytest.raises(Deadlock, match=r"after 3 s of virtual time") as caught:
        run_virtual(main())
    assert caught.value.time_s == 3.0
    (consumer,) = (task for task in caught.value.tasks if task.startswith("consumer: "))
    place = r"\([^()]*test_virtual_time\.py:\d+\)"
    calls = rf"consumer: consume {place} > wait_forever {place} > Event\.wait \(.*"
    assert re.fullmatch(calls, consumer)
    assert consumer in str(caught.value)


def test_an_endless_wait_is_always_a_deadlock(leaks: LeakWatch) -> None:
    """A sleep for infinity is no timer, and live threads put it off only for a short real time."""
    leaks.allow("task not done")
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        for wait in (asyncio.sleep(math.inf), asyncio.Event().wait()):
            with pytest.raises(Deadlock):
                run_virtual(wait, thread_grace_s=0.001)
    finally:
        release.set()
        thread.join()


def test_a_wait_of_ages_is_one_jump() -> None:
    """Some write such a number for ever; what comes after it comes at once, too."""

    async def main() -> float:
        await asyncio.sleep(sys.maxsize)
        await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) > sys.maxsize


def test_deadlock_comes_out_of_run_until_complete() -> None:
    """The error leaves the loop itself; the loop can be used and closed, and takes no timers then."""
    loop = VirtualTimeLoop()
    task = loop.create_task(asyncio.Event().wait(), name="stuck")
    with pytest.raises(Deadlock, match="stuck"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1.0, print)


def test_remaining_tasks_are_cancelled_and_closed(leaks: LeakWatch) -> None:
    """After the run, tasks are cancelled and async generators closed, as by ``asyncio.run``."""
    leaks.allow("(task|async generator) not")
    ended: list[str] = []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def sleeper() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            ended.append("task")

    async def main() -> None:
        generator = numbers()
        kept.append(generator)
        await anext(generator)
        kept.append(asyncio.create_task(sleeper()))
        await asyncio.sleep(0)

    kept: list[object] = []
    run_virtual(main())
    assert ended == ["task", "generator"]


def test_debug_mode_works() -> None:
    """Asyncio's debug mode changes nothing, and still finds a call from the wrong thread."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        await asyncio.sleep(1.0)
        try:
            await asyncio.to_thread(loop.call_later, 1.0, print)
        except RuntimeError as error:
            return str(error)
        return ""

    assert "thread" in run_virtual(main())


@virtual
async def test_run_virtual_refuses_to_run_inside_a_loop() -> None:
    """As with ``asyncio.run``, there must be no loop running in the thread."""

    async def inner() -> None: ...

    with pytest.raises(RuntimeError, match="while an event loop runs"):
        run_virtual(inner())


def test_run_virtual_can_run_in_its_own_thread() -> None:
    """Where a loop runs already, as in a notebook: virtual time, its result, and the caller's context."""
    request = ContextVar("request", default="")

    async def inner() -> tuple[float, str, bool]:
        await asyncio.sleep(3600.0)
        return now(), request.get(), threading.current_thread() is threading.main_thread()

    async def main() -> tuple[tuple[float, str, bool], float]:
        request.set("of the caller")
        return run_virtual(inner(), in_thread=True), now()

    assert run_virtual(main()) == ((3600.0, "of the caller", False), 0.0)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_failure_is_raised_to_the_caller(leaks: LeakWatch, in_thread: bool) -> None:
    """An exception alone, without another that was being handled; and a deadlock."""
    leaks.allow("task not done")

    async def fails() -> None:
        raise LookupError("no such tenant")

    with pytest.raises(LookupError, match="no such tenant") as raised:
        run_virtual(fails(), in_thread=in_thread)
    assert raised.value.__context__ is None
    with pytest.raises(Deadlock):
        run_virtual(asyncio.Event().wait(), thread_grace_s=0.001, in_thread=in_thread)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_an_interrupt_cancels_the_run_in_the_thread() -> None:
    """Ctrl-C, or a notebook's stop button, ends a run that would continue forever."""
    ended: list[str] = []

    async def endless() -> None:
        try:
            for second in count():
                await asyncio.sleep(1.0)
                # By then the main thread waits: before, a signal would not end its wait.
                if second == 2000:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        finally:
            ended.append("cancelled")

    # A process that was started in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_virtual(endless(), in_thread=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["cancelled"]


# Rx time operators.


@pytest.mark.parametrize(
    ("operator", "result"),
    [
        (ops.delay(3.0), "----1--3|"),
        (ops.debounce(2.0), "---1-(3|)"),
        (ops.timeout(2.0, reactivex.of("late")), "-1-('late'|)"),
        (ops.time_interval(), "-1--3|"),
        (ops.timestamp(), "-1--4|"),
    ],
)
def test_time_operators_follow_the_virtual_clock(operator: Any, result: str) -> None:
    """Timers and time stamps of Rx operators are those of the loop."""

    def bare(item: Any) -> object:
        if hasattr(item, "interval"):
            return item.interval.total_seconds()
        return item.timestamp.timestamp() if hasattr(item, "timestamp") else item

    values = {"1": 1.0, "3": 3.0, "4": 4.0}
    chain: Callable[[Observable[Any]], Observable[Any]] = compose(operator, ops.map(bare))
    assert_marbles(chain, source="-1--3|", result=result, values=values)


def test_a_disposed_timer_does_not_fire() -> None:
    """Disposing what was scheduled takes its timer back."""

    async def main() -> tuple[list[str], float]:
        loop = asyncio.get_running_loop()
        fired: list[str] = []

        def fire(scheduler: abc.SchedulerBase, state: object) -> None:
            fired.append("timer")

        timer = LoopScheduler(loop).schedule_relative(0.5, fire)
        timer.dispose()
        await asyncio.sleep(1.0)
        return fired, loop.time()

    assert run_virtual(main()) == ([], 1.0)


def test_without_a_loop_there_is_no_scheduler() -> None:
    """Outside a running loop the loop must be given."""
    with pytest.raises(RuntimeError):
        LoopScheduler()
