"""Tasks that the library starts for a stream."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec, cast

from operators._core.loop_streams import streams_of

__all__ = (
    "current_task",
    "defer_to_loop",
    "done",
    "is_elsewhere",
    "running_loop",
    "start_eagerly",
    "start_release",
    "start_task",
    "weak_callback",
)

P = ParamSpec("P")


def start_task(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
) -> asyncio.Task[None]:
    """
    Run *coroutine* in a task that is referenced until it is done.

    It runs in *context*, by default a copy of the current one. The loop's task factory is not used:
    an eager one would enter *context* at once, which fails if the caller already runs in it.
    """
    running = streams_of(loop).tasks
    task = asyncio.Task(coroutine, loop=loop, context=context)
    running.add(task)
    task.add_done_callback(running.discard)
    return task


def start_release(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
) -> asyncio.Task[None]:
    """
    Like `start_task`, but *coroutine* runs even if the task is cancelled before it starts.

    ``asyncio.run`` cancels all tasks at its end, and an unstarted one would never run.
    """
    running = streams_of(loop).releases
    begun = _begun(coroutine, loop, running)
    begun.send(None)
    task = asyncio.Task(begun, loop=loop, context=context)
    running.add(task)
    return task


def start_eagerly(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
) -> asyncio.Task[None]:
    """
    Like `start_release`, but on Python 3.12 and later run up to the first wait within this call.

    The caller must run in a task or callback of the loop, and not in *context*.
    """
    if sys.version_info < (3, 12) or running_loop() is not loop:
        return start_release(coroutine, loop, context)
    task = asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
    if not task.done():
        running = streams_of(loop).releases
        running.add(task)
        task.add_done_callback(running.discard)
    return task


async def _begun(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    running: set[asyncio.Task[None]],
) -> None:
    try:  # noqa: SIM105 - a context manager is expensive with many requests
        await _one_turn()
    except asyncio.CancelledError:
        pass
    try:
        await coroutine
    finally:
        # Here instead of in a callback, which would be another call by the loop per request.
        running.discard(cast("asyncio.Task[None]", asyncio.current_task(loop)))


async def done(task: asyncio.Task[None] | None) -> None:
    """Wait until *task*, if any, is done; a cancellation here does not affect it."""
    if task is None or task.done():
        return
    # Most don't wait for anything: they are done in the next iteration, before the caller resumes.
    await _one_turn()
    if not task.done() and not is_elsewhere(task.get_loop()):
        await asyncio.wait((task,))


@types.coroutine
def _one_turn() -> Generator[None]:
    """Like ``asyncio.sleep(0)``, at a third of its cost."""
    yield


def defer_to_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """
    Call *function* in the loop's thread, soon; at once if the loop is not running.

    The caller may be in any thread, in another loop, in a signal handler or in a finalizer, so
    nothing of the loop may be touched here. Once the loop is closed, *function* is not called.
    """
    if loop.is_closed():
        return
    if loop.is_running():
        # The loop may be closed in between.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)
    else:
        function()


def current_task() -> asyncio.Task[Any] | None:
    """Return the current task, or None, even if no event loop runs."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def is_elsewhere(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether an event loop other than *loop* runs in this thread."""
    running = running_loop()
    return running is not None and running is not loop


def weak_callback(method: Callable[P, object]) -> Callable[P, None]:
    """
    Return a function that calls *method* while its object lives.

    For a callback that the loop, a timer or a library's task may keep: it does not keep a stream
    alive.
    """
    method_ref = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        found = method_ref()
        if found is not None:
            found(*args, **kwargs)

    return call
