"""A response stream as an Observable: where its timers run, and from where it is disposed of."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import reactivex
from reactivex import abc
from reactivex import operators as ops
from reactivex.scheduler import ImmediateScheduler

from rx_backend import RequestContext
from tests.rx_backend._engines import (
    ScriptedEngine,
    adapter_of,
    now,
    request,
    stop,
    token,
    virtual,
)


@pytest.mark.rows("O6")
@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (ops.buffer_with_time(2.5), [(2.5, 2), (4.0, 2)]),
        (ops.debounce(0.5), [(1.5, 1), (2.5, 1), (3.5, 1), (4.0, 1)]),
        (ops.delay(10.0), [(11.0, 1), (12.0, 1), (13.0, 1), (14.0, 1)]),
        (ops.sample(2.5), [(2.5, 1), (5.0, 1)]),
        (ops.throttle_first(1.5), [(1.0, 1), (3.0, 1)]),
    ],
    ids=["buffer_with_time", "debounce", "delay", "sample", "throttle_first"],
)
@virtual
async def test_stock_timers_run_on_the_streams_loop(
    operator: Any, expected: list[tuple[float, int]]
) -> None:
    """In virtual time too, without a scheduler being named anywhere."""
    engine = ScriptedEngine(1, token(1), 1, token(2), 1, token(3), 1, stop())
    stream = await adapter_of(engine).generate(request())
    came: list[tuple[float, int]] = []

    def note(item: Any) -> None:
        came.append((now(), len(item) if hasattr(item, "append") else 1))

    stream.pipe(operator).subscribe(note)
    await asyncio.sleep(60)
    assert came == expected


@pytest.mark.rows("O6")
@virtual
async def test_a_scheduler_that_is_named_is_used() -> None:
    """By whoever subscribes; a connectable and a single value stay what they are."""
    stream = await adapter_of(ScriptedEngine(1, token(1), stop())).generate(request())
    seen: list[abc.SchedulerBase | None] = []

    def look(source: reactivex.Observable[Any]) -> reactivex.Observable[Any]:
        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            seen.append(scheduler)
            return source.subscribe(observer, scheduler=scheduler)

        return reactivex.create(subscribe)

    mine = ImmediateScheduler()
    stream.pipe(look).subscribe(scheduler=mine)
    assert seen == [mine]
    assert hasattr(stream.pipe(ops.publish()), "connect")
    await asyncio.sleep(60)


Dispose = Callable[..., None]


def in_a_thread(dispose: Dispose) -> threading.Thread:
    thread = threading.Thread(target=dispose)
    thread.start()
    return thread


def in_another_loop(dispose: Dispose) -> threading.Thread:
    async def call() -> None:
        dispose()

    def run() -> None:
        asyncio.run(call())

    return in_a_thread(run)


def in_a_signal_handler(dispose: Dispose) -> None:
    signal.signal(signal.SIGUSR1, dispose)
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()


DISPOSING: dict[str, Callable[[Dispose], object]] = {
    "thread": in_a_thread,
    "other loop": in_another_loop,
    "signal": in_a_signal_handler,
    "callback": lambda dispose: asyncio.get_running_loop().call_soon(dispose),
    "task": lambda dispose: dispose(),
}


@pytest.mark.rows("S7")
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("where", DISPOSING)
@pytest.mark.parametrize("piped", [False, True])
def test_disposing_from_anywhere(where: str, debug: bool, piped: bool) -> None:
    """From wherever it is disposed of, the loop is woken and the engine released at once."""

    async def main() -> float:
        began, released = asyncio.Event(), asyncio.Event()

        def begin(_: RequestContext) -> None:
            began.set()

        def release(_: RequestContext) -> None:
            released.set()

        engine = ScriptedEngine(token(1), begin, 60, stop(), closing=[release])
        stream = await adapter_of(engine).generate(request())
        source: Any = stream.pipe(ops.skip(0)) if piped else stream
        subscription: abc.DisposableBase = source.subscribe()
        await began.wait()

        def dispose(*_: object) -> None:
            subscription.dispose()

        before = time.monotonic()
        begun = DISPOSING[where](dispose)
        # A loop that is not woken sleeps for as long as this.
        await asyncio.wait_for(released.wait(), 5)
        took = time.monotonic() - before
        if isinstance(begun, threading.Thread):
            begun.join()
        return took

    assert asyncio.run(main(), debug=debug) < 2
