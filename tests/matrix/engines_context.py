"""Engines that use their request's context: signals, their own stream, aborts, tokens, tracing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context

from rx_backend import RequestContext
from tests.matrix.call import POOL, Call
from tests.matrix.engines_cleaning import OddError
from tests.matrix.engines_plain import in_time, until_stopped
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


@engine()
async def stops_itself(call: Call) -> Answer:
    """Stop its own request in mid-stream, and continue (row A6)."""
    with call.opened():
        yield call.token()
        await call.pause()
        call.signal()
        await call.pause()
        yield call.token()
        yield call.stop()


@engine()
async def kills_itself(call: Call) -> Answer:
    """Kill its own request in mid-stream, and end it."""
    with call.opened():
        yield call.token()
        await call.pause()
        call.signal(kill=True)
        yield call.cancelled()


@engine(ends=(), wants_stream=True, drops_itself=True)
async def closes_itself(call: Call) -> Answer:
    """Close its own stream in a step."""
    with call.opened():
        yield call.token()
        await call.pause()
        if call.stream is not None:
            call.record.is_dropped = True
            call.stream.close()
        yield call.token()
        await call.wait_for_ever()


@engine(wants_stream=True)
async def holds_itself(call: Call) -> Answer:
    """Have its own stream and context in locals."""
    with call.opened():
        cycle = [call.stream, call.context]
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        cycle.clear()
        yield call.stop()


def _closing(name: str, listen: Callable[[RequestContext, Callable[[], None]], object]) -> None:
    """Register an engine that has its context close its own stream at a signal."""

    async def generate(call: Call) -> Answer:
        with call.opened():
            if call.stream is not None:
                listen(call.context, call.stream.close)
            for _ in range(call.length):
                await call.pause()
                yield call.token()
            yield call.stop()

    engine(name=name, wants_stream=True, drops_itself=True)(generate)


_closing("closes_on_stop", lambda context, close: context.stopped().listen(close))
_closing("closes_on_kill", lambda context, close: context.killed().subscribe(lambda _: close()))


async def _raises(call: Call) -> None:
    raise LookupError("abort")


async def _raises_base(call: Call) -> None:
    await asyncio.sleep(0)
    raise OddError("abort")


async def _raises_cancelled(call: Call) -> None:
    raise asyncio.CancelledError("abort")


async def _waits(call: Call) -> None:
    await asyncio.sleep(0.002)


async def _hangs(call: Call) -> None:
    await call.released.wait()


async def _signals(call: Call) -> None:
    call.context.stop_generating()
    call.context.kill()
    call.context.notify_first_token()


engine(name="abort_raises", abort=_raises)(until_stopped)
engine(name="abort_raises_base", abort=_raises_base)(until_stopped)
engine(name="abort_raises_cancelled", abort=_raises_cancelled)(until_stopped)
engine(name="abort_waits", abort=_waits)(in_time)
engine(name="abort_hangs", abort=_hangs)(until_stopped)
engine(name="abort_signals", abort=_signals)(in_time)


async def _ends(call: Call) -> None:
    call.aborted.set()


@engine(abort=_ends)
async def ends_by_abort(call: Call) -> Answer:
    """End when its abort is called, and by nothing else."""
    with call.opened():
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        call.stick()
        await call.aborted.wait()
        yield call.cancelled()


@engine()
async def notifies_first(call: Call) -> Answer:
    """Tell of the first token before any chunk, in its first step."""
    with call.opened():
        call.notify()
        await call.pause()
        yield call.token()
        await call.pause()
        yield call.stop()


@engine()
async def notifies_often(call: Call) -> Answer:
    """Tell of the first token with every chunk, and after its terminal."""
    with call.opened():
        try:
            for _ in range(call.length):
                await call.pause()
                yield call.token()
                call.notify()
            yield call.stop()
        finally:
            call.context.notify_first_token()


@engine()
async def notifies_from_thread(call: Call) -> Answer:
    """Have a thread tell of the first token, at any moment."""
    with call.opened():
        call.has_token()
        POOL.submit(call.context.notify_first_token)
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        yield call.stop()


@engine(ends=())
async def notifies_late(call: Call) -> Answer:
    """Be silent, and tell of the first token in its clean-up, which opens nothing (row A5)."""
    with call.opened():
        try:
            await call.wait_for_ever()
            yield call.token()
        finally:
            await call.clean()
            call.context.notify_first_token()
            await call.clean()


@engine(holds_context=True)
async def waits_in_own_loop(call: Call) -> Answer:
    """Have a thread with an event loop of its own await the stop (row C2)."""
    here = asyncio.get_running_loop()
    woken: asyncio.Future[None] = here.create_future()
    waiter = _Waiter(call, lambda: here.call_soon_threadsafe(_resolve, woken))
    with call.opened():
        waiter.start()
        try:
            for _ in range(call.length):
                await call.pause()
                yield call.token()
            if call.context.is_stopped:
                async with asyncio.timeout(1):
                    await woken
            yield call.stop()
        except TimeoutError:
            call.record.blame("C2: a waiter on another event loop is not woken")
            raise
        finally:
            waiter.give_up()


class _Waiter(threading.Thread):
    def __init__(self, call: Call, tell: Callable[[], object]) -> None:
        super().__init__(name="matrix waiter", daemon=True)
        self._level = call.context.stopped()
        self._tell = tell
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._is_ready = threading.Event()

    def run(self) -> None:
        self._task = self._loop.create_task(self._wait())
        self._is_ready.set()
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._task = None
        self._loop.close()

    async def _wait(self) -> None:
        await self._level
        self._tell()

    def give_up(self) -> None:
        """Have the thread end, and wait for that."""
        self._is_ready.wait()
        task = self._task
        if task is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)
        self.join()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@engine()
async def child_spans(call: Call) -> Answer:
    """
    Have spans of its own open across its yields.

    Not by ``start_as_current_span``: where a cycle is collected, the generator behind that is closed
    by the collector, in whatever context.
    """
    with call.opened():
        engine_span, engine_token = _begin_span(call, "engine")
        try:
            for _ in range(call.length):
                span, token = _begin_span(call, "step")
                try:
                    await call.pause()
                    yield call.token()
                finally:
                    otel_context.detach(token)
                    span.end()
            yield call.stop()
        finally:
            otel_context.detach(engine_token)
            engine_span.end()


def _begin_span(call: Call, name: str) -> tuple[Span, Token[Context]]:
    span = call.tracer.start_span(name)
    return span, otel_context.attach(set_span_in_context(span))


_VARIABLE: ContextVar[int] = ContextVar("tests.matrix.variable")


@engine()
async def context_variable(call: Call) -> Answer:
    """Set a context variable, see it after every yield, and reset it in the end."""
    with call.opened():
        token = _VARIABLE.set(7)
        try:
            for _ in range(call.length):
                await call.pause()
                yield call.token()
                if _VARIABLE.get(0) != 7:
                    call.record.blame("P9: the engine's context variable is lost")
            yield call.stop()
        finally:
            try:
                _VARIABLE.reset(token)
            except ValueError:
                call.record.blame("P9: the engine is closed in another context")
