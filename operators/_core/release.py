"""The one place where a run's resources are released, whichever way it ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import types
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeAlias

from operators._core.failures import without_message

__all__ = ("Release", "Segment", "hold", "let_go")


class Segment(AsyncIterator[Any]):
    """A part of an assembled pipeline, pulled by the part behind it."""

    __slots__ = ()

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the item handed out last was the last one."""
        ...


class Release:
    """
    Closes a run's source and calls what waits for the end, once; call it to release.

    Closing is begun at once, in the turn in which the run ends. Where it really has to wait, the
    rest goes on in a task that this module owns.

    Attributes:
        source: The source to close.
        loop: The event loop that the run lives on.
        done: Whether the release was begun.
        context: The context to close the source in, where it is one of the run's own.
    """

    __slots__ = ("_is_closing", "_on_end", "_rest", "_waiter", "context", "done", "loop", "source")

    def __init__(
        self,
        source: AsyncIterator[Any],
        on_end: Callable[[], None] | None,
        context: contextvars.Context | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.source = source
        if _is_generator(source):
            hold(source)
        # Asking for the running loop is a system call on some Pythons, dear with many requests.
        self.loop = loop or asyncio.get_running_loop()
        self.done = False
        self._is_closing = False
        self._on_end = on_end
        self.context = context
        self._rest: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @classmethod
    def over(cls, loop: asyncio.AbstractEventLoop) -> Release:
        """One that has nothing to release."""
        release = cls(_Nothing(), None, None, loop)
        release.done = True
        return release

    def __call__(self) -> None:
        if self.done:
            return
        self.done = True
        self.close_source()
        if self._rest is not None and isinstance(self.source, Segment):
            # A pull inside the segment unwinds first: operators there have an end to tell of.
            self._rest.add_done_callback(self._end)
        else:
            self._end()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, _: object = None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            try:
                on_end()
            except Exception as error:
                _log.error(
                    "what waits for the end of a stream failed", exc_info=without_message(error)
                )

    async def wait(self) -> None:
        """Wait until everything is released; being cancelled here does not disturb the release."""
        if not self.done:
            if self._waiter is None:
                self._waiter = self.loop.create_future()
            await asyncio.shield(self._waiter)
        if self._rest is not None and not self._rest.done():
            await asyncio.wait([self._rest])

    def is_elsewhere(self) -> bool:
        """
        Whether the caller must leave the release to the loop, and the loop can still be reached.

        He is outside the loop's thread, or the garbage collector calls him: that may come in the
        middle of anything, also of code that holds a lock which the release would wait for.
        """
        if self.loop.is_closed() or not self.loop.is_running():
            return False
        if _is_collecting:
            return True
        try:
            return asyncio.get_running_loop() is not self.loop
        except RuntimeError:
            return True

    def close_source(self) -> None:
        """Begin to close the source ahead of the rest of the release. Idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        if _is_generator(self.source):
            let_go(self.source)
        aclose = getattr(self.source, "aclose", None)
        if aclose is None:
            return
        self._own(begin_task(_close(aclose), self.loop, self.context))

    def go_on(self, begun: Begun, signal: Any) -> None:
        """Let a task go on with something that waits for *signal*; :meth:`wait` waits for it."""
        if not self.loop.is_closed():
            self._own(self.loop.create_task(_resumed(begun, signal), context=self.context))

    def _own(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._rest = task
            _resting.add(task)
            task.add_done_callback(_resting.discard)


_is_collecting = False


def _note_collection(phase: str, _: object) -> None:
    global _is_collecting  # noqa: PLW0603 - the interpreter has one collector
    _is_collecting = phase == "start"


gc.callbacks.append(_note_collection)


class _Nothing(AsyncIterator[Any]):
    async def __anext__(self) -> Any:
        raise StopAsyncIteration


Begun: TypeAlias = Coroutine[Any, Any, Any] | Generator[Any, Any, Any]


def _is_generator(source: object) -> bool:
    return type(source) is types.AsyncGeneratorType


def begin_task(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None,
) -> asyncio.Task[None] | None:
    """
    Run a coroutine's first step at once, as a task; gives the task if it has to go on.

    The whole coroutine runs as one task, which scopes such as ``asyncio.timeout`` and those of
    anyio insist on, and one that doesn't wait costs no turn of the loop. An eager task of newer
    Pythons would do the same, but can't share a context that has been entered already.

    Args:
        coroutine: What to run.
        loop: The loop of the task.
        context: The context that the caller is in, where it is one of its own.
    """
    if loop.is_running():
        return _begin_task(coroutine, loop, context)
    if loop.is_closed():
        # Nothing can wait any more; what needs no waiting is still done.
        with contextlib.suppress(StopIteration, RuntimeError):
            coroutine.send(None)
            coroutine.close()
        return None
    asyncio._set_running_loop(loop)
    try:
        return _begin_task(coroutine, loop, context)
    finally:
        asyncio._set_running_loop(None)


def _begin_task(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None,
) -> asyncio.Task[None] | None:
    # The object is the current task of the first step; only then is it scheduled, if need be.
    unscheduled: Any = _Unscheduled(loop)
    # Initialising it again forgets its context without freeing it, hence a shared one.
    task = asyncio.Task(coroutine, loop=unscheduled, name=_NAME, context=_SHARED)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    current = asyncio.current_task(loop)
    # These two are asyncio's interface for running something as a task.
    if current is not None:
        asyncio.tasks._leave_task(loop, current)
    asyncio.tasks._enter_task(loop, task)
    try:
        signal = coroutine.send(None)
    except StopIteration:
        return None
    finally:
        asyncio.tasks._leave_task(loop, task)
        if current is not None:
            asyncio.tasks._enter_task(loop, current)
    is_cancelled = task.cancelling() > 0
    task.__init__(_resumed(coroutine, signal), loop=loop, name=task.get_name(), context=context)
    if is_cancelled:
        task.cancel()
    return task


_NAME = "closing the source of a stream"
_SHARED = contextvars.Context()


class _Unscheduled:
    """A loop for a task that is not to be run by it."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call_soon(self, *_: object, **__: object) -> None:
        """Don't."""

    def get_debug(self) -> bool:
        """Without the traceback of its making."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def _close(aclose: Callable[[], Awaitable[object]]) -> None:
    try:
        await aclose()
    except Exception as error:
        _log.error("closing the source of a stream failed", exc_info=without_message(error))


def hold(generator: object) -> None:
    """
    Hold an asynchronous generator until its stream is released.

    Were it only held by its stream, the collector of a cycle around both would have asyncio close
    it too, beside us.
    """
    _open.add(generator)


def let_go(generator: object) -> None:
    """The generator is closed."""
    _open.discard(generator)


_open: set[object] = set()
_resting: set[asyncio.Task[None]] = set()
_log = logging.getLogger(__name__)


def _resumed(begun: Begun, signal: Any) -> Coroutine[Any, Any, None]:
    """A coroutine that goes on with one whose first step is done, and that waits for *signal*."""
    resumed = _go_on(begun, signal)
    # A task that is cancelled before its first step throws into it; only what runs can take it.
    resumed.send(None)
    return resumed


async def _go_on(begun: Begun, signal: Any) -> None:
    await _pass_on(begun, signal)


@types.coroutine
def _pass_on(begun: Begun, signal: Any) -> Generator[Any, Any, None]:
    try:
        try:
            yield
        except BaseException as error:
            signal = begun.throw(error)
        while True:
            try:
                yield signal
            except BaseException as error:
                signal = begun.throw(error)
            else:
                signal = begun.send(None)
    except StopIteration:
        return
