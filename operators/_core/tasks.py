"""Tasks that the library starts for a stream."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Coroutine
from typing import Any

__all__ = ("start_task",)

_running: set[asyncio.Task[None]] = set()


def start_task(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
    *,
    eager: bool = False,
) -> asyncio.Task[None]:
    """
    Run *coroutine* in a task that is referenced until it is done.

    The loop's task factory is not asked: an eager one would enter *context*, which may be the
    context that the caller runs in, and that can't be entered twice.

    Args:
        coroutine: What to run.
        loop: The event loop to run it on.
        context: The context to run it in; a copy of the current one by default.
        eager: Take the first step at once where Python can (3.12 and later). The caller must be in
            the loop's thread, while the loop runs, and not in *context*.
    """
    if eager and sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
        if task.done():
            return task
    else:
        task = asyncio.Task(coroutine, loop=loop, context=context)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task
