"""The one place where a run's resources are released, whichever way it ended."""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, cast

__all__ = ("Release", "Segment")


class Segment(AsyncIterator[Any]):
    """A part of an assembled pipeline, pulled by the part behind it."""

    __slots__ = ()

    @property
    def ended(self) -> bool:
        """Whether the item handed out last was the last one."""
        raise NotImplementedError


class Release:
    """
    Closes a run's source and calls what waits for the end, once; call it to release.

    Closing is begun at once, in the turn in which the run ends. Where it really has to wait, the
    rest goes on in a task that this module owns.

    Attributes:
        source: The source to close.
        loop: The event loop that the run lives on.
        done: Whether the release was begun.
    """

    __slots__ = ("_on_end", "_rest", "_waiter", "done", "loop", "source")

    def __init__(self, source: AsyncIterator[Any], on_end: Callable[[], None] | None) -> None:
        self.source = source
        if isinstance(source, types.AsyncGeneratorType):
            _open.add(cast("object", source))
        self.loop = asyncio.get_running_loop()
        self.done = False
        self._on_end = on_end
        self._rest: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __call__(self) -> None:
        if self.done:
            return
        self.done = True
        self._close_source()
        _open.discard(self.source)
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            try:
                on_end()
            except Exception:
                _log.exception("what waits for the end of a stream failed")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until everything is released; being cancelled here does not disturb the release."""
        if not self.done:
            if self._waiter is None:
                self._waiter = self.loop.create_future()
            await asyncio.shield(self._waiter)
        if self._rest is not None and not self._rest.done():
            await asyncio.wait([self._rest])

    def is_elsewhere(self) -> bool:
        """Whether the caller is outside the loop's thread, and the loop can still be reached."""
        if self.loop.is_closed() or not self.loop.is_running():
            return False
        try:
            return asyncio.get_running_loop() is not self.loop
        except RuntimeError:
            return True

    def _close_source(self) -> None:
        aclose = getattr(self.source, "aclose", None)
        if aclose is None:
            return
        stand_in = _TaskStandIn()
        try:
            closing = aclose().__await__()
            signal = _first_step(closing, stand_in, self.loop)
        except StopIteration:
            return
        except Exception:
            _log.exception("closing the source of a stream failed")
            return
        if self.loop.is_closed():
            closing.close()
            return
        self._rest = stand_in.task = self.loop.create_task(_finish(closing, signal))
        _resting.add(self._rest)
        self._rest.add_done_callback(_resting.discard)


class _TaskStandIn:
    """
    The current task of a closing that has no task yet, and may never need one.

    What asks for the current task in the first step, such as ``asyncio.timeout``, keeps this, and
    reaches the task that the rest runs in.
    """

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def cancel(self, msg: object = None) -> bool:
        return self.task is not None and self.task.cancel(msg)

    def cancelling(self) -> int:
        return 0 if self.task is None else self.task.cancelling()

    def uncancel(self) -> int:
        return 0 if self.task is None else self.task.uncancel()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def _first_step(
    closing: Generator[Any, Any, Any], stand_in: _TaskStandIn, loop: asyncio.AbstractEventLoop
) -> Any:
    """Begin to await something as the task that *stand_in* stands for."""
    if not loop.is_running():
        return next(closing)
    task = cast("asyncio.Task[Any]", stand_in)
    current = asyncio.current_task(loop)
    # These three are asyncio's interface for tasks of somebody else's making.
    if current is not None:
        asyncio.tasks._leave_task(loop, current)
    asyncio.tasks._enter_task(loop, task)
    try:
        return next(closing)
    finally:
        asyncio.tasks._leave_task(loop, task)
        if current is not None:
            asyncio.tasks._enter_task(loop, current)


# Sources of streams that live. Were a source only held by its stream, the collector of a cycle
# around both would have asyncio close it too, beside us.
_open: set[object] = set()
_resting: set[asyncio.Task[None]] = set()
_log = logging.getLogger(__name__)


async def _finish(closing: Generator[Any, Any, Any], signal: Any) -> None:
    try:
        await _resume(closing, signal)
    except Exception:
        _log.exception("closing the source of a stream failed")


@types.coroutine
def _resume(closing: Generator[Any, Any, Any], signal: Any) -> Generator[Any, Any, None]:
    """Go on awaiting something that was begun by hand, from the future that it waits for."""
    try:
        while True:
            try:
                yield signal
            except BaseException as error:
                signal = closing.throw(error)
            else:
                signal = closing.send(None)
    except StopIteration:
        return
