"""How a worker's shutdown is requested, and how long each of its steps may take."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rx_backend.checks import number
from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.errors import engine_failure

__all__ = (
    "EventLoopBlocked",
    "Shutdown",
    "ShutdownTimes",
    "exit_unless_done",
    "exit_within",
    "own_cancellation",
    "signals_to",
    "wait_with_deadline",
)

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownTimes:
    """
    How long each step of a graceful shutdown may take, in seconds.

    Attributes:
        grace_s: Between leaving discovery and refusing requests: routers need a moment to notice.
        drain_s: For requests in flight to finish.
        unwind_s: For stopped requests to unwind, for all of a forced shutdown, and for a blocked
            event loop to respond.
        settle_s: For ``is_quiescent`` in prefill mode, and for ``drain``; each has this long.
        cleanup_s: For ``cleanup``.
        poll_s: Between two calls of ``is_quiescent``.

    Raises:
        InvalidArgument: A time is negative or not a number; the message names it.
    """

    grace_s: float = 5.0
    drain_s: float = 30.0
    unwind_s: float = 5.0
    settle_s: float = 30.0
    cleanup_s: float = 30.0
    poll_s: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            number(field.name, getattr(self, field.name), low=0, unit="seconds")


class Shutdown:
    """
    A request to shut down: graceful at first, forced when repeated.

    Safe to use from any thread.

    >>> shutdown = Shutdown()
    >>> shutdown.request()
    >>> shutdown.requested.is_set, shutdown.forced.is_set
    (True, False)
    >>> shutdown.request()
    >>> shutdown.forced.is_set
    True

    Attributes:
        started: Whether the engine's ``start`` has finished.
    """

    def __init__(self) -> None:
        # The same two signals as a request's: stop, and kill.
        self._signals = RequestContext("worker")
        self.requested: LatchedSignal = self._signals.stopped()
        self.forced: LatchedSignal = self._signals.killed()
        self.started = False
        self._ends_at = math.inf

    def request(self) -> None:
        """Request a graceful shutdown; the second time, a forced one."""
        if self.requested.is_set:
            self._signals.kill()
        else:
            self._signals.stop_generating()

    def set_deadline(self, seconds: float) -> None:
        """Set a deadline for all remaining steps, on the event loop; an earlier one is kept."""
        self._ends_at = min(self._ends_at, asyncio.get_running_loop().time() + seconds)

    def remaining_s(self, max_s: float) -> float:
        """Return how long a step may take: *max_s* seconds, or less before the deadline."""
        return max(0.0, min(max_s, self._ends_at - asyncio.get_running_loop().time()))

    @contextmanager
    def shorten_if_forced(self, limit: asyncio.Timeout, share: float = 1.0) -> Generator[None]:
        """
        Bring *limit* forward if the shutdown is forced while the block runs, or was before.

        Args:
            limit: Entered around the block.
            share: The fraction of the remaining time until :meth:`set_deadline` that the block may
                take.
        """

        def hurry() -> None:
            now = asyncio.get_running_loop().time()
            _expire_at(limit, min(limit.when() or now, now + share * self.remaining_s(math.inf)))

        undo = self.forced.listen(hurry)
        try:
            yield
        finally:
            undo()


class EventLoopBlocked(BaseException):
    """Raised by a signal inside an engine's ``start`` that blocks the event loop."""


@contextmanager
def signals_to(shutdown: Shutdown, *, unwind_s: float = 5.0) -> Generator[Callable[[], None]]:
    """
    Let SIGTERM and SIGINT request the shutdown while the block runs; in the main thread only.

    Yield a function that replaces the handlers for them that have been installed since, as by an
    engine's ``start``. The event loop's handlers for other signals are called as before.

    A third signal ends the process as it does by default. If the engine's ``start`` blocks the
    event loop, `EventLoopBlocked` is raised inside it after *unwind_s* seconds; if it does not
    return within another *unwind_s*, the process exits with code 1.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    watch = _StartWatch(asyncio.get_running_loop(), shutdown, unwind_s)

    def handle(number: int, _: object) -> None:
        interrupting = watch.is_interrupting()
        if shutdown.forced.is_set and not interrupting:
            by_default()
            signal.raise_signal(number)
        if not interrupting or not shutdown.requested.is_set:
            shutdown.request()
        # Before that, the signal that interrupts `start` would end the process.
        if shutdown.forced.is_set and (shutdown.started or interrupting):
            by_default()
        if interrupting:
            raise EventLoopBlocked

    def by_default() -> None:
        restore(dict.fromkeys(_SIGNALS, signal.SIG_DFL))

    def restore(handlers: dict[signal.Signals, Any]) -> None:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)

    def install() -> None:
        restore(dict.fromkeys(_SIGNALS, handle))
        watch.listen()

    restore(dict.fromkeys(_SIGNALS, handle))
    try:
        with watch.running():
            yield install
    finally:
        restore({number: handler or signal.SIG_DFL for number, handler in before.items()})


class _StartWatch:
    """
    Watches for signals in its own thread, and interrupts a ``start`` that blocks the loop.

    A Python handler runs late, or never, while the main thread is in a blocking call.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shutdown: Shutdown, patience_s: float
    ) -> None:
        self._loop = loop
        self._shutdown = shutdown
        self._patience_s = patience_s
        self._responded = threading.Event()
        self._interrupting = False
        self._writer = -1
        self._next = -1

    def is_interrupting(self) -> bool:
        """Whether the signal being handled is to interrupt what blocks the loop."""
        interrupting, self._interrupting = self._interrupting, False
        return interrupting and not self._responded.is_set()

    @contextmanager
    def running(self) -> Generator[None]:
        """Watch while the block runs."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        with reader, writer:
            self._writer = writer.fileno()
            self.listen()
            thread = threading.Thread(target=self._watch, args=[reader], daemon=True)
            thread.start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(self._next)
                self._responded.set()
                writer.close()
                thread.join(self._patience_s)

    def listen(self) -> None:
        """Receive the signals, and pass on to the event loop those that it handles itself."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if before != self._writer:
            self._next = before

    def _watch(self, signals: socket.socket) -> None:
        interrupted = False
        while number := signals.recv(1):
            if number[0] not in _SIGNALS:
                with suppress(OSError):  # the loop has no handlers
                    os.write(self._next, number)
                continue
            with suppress(RuntimeError):  # the loop is closed
                # It also wakes an idle loop, which then runs the handler.
                self._loop.call_soon_threadsafe(self._responded.set)
            if self._shutdown.started or self._responded.wait(self._patience_s):
                continue
            if interrupted:
                _exit("the engine's start blocks the event loop and can't be interrupted")
            self._interrupting = interrupted = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def exit_unless_done(seconds: float, what: str) -> Generator[None]:
    """End the process with exit code 1 if the block takes longer, even if it blocks the loop."""
    timer = exit_within(seconds, what)
    try:
        yield
    finally:
        timer.cancel()


def exit_within(seconds: float, what: str) -> threading.Timer:
    """End the process with exit code 1 in *seconds*, unless the timer is cancelled."""
    timer = threading.Timer(seconds, _exit, [f"{what} did not end within {seconds:g} s"])
    timer.daemon = True
    timer.start()
    return timer


def _exit(why: str) -> None:
    with suppress(OSError):
        os.write(2, f"rx-backend: error: {why}; the process exits\n".encode())
    os._exit(1)


async def wait_with_deadline(
    step: Awaitable[T], seconds: float | None, give_up: LatchedSignal
) -> T:
    """
    Wait for *step*, at most *seconds*, and no longer once *give_up* is set.

    The step runs in the caller's task, so that a later step may close what it opens.

    Raises:
        TimeoutError: The step was given up, and cancelled.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds) as limit:
        undo = give_up.listen(lambda: _expire_at(limit, loop.time()))
        try:
            return await step
        finally:
            undo()


def _expire_at(limit: asyncio.Timeout, when: float) -> None:
    if not limit.expired():
        limit.reschedule(when)


async def own_cancellation(step: Awaitable[T]) -> T:
    """Await an engine's step; a cancellation that does not come from its task is `Unknown`."""
    task = asyncio.current_task()
    try:
        return await step
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        raise engine_failure(error) from error
