"""Run a program in virtual time, also while an event loop is running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, TypeVar

from operators.assembly import CHECKED, check_arguments, running_loop
from operators.authoring import AtLeast
from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = ("run_virtual",)

T = TypeVar("T")


def run_virtual(
    coroutine: Annotated[Coroutine[Any, Any, T], CHECKED],
    *,
    thread_grace_s: Annotated[float, AtLeast(0, "seconds")] = 1.0,
    in_thread: bool = False,
) -> T:
    """
    Run *coroutine* to its end on a new ``VirtualTimeLoop`` and return its result.

    Remaining tasks are cancelled, async generators are closed, and the loop is closed.

    Args:
        coroutine: The coroutine.
        thread_grace_s: See ``VirtualTimeLoop``.
        in_thread: Run it in a new thread and wait for that, so that it can be called while an event
            loop is running in this thread, as in a notebook. An interrupt (Ctrl-C) cancels the run.

    Raises:
        Deadlock: The coroutine waits for something that can never happen.
        RuntimeError: A loop is running in this thread and *in_thread* is not set.
        TypeError, ValueError: An argument is invalid; the message names it.

    >>> import asyncio
    >>> async def an_hour():
    ...     await asyncio.sleep(3600.0)
    ...     return asyncio.get_running_loop().time()
    >>> run_virtual(an_hour())
    3600.0
    >>> async def notebook():
    ...     return run_virtual(an_hour(), in_thread=True)
    >>> asyncio.run(notebook())
    3600.0
    """
    try:
        check_arguments(run_virtual, coroutine, thread_grace_s=thread_grace_s, in_thread=in_thread)
        if not in_thread:
            _check_no_loop_runs()
    except Exception:
        if isinstance(coroutine, Coroutine):  # pyright: ignore[reportUnnecessaryIsInstance]
            coroutine.close()
        raise
    runner = asyncio.Runner(loop_factory=partial(VirtualTimeLoop, thread_grace_s=thread_grace_s))
    if in_thread:
        return _run_in_thread(runner, coroutine)
    with runner:
        return runner.run(coroutine)


def _check_no_loop_runs() -> None:
    if running_loop() is not None:
        raise RuntimeError(
            "run_virtual can't be called while an event loop runs in this thread; "
            "use in_thread=True, for example in a notebook"
        )


def _run_in_thread(runner: asyncio.Runner, coroutine: Coroutine[Any, Any, T]) -> T:
    # Created here, so that the loop runs in a copy of this thread's context.
    loop = runner.get_loop()

    future: Future[T] = Future()

    def run() -> None:
        try:
            with runner:
                result = runner.run(coroutine)
            future.set_result(result)
        except BaseException as error:
            future.set_exception(error)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    # No executor: it loses a thread whose start is interrupted.
    thread = threading.Thread(target=run, name="virtual time")
    try:
        thread.start()
        return future.result()
    except BaseException:
        # If this thread was interrupted, the run continues.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(cancel)
        raise
    finally:
        thread.join()
