"""Engines that fail, end too early or say too much, and set-ups that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from rx_backend import Disconnected, LLMEngineOutput
from tests.matrix.call import Call
from tests.matrix.engines_cleaning import OddError
from tests.matrix.engines_plain import in_time
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


def _group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("several", list(errors))


def _raising(
    name: str, make: Callable[[], BaseException], *ends: str, raises: Any = (), **options: Any
) -> None:
    """Register an engine that raises in mid-stream, and by its clean-up waits after that."""

    async def generate(call: Call) -> Answer:
        with call.opened():
            for _ in range(call.length - 1):
                await call.pause()
                yield call.token()
            await call.pause()
            call.fail()
            try:
                raise make()
            finally:
                if call.rng.random() < 0.5:
                    await call.clean()

    engine(name=name, ends=ends, raises=raises, **options)(generate)


_raising("raises_value_error", lambda: ValueError("no"), "InvalidArgument")
_raising("raises_lookup_error", lambda: LookupError("no"), "Unknown")
_raising("raises_reset", lambda: ConnectionResetError("no"), "Disconnected")
_raising("raises_group", lambda: _group(ValueError(), ValueError()), "InvalidArgument")
_raising("raises_stop_iteration", StopIteration, "Unknown")
_raising("raises_stop_async_iteration", StopAsyncIteration, "Unknown")
_raising("raises_cancelled", asyncio.CancelledError, "Unknown", "Cancelled")
_raising("raises_generator_exit", GeneratorExit, "Unknown", raises=(GeneratorExit,))
_raising("raises_base", OddError, "Unknown", raises=(OddError,))
_raising("raises_base_group", lambda: _group(OddError()), "Unknown", raises=(BaseExceptionGroup,))


@engine(ends=("Unknown", "Cancelled"))
async def inner_task_cancelled(call: Call) -> Answer:
    """Await a task of its own that its shutdown cancels: no cancellation of the consumer's."""
    with call.opened():
        yield call.token()
        inner = asyncio.ensure_future(asyncio.sleep(60))
        try:
            await asyncio.sleep(0)
        finally:
            inner.cancel()
        call.fail()
        await inner


@engine(ends=("StreamIncomplete",))
async def ends_early(call: Call) -> Answer:
    """End without a terminal."""
    with call.opened():
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        call.fail()


@engine(ends=("StreamIncomplete",))
async def ends_empty(call: Call) -> Answer:
    """End with nothing at all."""
    with call.opened():
        await call.pause()
        call.fail()
        if call.length < 0:
            yield


@engine()
async def continues_after_terminal(call: Call) -> Answer:
    """Yield after its terminal (row S8)."""
    with call.opened():
        yield call.token()
        await call.pause()
        yield call.stop()
        while True:
            await call.pause()
            yield call.token()


@engine()
async def waits_after_terminal(call: Call) -> Answer:
    """Have work to do behind its terminal, in its ``finally``."""
    with call.opened():
        yield call.token()
        try:
            yield call.stop()
            await call.wait_for_ever()
        finally:
            await call.clean(long=True)


@engine(ends=("terminal", "Unknown"))
async def error_terminal(call: Call) -> Answer:
    """End with an ``error`` terminal."""
    with call.opened():
        yield call.token()
        await call.pause()
        call.fail()
        yield LLMEngineOutput.error("boom")


@engine(fails_setup=True)
def setup_raises(call: Call) -> Any:
    """Raise in ``generate`` itself."""
    raise ValueError("no set-up")


@engine(fails_setup=True)
async def setup_fails(call: Call) -> Any:
    """Raise in a coroutine, after a wait."""
    await call.pause()
    raise Disconnected("no set-up")


@engine(fails_setup=True)
async def setup_gives_nothing(call: Call) -> Any:
    """Return nothing."""
    await call.pause()


@engine(fails_setup=True)
async def setup_inner_cancelled(call: Call) -> Any:
    """Await a cancelled task of its own in its set-up."""
    inner = asyncio.ensure_future(asyncio.sleep(1))
    inner.cancel()
    await inner


@engine(fails_setup=True, raises=(OddError,))
async def setup_raises_base(call: Call) -> Any:
    """Raise what is no ``Exception``."""
    await call.pause()
    raise OddError("set-up")


@engine(ends=())
async def setup_waits_forever(call: Call) -> Any:
    """Never return an answer."""
    await call.wait_for_ever()


@engine()
async def setup_waits(call: Call) -> Any:
    """Return an async generator after a wait."""
    await call.pause(must_wait=True)
    return in_time(call)


@engine()
async def setup_swallows(call: Call) -> Any:
    """Swallow a cancellation in its set-up, and return an answer."""
    try:
        await call.pause(must_wait=True)
        await call.pause(must_wait=True)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
    return in_time(call)
