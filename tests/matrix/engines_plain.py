"""Engines that do nothing out of the ordinary, with chunks of every sort."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from rx_backend import LLMEngineOutput
from tests.matrix.call import POOL, Call
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


def _counting(name: str, wait: Callable[[Call], Awaitable[object]]) -> Callable[[Call], Any]:
    """Register an engine that waits before each chunk."""

    async def generate(call: Call) -> Answer:
        with call.opened():
            for _ in range(call.length):
                await wait(call)
                yield call.token()
            await wait(call)
            yield call.stop()

    return engine(name=name)(generate)


async def _no_wait(call: Call) -> None: ...


_counting("at_once", _no_wait)
in_time = _counting("in_time", Call.pause)
_counting("by_threads", lambda _: asyncio.get_running_loop().run_in_executor(POOL, int))


@engine()
async def empty_first(call: Call) -> Answer:
    """Shake hands before its first token."""
    with call.opened():
        for _ in range(call.length):
            await call.pause()
            yield LLMEngineOutput()
        yield call.token()
        yield call.stop()


@engine()
async def token_in_terminal(call: Call) -> Answer:
    """Have one chunk, its terminal."""
    with call.opened():
        await call.pause()
        chunk = call.token()
        chunk.finish_reason = call.stop().finish_reason
        yield chunk


@engine()
async def no_token(call: Call) -> Answer:
    """Have a terminal only."""
    with call.opened():
        await call.pause()
        yield call.stop()


@engine(counts=False)
async def dicts(call: Call) -> Answer:
    """Yield plain mappings."""
    with call.opened():
        for _ in range(call.length):
            await call.pause()
            call.token()
            yield {"token_ids": [1], "index": 0}
        call.fail()
        yield {"token_ids": [], "finish_reason": "stop"}


@engine(ends=("InvalidArgument", "Unknown"), counts=False)
async def malformed(call: Call) -> Answer:
    """Yield what is no chunk."""
    with call.opened():
        await call.pause()
        yield call.token()
        await call.pause()
        call.fail()
        yield call.rng.choice([{"token_ids": "x"}, 7, None, {"finish_reason": 3}])
        yield call.stop()


@engine(counts=False)
async def text_only(call: Call) -> Answer:
    """Yield text without token ids."""
    with call.opened():
        for _ in range(call.length):
            await call.pause()
            call.has_token()
            yield LLMEngineOutput(text="word")
        yield call.stop()


@engine(counts=False)
async def one_chunk_reused(call: Call) -> Answer:
    """Yield the same object every time, changed (what row E6 forbids)."""
    chunk = LLMEngineOutput.token(0)
    with call.opened():
        for number in range(call.length):
            await call.pause()
            call.has_token()
            chunk.token_ids = [number]
            yield chunk
        yield call.stop()


@engine(answers=2, counts=False)
async def two_answers(call: Call) -> Answer:
    """Have two answers, interleaved."""
    with call.opened():
        for number in range(call.length):
            await call.pause()
            call.has_token()
            yield LLMEngineOutput(token_ids=[number], index=number % 2)
        first = LLMEngineOutput.stop()
        first.index = 1
        yield first
        await call.pause()
        call.has_token()
        yield LLMEngineOutput(token_ids=[9], index=0)
        last = call.stop()
        last.index = 0
        yield last


@engine()
async def until_stopped(call: Call) -> Answer:
    """Look for the stop before each chunk, and have no other end (row E4)."""
    with call.opened():
        while not call.context.is_stopped:
            await call.pause(must_wait=True)
            yield call.token()
        yield call.cancelled()


@engine()
async def waits_for_stop(call: Call) -> Answer:
    """Await the stop after some chunks (row C2)."""
    with call.opened():
        for _ in range(call.length):
            yield call.token()
        call.stick()
        await call.context.stopped()
        yield call.cancelled()


@engine(ends=())
async def never_yields(call: Call) -> Answer:
    """Wait for what never comes."""
    with call.opened():
        await call.wait_for_ever()
        yield call.token()
