"""Engines that answer a cancellation in every way there is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from tests.matrix.call import Call
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


@engine()
async def swallows_once(call: Call) -> Answer:
    """Swallow the first cancellation, and go on."""
    with call.opened():
        is_cancelled = False
        for _ in range(call.length):
            try:
                await call.pause(must_wait=True)
            except asyncio.CancelledError:
                if is_cancelled:
                    raise
                is_cancelled = True
            yield call.token()
        yield call.stop()


@engine()
async def swallows_always(call: Call) -> Answer:
    """Swallow every cancellation."""
    with call.opened():
        for _ in range(3 * call.length):
            with suppress(asyncio.CancelledError):
                await call.pause(must_wait=True)
            yield call.token()
        yield call.stop()


def _answering(name: str, *answers: Callable[[Call], Any]) -> None:
    """Register an engine that answers its cancellation with chunks, after waits, or by an error."""

    async def generate(call: Call) -> Answer:
        with call.opened():
            yield call.token()
            with suppress(asyncio.CancelledError):
                await call.wait_for_ever()
            for answer in answers:
                made = answer(call)
                if inspect.isawaitable(made):
                    await made
                elif made is not None:
                    yield made

    engine(name=name, ends=())(generate)


def _error(call: Call) -> None:
    call.fail()
    raise ValueError("cancelled")


_answering("answers_with_chunk", Call.token, Call.wait_for_ever)
_answering("answers_with_terminal", Call.cancelled)
_answering("answers_with_error", _error)
_answering("answers_with_end", Call.fail)
_answering("answers_late", Call.clean, Call.cancelled)


@engine()
async def swallows_close(call: Call) -> Answer:
    """Yield once more when it is closed, which Python forbids."""
    with call.opened():
        try:
            for _ in range(call.length):
                await call.pause()
                yield call.token()
            yield call.stop()
        except GeneratorExit:
            yield call.token()


@engine(ends=())
async def shields(call: Call) -> Answer:
    """Wait for a shielded task, which it leaves to finish."""
    with call.opened():
        yield call.token()
        call.stick()
        try:
            while True:
                await asyncio.shield(asyncio.ensure_future(asyncio.sleep(0.0005)))
        except asyncio.CancelledError:
            call.record.cancels += 1
            raise
