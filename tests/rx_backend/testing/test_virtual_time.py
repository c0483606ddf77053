"""The virtual loop: time jumps, order is kept, threads and sockets still work."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator
from contextvars import ContextVar

import pytest

from rx_backend.testing import Deadlock, VirtualTimeLoop, run_virtual
from tests.leaks import LeakWatch


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def test_clock_starts_at_zero_and_jumps_to_the_timers() -> None:
    """Sleeping costs virtual time alone, to the exact instant of the timer."""

    async def main() -> list[float]:
        times = [now()]
        for delay_s in (0.0, 0.25, 86_400.0 * 365):
            await asyncio.sleep(delay_s)
            times.append(now())
        return times

    assert run_virtual(main()) == [0.0, 0.0, 0.25, 86_400.0 * 365 + 0.25]


def test_timers_of_one_instant_fire_in_the_order_they_were_set() -> None:
    """Equal times keep their order, however many there are, so that a run is repeatable."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        fired: list[int] = []
        for number in range(100):
            loop.call_at(1.0, fired.append, number)
        await asyncio.sleep(1.0)
        return fired

    assert run_virtual(main()) == list(range(100))


def test_a_timer_in_the_past_fires_without_turning_the_clock_back() -> None:
    """A timer that is overdue when it is set fires at once."""

    async def main() -> float:
        await asyncio.sleep(5.0)
        fired = asyncio.Event()
        asyncio.get_running_loop().call_at(1.0, fired.set)
        await fired.wait()
        return now()

    assert run_virtual(main()) == 5.0


def test_a_timer_that_is_due_fires_between_turns_of_a_busy_program() -> None:
    """Time stands while callbacks are ready, and a timer without delay still gets its turn."""

    async def main() -> tuple[int, float]:
        fired = asyncio.Event()
        asyncio.get_running_loop().call_later(0, fired.set)
        turns = 0
        while not fired.is_set():
            turns += 1
            await asyncio.sleep(0)
        return turns, now()

    turns, time_s = run_virtual(main())
    assert turns <= 2
    assert time_s == 0.0


def test_a_program_that_never_idles_still_runs_into_its_timeout() -> None:
    """A busy wait uses up virtual time in the end, so a timeout can't be held off for ever."""

    async def main() -> None:
        async with asyncio.timeout(2.0):
            while True:  # noqa: ASYNC110  # the busy wait is the point
                await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        run_virtual(main())


def test_a_busy_moment_costs_no_time() -> None:
    """Thousands of turns at one instant are one instant."""

    async def main() -> float:
        for _ in range(5_000):
            await asyncio.sleep(0)
        return now()

    assert run_virtual(main()) == 0.0


def test_cancelled_timers_neither_fire_nor_pile_up() -> None:
    """Timeouts that are not reached leave the clock alone and are swept away."""

    async def main() -> tuple[float, int]:
        loop = virtual_loop()
        for _ in range(1_000):
            async with asyncio.timeout(60.0):
                await asyncio.sleep(0.001)
        return now(), len(vars(loop)["_timers"])

    time_s, left = run_virtual(main())
    assert time_s == pytest.approx(1.0)
    assert left < 300


def test_a_cancelled_timer_is_passed_over() -> None:
    """A timer cancelled at its own instant, or before it is the next, does not fire."""

    async def main() -> tuple[list[str], float]:
        loop = asyncio.get_running_loop()
        fired: list[str] = []
        loop.call_at(1.0, lambda: same_instant.cancel())  # noqa: PLW0108  # not there yet
        same_instant = loop.call_at(1.0, fired.append, "cancelled at its instant")
        loop.call_at(0.5, fired.append, "cancelled when next").cancel()
        loop.call_at(1.0, fired.append, "kept")
        await asyncio.sleep(1.0)
        return fired, now()

    assert run_virtual(main()) == (["kept"], 1.0)


def test_a_thread_of_the_executor_answers_before_time_moves() -> None:
    """Work in a thread takes no virtual time, also when timers are set."""

    async def main() -> tuple[int, float]:
        timer = asyncio.create_task(asyncio.sleep(3600.0))
        answer = await asyncio.to_thread(lambda: 42)
        time_s = now()
        timer.cancel()
        return answer, time_s

    assert run_virtual(main()) == (42, 0.0)


def test_a_thread_that_is_slower_than_a_timer_does_not_hold_it_up() -> None:
    """While a thread works the clock runs in real time, so a timeout over it is reached."""
    release = threading.Event()

    async def main() -> float:
        work = asyncio.get_running_loop().run_in_executor(None, release.wait)
        await asyncio.sleep(0.01)
        time_s = now()
        release.set()
        assert await work
        return time_s

    assert run_virtual(main()) == 0.01


def test_another_thread_wakes_an_idle_loop() -> None:
    """A loop with nothing to do waits for a thread that is alive; its call is a turn like any."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(answer.set_result, "from a thread")
        )
        thread.start()
        try:
            return await answer
        finally:
            thread.join()

    assert run_virtual(main()) == "from a thread"


def test_time_is_held_for_what_the_loop_cannot_see() -> None:
    """Inside ``hold_time`` a thread of one's own answers before a far timer fires."""

    async def main() -> float:
        loop = virtual_loop()
        answer: asyncio.Future[None] = loop.create_future()
        timer = asyncio.create_task(asyncio.sleep(3600.0))
        await asyncio.sleep(0)
        with loop.hold_time():
            thread = threading.Thread(
                target=loop.call_soon_threadsafe, args=(answer.set_result, None)
            )
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


async def wait_in_vain() -> AsyncGenerator[int]:
    await asyncio.Event().wait()
    yield 1


async def consume() -> None:
    async for _ in wait_in_vain():
        pass


def test_waiting_for_ever_fails_at_once_and_says_where(leaks: LeakWatch) -> None:
    """A program that nothing can wake raises, with each task and the calls it waits in."""
    leaks.allow("(task|async generator) not")

    async def main() -> None:
        await asyncio.sleep(3.0)
        await asyncio.gather(asyncio.create_task(consume(), name="consumer"))

    with pytest.raises(Deadlock, match=r"after 3 s of virtual time") as caught:
        run_virtual(main())
    assert caught.value.time_s == 3.0
    consumer = next(task for task in caught.value.tasks if task.name == "consumer")
    assert [call.split(" ")[0] for call in consumer.where][:3] == [
        "consume",
        "wait_in_vain",
        "Event.wait",
    ]
    assert "test_virtual_time.py:" in consumer.where[0]
    assert "consumer: consume (" in str(caught.value)


def test_a_sleep_without_end_is_no_timer(leaks: LeakWatch) -> None:
    """Sleeping for infinity can't be ended by time: that is waiting for ever."""
    leaks.allow("task not done")
    with pytest.raises(Deadlock):
        run_virtual(asyncio.sleep(math.inf))


def test_threads_that_do_nothing_put_a_deadlock_off_only_shortly(leaks: LeakWatch) -> None:
    """Live threads are given a short real time, then the deadlock is reported all the same."""
    leaks.allow("task not done")
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(Deadlock):
            run_virtual(asyncio.Event().wait(), thread_grace_s=0.001)
    finally:
        release.set()
        thread.join()


def test_deadlock_comes_out_of_run_until_complete() -> None:
    """The error leaves the loop itself, whoever runs it; the loop can still be closed."""
    loop = VirtualTimeLoop()
    task = loop.create_task(asyncio.Event().wait(), name="stuck")
    with pytest.raises(Deadlock, match="stuck"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    assert loop.is_closed()


def test_what_is_left_is_cancelled_and_closed(leaks: LeakWatch) -> None:
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


def test_a_closed_loop_takes_no_timers() -> None:
    """Setting a timer on a closed loop is an error, as on any loop."""
    loop = VirtualTimeLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1.0, print)


def test_run_virtual_refuses_to_run_inside_a_loop() -> None:
    """As with ``asyncio.run``, there must be no loop running in the thread."""

    async def inner() -> None: ...

    async def main() -> None:
        with pytest.raises(RuntimeError, match="while an event loop runs"):
            run_virtual(inner())

    run_virtual(main())


def test_run_virtual_runs_beside_a_loop_in_a_thread_of_its_own() -> None:
    """Where a loop runs already, as in a notebook: virtual time, its result, and the caller's context."""
    request = ContextVar("request", default="")

    async def inner() -> tuple[float, str, bool]:
        await asyncio.sleep(3600.0)
        return now(), request.get(), threading.current_thread() is threading.main_thread()

    async def main() -> tuple[tuple[float, str, bool], float]:
        request.set("of the caller")
        return run_virtual(inner(), in_thread=True), now()

    assert run_virtual(main()) == ((3600.0, "of the caller", False), 0.0)


def test_what_fails_in_the_thread_is_raised_to_the_caller(leaks: LeakWatch) -> None:
    """An exception, and a deadlock, come out as without a thread."""
    leaks.allow("task not done")

    async def fails() -> None:
        raise LookupError("no such tenant")

    with pytest.raises(LookupError, match="no such tenant"):
        run_virtual(fails(), in_thread=True)
    with pytest.raises(Deadlock):
        run_virtual(asyncio.Event().wait(), thread_grace_s=0.001, in_thread=True)


def test_what_fails_is_raised_alone() -> None:
    """Its traceback shows no other exception that was being handled."""

    async def fails() -> None:
        raise LookupError("no such tenant")

    with pytest.raises(LookupError) as raised:
        run_virtual(fails())
    assert raised.value.__context__ is None


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_an_interrupt_cancels_what_runs_in_the_thread() -> None:
    """Ctrl-C, or a notebook's stop button, ends a run that would go on for ever."""
    ended: list[str] = []

    async def endless() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:  # noqa: ASYNC110  # it never ends by itself
                await asyncio.sleep(1.0)
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
