"""Tasks that the library starts for a stream."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

__all__ = ("start_task",)

_running: set[asyncio.Task[None]] = set()


def start_task(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
) -> asyncio.Task[None]:
    """
    Run *coroutine* in a task that is referenced until it is done.

    The loop's task factory is not asked: an eager one would enter *context* at once, which fails
    where the caller runs in it.

    Args:
        coroutine: What to run.
        loop: The event loop to run it on.
        context: The context to run it in; a copy of the current one by default.
    """
    task = asyncio.Task(coroutine, loop=loop, context=context)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task
