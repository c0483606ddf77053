"""A run that is pushed to an observer, from a task that pulls it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from reactivex import abc
from reactivex.disposable import Disposable

from operators._core.tasks import current_task, defer_to_loop, start_task

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
    pushing = _Pushing(run, observer, loop)
    defer_to_loop(loop, pushing.begin)
    return Disposable(pushing.dispose)


class _Pushing:
    __slots__ = ("_is_disposed", "_loop", "_observer", "_run", "_task")

    def __init__(
        self,
        run: FusedRun[Any],
        observer: abc.ObserverBase[Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._run = run
        self._observer = observer
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_disposed = False

    def begin(self) -> None:
        if not self._is_disposed:
            self._task = start_task(self._push(), self._loop)

    async def _push(self) -> None:
        observer = self._observer
        try:
            async for item in self._run:
                if self._is_disposed:
                    # Disposed of in the step that made the item.
                    self._run.mark_undelivered(item)
                    return
                observer.on_next(item)
                if self._is_disposed:
                    return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Not an Exception, as Rx expects, but an observer that is not notified would wait
            # forever.
            if not self._is_disposed:
                observer.on_error(cast("Exception", error))
        else:
            observer.on_completed()
        finally:
            self._run.close()

    def dispose(self) -> None:
        self._is_disposed = True
        task = current_task()
        if task is not None and task.get_loop() is self._loop:
            self._drop()
        else:
            # Another thread, or a signal handler, which does not wake the loop.
            defer_to_loop(self._loop, self._drop)

    def _drop(self) -> None:
        # If its own observer disposes of it, the task ends with that step.
        if self._task is not None and self._task is not current_task():
            self._task.cancel()
        self._run.close()
