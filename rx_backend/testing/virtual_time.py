"""An event loop whose clock jumps from timer to timer instead of waiting."""

# Asyncio has no public way to order timers or to wait in another way. What is used of its base
# loop is the same from Python 3.11 to 3.13.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from rx_backend.testing.deadlock import Deadlock, waiting_tasks

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ("VirtualTimeLoop",)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A program that never idles (a loop around `sleep(0)`) would stop the clock for ever, and with it
# every timeout. After so many turns at one instant each further turn costs time, as a real one.
_FREE_TURNS = 10_000
_TURN_S = 10e-6


# Cancelled timers are swept once they are more than these and more than half of all.
_KEPT_CANCELLED = 100


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """
    An asyncio loop on virtual time, for tests and simulations.

    ``time()`` starts at 0.0 seconds. The clock stands still while callbacks are ready; when none
    is, it jumps to the next timer. Timers for the same instant fire in the order in which they were
    set, so a run is repeatable.

    Other threads: ``call_soon_threadsafe`` works. While work handed to ``run_in_executor`` or
    ``asyncio.to_thread`` runs, or inside ``hold_time()``, the clock is no faster than real time, so
    that the thread can answer first. Sockets work too; they are polled without waiting as long as
    timers are set.

    ``run_until_complete`` and ``run_forever`` raise ``Deadlock`` when nothing can ever happen again.

    Args:
        thread_grace_s: How many real seconds the loop waits for other threads that are alive before
            it raises ``Deadlock``. Without such threads it does not wait.

    Attributes:
        longest_turn_s: Duration of the longest turn of the loop, in real seconds; may be reset.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool
    _debug: bool
    _timer_cancelled_count: int

    if TYPE_CHECKING:
        # The base class has these; only its type stubs don't.
        def _check_closed(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _process_events(self, event_list: list[tuple[selectors.SelectorKey, int]]) -> None: ...

    def __init__(self, *, thread_grace_s: float = 1.0) -> None:
        self.longest_turn_s = 0.0
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_number = count()
        self._turns = 0
        self._holds = 0
        self._handles_signals = False
        self._thread_grace_s = thread_grace_s
        self._real = selectors.DefaultSelector()
        super().__init__(self._real)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._now

    @contextmanager
    def hold_time(self) -> Generator[None]:
        """
        Keep the clock from running faster than real time inside the block.

        For code that waits for something the loop cannot see: a thread of its own, a socket.
        Nothing counts as a deadlock inside.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call *callback* after *delay* virtual seconds."""
        return self._set_timer(self._now + delay, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call *callback* at *when* on the loop's clock."""
        return self._set_timer(when, callback, args, context)

    def _set_timer(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        args: tuple[*Ts],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        self._check_closed()
        if self._debug:
            self._check_thread()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # Tuples, unlike handles, are compared in C; the number keeps equal times in order.
        heappush(self._timers, (when, next(self._timer_number), timer))
        timer._scheduled = True
        return timer

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        cancelled = self._timer_cancelled_count
        if cancelled > _KEPT_CANCELLED and cancelled * 2 > len(timers):
            timers[:] = [timer for timer in timers if not timer[2]._cancelled]
            heapify(timers)
            self._timer_cancelled_count = 0
        if ready or self._stopping:
            self._turns += 1
            if self._turns > _FREE_TURNS:
                self._now += _TURN_S
            if self._is_watching:
                self._poll(0)
        else:
            self._idle()
        while timers and timers[0][0] <= self._now:
            self._pop_timer(ready)
        begun = perf_counter()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        self.longest_turn_s = max(self.longest_turn_s, perf_counter() - begun)
        handle = None  # or an exception would keep the handle, and the handle the exception

    def _pop_timer(self, ready: deque[asyncio.Handle]) -> None:
        timer = heappop(self._timers)[2]
        timer._scheduled = False
        if timer._cancelled:
            self._timer_cancelled_count -= 1
        else:
            ready.append(timer)

    @property
    def _is_watching(self) -> bool:
        """Whether it is watched for more than the pipe by which threads wake the loop."""
        return self._handles_signals or len(self._real.get_map()) > 1

    def _idle(self) -> None:
        """Move the clock to the next timer, or wait for an event from outside."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            self._pop_timer(self._ready)
        due = timers[0][0] if timers else math.inf
        if self._holds or self._is_watching:
            real_s = due - self._now if self._holds or due == math.inf else 0.0
            self._poll(None if real_s == math.inf else max(0.0, real_s))
            if self._ready or due == math.inf:
                return
        elif due == math.inf:
            if threading.active_count() > 1:
                self._poll(self._thread_grace_s)
            if not self._ready:
                raise Deadlock(waiting_tasks(self), self._now)
        if self._now < due < math.inf:
            self._now = due
            self._turns = 0

    def _poll(self, timeout_s: float | None) -> None:
        self._process_events(self._real.select(timeout_s))

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run *func* in a thread; the clock keeps to real time until it is done."""

        def done(_: asyncio.Future[T]) -> None:
            self._holds -= 1

        future = super().run_in_executor(executor, func, *args)
        self._holds += 1
        future.add_done_callback(done)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Wait, in real time, until the threads of the default executor have ended."""
        with self.hold_time():
            await super().shutdown_default_executor(*args, **kwargs)

    def add_signal_handler(self, *args: Any, **kwargs: Any) -> None:
        """Add a signal handler; from then on the loop looks for signals in every turn."""
        super().add_signal_handler(*args, **kwargs)
        self._handles_signals = True

    def close(self) -> None:
        """Close the loop and forget its timers."""
        super().close()
        if not self.is_running():
            self._timers.clear()
