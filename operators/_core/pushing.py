"""A run that is pushed to an observer, from a task that pulls it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any, cast

from reactivex import abc
from reactivex.disposable import Disposable

from operators._core.pump import Pump
from operators._core.tasks import current_task, defer_to_loop

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("push_in_task",)


def push_in_task(
    run: FusedRun[Any], observer: abc.ObserverBase[Any], loop: asyncio.AbstractEventLoop
) -> abc.DisposableBase:
    """
    Pull *run* to its end in a task of *loop*, and push its items to *observer*.

    Subscribing and disposing, which drops the run, may happen in any thread or signal handler.
    """
    is_disposed = False

    def push(item: Any) -> None:
        if is_disposed:
            # By another thread; the run is closed in the next iteration.
            run.mark_undelivered(item)
            return
        observer.on_next(item)
        pump.demand()

    async def end(failure: BaseException | None) -> None:
        try:
            await run.aclose()
        except asyncio.CancelledError as error:
            # An engine may cancel the task in its last step.
            failure = failure or error
        if failure is None:
            observer.on_completed()
        elif not isinstance(failure, KeyboardInterrupt | SystemExit) and not is_disposed:
            # Not always an Exception, as Rx expects, but an observer that is not notified would
            # wait forever. One without a handler raises it.
            with contextlib.suppress(asyncio.CancelledError):
                observer.on_error(cast("Exception", failure))

    def dispose() -> None:
        nonlocal is_disposed
        is_disposed = True
        task = current_task()
        if task is not None and task.get_loop() is loop:
            pump.close()
        else:
            # Another thread, or a signal handler, which does not wake the loop.
            defer_to_loop(loop, pump.close)

    pump = Pump(run, push, end, contextvars.copy_context())
    defer_to_loop(loop, pump.demand)
    return Disposable(dispose)
