"""Run a program in virtual time, also where an event loop runs already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = ("is_loop_running", "run_virtual")

T = TypeVar("T")


def run_virtual(
    coroutine: Coroutine[Any, Any, T], *, thread_grace_s: float = 1.0, in_thread: bool = False
) -> T:
    """
    Run *coroutine* to its end in virtual time and give its result.

    A fresh ``VirtualTimeLoop`` is made. Afterwards the tasks that are left are cancelled, async
    generators are closed, and the loop is closed.

    Args:
        coroutine: What to run.
        thread_grace_s: See ``VirtualTimeLoop``.
        in_thread: Run it in a thread of its own, and wait for that. So it can be called where an
            event loop runs already, as in a notebook, which stands still meanwhile. An interrupt
            (Ctrl-C) cancels what runs.

    Raises:
        Deadlock: The coroutine waits for something that can never happen.
        RuntimeError: Called while a loop is running in this thread, without *in_thread*.

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

    def make_loop() -> VirtualTimeLoop:
        return VirtualTimeLoop(thread_grace_s=thread_grace_s)

    if in_thread:
        return _run_in_thread(coroutine, make_loop)
    if is_loop_running():
        coroutine.close()
        raise RuntimeError(
            "run_virtual can't be called while an event loop runs in this thread; "
            "in_thread=True runs it in a thread of its own, as in a notebook"
        )
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(coroutine)


def is_loop_running() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_in_thread(
    coroutine: Coroutine[Any, Any, T], make_loop: Callable[[], VirtualTimeLoop]
) -> T:
    runner = asyncio.Runner(loop_factory=make_loop)
    loop = runner.get_loop()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with runner:
                results.append(runner.run(coroutine))
        except BaseException as failure:
            failures.append(failure)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    thread = threading.Thread(target=run, name="virtual time")
    try:
        thread.start()
        thread.join()
    except BaseException:
        # Interrupted while waiting. The loop may have come to its end meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(cancel)
        thread.join()
        raise
    if failures:
        # Nothing here holds it any more: this frame is in its traceback, that would be a cycle.
        raise failures.pop()
    return results.pop()
