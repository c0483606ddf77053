"""The request context, interrupted at every bytecode: by a signal handler, or by another thread."""

from __future__ import annotations

import asyncio
import inspect
import selectors
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest

from rx_backend.context import RequestContext
from tests.rx_backend._engines import virtual

MODULES = {"rx_backend.context", "rx_backend.latched_signal"}
Interrupt = Callable[[], object]


@contextmanager
def interrupted(at: int, interrupt: Interrupt) -> Generator[Callable[[], bool]]:
    """
    Call *interrupt* once, before the context's code comes to its bytecode number *at*.

    Yields a function that tells whether it came so far.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_globals.get("__name__") not in MODULES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == at + 1:
                interrupt()
        return trace

    before = sys.gettrace()
    # Python 3.12 traces bytecodes only where some frame had asked for them before.
    here = inspect.currentframe()
    assert here is not None
    here.f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield lambda: count > at
    finally:
        sys.settrace(before)


def in_thread(interrupt: Interrupt) -> None:
    """Run *interrupt* in another thread, which must not have to wait for this one."""
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for the thread that it interrupted"


class Calls:
    """Who was called, and how often."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def listener(self, name: str) -> Callable[..., None]:
        """A listener of that name."""
        self.counts[name] = 0

        def called(*_: object) -> None:
            self.counts[name] += 1

        return called


def listen(context: RequestContext, calls: Calls) -> None:
    """Somebody begins to listen to each signal."""
    context.stopped().listen(calls.listener("late stop"))
    context.killed().subscribe(calls.listener("late kill"))
    context.first_token().subscribe(on_completed=calls.listener("late first token"))


def signal_all(context: RequestContext, _: Calls) -> None:
    """Somebody gives all signals."""
    context.stop_generating()
    context.kill()
    context.notify_first_token()


ACTIONS = [listen, signal_all]
INTERRUPTS = [
    RequestContext.stop_generating,
    RequestContext.kill,
    RequestContext.notify_first_token,
]


def in_handler(interrupt: Interrupt) -> None:
    """Run *interrupt* as a signal handler is: in this thread, in the middle of what it does."""
    interrupt()


PLACES: dict[str, Callable[[Interrupt], None]] = {"handler": in_handler, "thread": in_thread}


@pytest.mark.rows("C3", "C4")
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("interrupt", INTERRUPTS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("on_loop", [False, True], ids=["no-loop", "loop"])
@virtual
async def test_every_listener_is_called_once(
    action: Callable[[RequestContext, Calls], None],
    interrupt: Callable[[RequestContext], None],
    place: str,
    on_loop: bool,
) -> None:
    """Wherever a signal comes in between, each listener is called when all were given, once."""

    async def run(at: int) -> bool:
        context, calls = RequestContext("r1"), Calls()

        def scene() -> bool:
            context.bind(None, decode=True)
            context.stopped().subscribe(calls.listener("early stop"))
            context.killed().listen(calls.listener("early kill"))
            context.first_token().listen(calls.listener("early first token"))
            with interrupted(at, partial(PLACES[place], partial(interrupt, context))) as came:
                action(context, calls)
                has_come = came()
            signal_all(context, calls)
            return has_come

        has_come = scene() if on_loop else await asyncio.to_thread(scene)
        for _ in range(3):
            await asyncio.sleep(0)
        assert set(calls.counts.values()) == {1}, (at, calls.counts)
        return has_come

    at = 0
    while await run(at):
        at += 1
    assert at > 50


@pytest.mark.rows("C3")
@pytest.mark.parametrize("interrupt", INTERRUPTS[:2], ids=lambda method: method.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_who_leaves_is_called_at_most_once(
    interrupt: Callable[[RequestContext], None], place: str
) -> None:
    """A disposal that a signal interrupts: called or not, but nobody else is forgotten."""
    at, has_come = 0, True
    while has_come:
        context, calls = RequestContext("r1"), Calls()
        leaving = context.stopped().subscribe(calls.listener("leaving"))
        context.stopped().listen(calls.listener("staying"))
        with interrupted(at, partial(PLACES[place], partial(interrupt, context))) as came:
            leaving.dispose()
            has_come = came()
        context.stop_generating()
        assert calls.counts["staying"] == 1
        assert calls.counts["leaving"] <= (1 if has_come else 0)
        at += 1
    assert at > 5


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize("place", PLACES)
def test_a_child_made_during_a_kill_is_killed(place: str) -> None:
    """Its listeners never see the stop of a kill without the kill."""
    at, has_come = 0, True
    while has_come:
        context = RequestContext("r1")
        early = context.child()
        seen: list[bool] = []
        early.stopped().listen(lambda early=early, seen=seen: seen.append(early.is_killed))
        with interrupted(at, partial(PLACES[place], context.kill)) as came:
            child = context.child()
            child.stopped().listen(lambda child=child, seen=seen: seen.append(child.is_killed))
            has_come = came()
        context.kill()
        assert seen == [True, True], at
        at += 1
    assert at > 50


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize("place", PLACES)
def test_nobody_sees_the_stop_of_a_kill_without_the_kill(place: str) -> None:
    """Whoever looks, listens or makes a child in the middle of a kill finds no mere stop."""
    at, has_come = 0, True
    while has_come:
        context = RequestContext("r1")
        seen: list[tuple[bool, bool]] = []

        def look(context: RequestContext = context, seen: list[tuple[bool, bool]] = seen) -> None:
            for one in (context, context.child()):
                seen.append((one.is_stopped, one.is_killed))
                one.stopped().listen(lambda one=one: seen.append((one.is_stopped, one.is_killed)))

        with interrupted(at, partial(PLACES[place], look)) as came:
            context.kill()
            has_come = came()
        assert (True, False) not in seen, at
        assert seen.count((True, True)) >= 2 or not has_come
        at += 1
    assert at > 5


@pytest.mark.rows("C3")
def test_threads_that_listen_leave_and_signal_at_once() -> None:
    """Without any order: who stays is called once, who left at most once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            context, calls = RequestContext(), [Calls() for _ in range(4)]
            barrier = threading.Barrier(6, timeout=10)

            def listening(
                own: Calls, context: RequestContext = context, barrier: threading.Barrier = barrier
            ) -> None:
                barrier.wait()
                for number in range(20):
                    context.stopped().listen(own.listener(f"stays {number}"))
                    context.killed().listen(own.listener(f"leaves {number}"))()

            def signalling(
                method: Callable[[RequestContext], None],
                context: RequestContext = context,
                barrier: threading.Barrier = barrier,
            ) -> None:
                barrier.wait()
                method(context)

            threads = [threading.Thread(target=listening, args=(own,)) for own in calls]
            threads += [
                threading.Thread(target=signalling, args=(method,)) for method in INTERRUPTS[:2]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            for own in calls:
                for name, count in own.counts.items():
                    assert count == 1 if name.startswith("stays") else count <= 1, name
    finally:
        sys.setswitchinterval(before)


class InterruptedSelector(selectors.DefaultSelector):
    """A selector in whose first long wait a signal arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.woken = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0 and not self.waits:
            self.waits += 1
            signal.raise_signal(signal.SIGUSR1)
            events = super().select(5)
            self.woken = bool(events)
            return events
        return super().select(timeout)


@pytest.mark.rows("C2", "C3")
@pytest.mark.parametrize("how", ["await", "subscribe"])
def test_a_signal_handler_wakes_an_idle_loop(how: str) -> None:
    """Python runs the handler in the middle of the loop's wait, which must not go on."""
    context = RequestContext()
    selector = InterruptedSelector()

    async def wait() -> bool:
        if how == "await":
            return await context.stopped()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        context.stopped().subscribe(future.set_result)
        return await future

    def handle(_number: int, _frame: FrameType | None) -> None:
        context.stop_generating()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            assert runner.run(wait())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (selector.waits, selector.woken) == (1, True)
