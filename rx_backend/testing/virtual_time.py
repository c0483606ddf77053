"""An event loop whose clock jumps from timer to timer instead of waiting."""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar, TypeVarTuple

from operators.assembly import check_arguments
from operators.authoring import AtLeast
from rx_backend.testing.deadlock import Deadlock, waiting_tasks

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ("VirtualTimeLoop",)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A program that never idles (a loop around `sleep(0)`) would stop the clock forever, and with it
# every timeout. After this many turns at one instant each further turn takes time, as a real one
# does.
_FREE_TURNS = 10_000
_TURN_S = 10e-6
# The loop passes the time until a timer, which differs by rounding from the timer's own time.
_ROUNDING_S = 1e-6
# The loop fires timers due within this time; after 97 days it is below a float's precision.
_RESOLUTION_S = 1e-9
# The loop waits at most this long at a time.
_LONGEST_WAIT_S = 24 * 3600


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """
    An asyncio loop in virtual time, for tests and simulations.

    ``time()`` starts at 0.0 seconds. The clock stands still while callbacks are ready; when none
    is, it jumps to the next timer. Timers for the same instant fire in the order in which they were
    set, so a run is repeatable.

    Other threads: ``call_soon_threadsafe`` works. While work in ``run_in_executor`` or
    ``asyncio.to_thread`` runs, or inside ``real_time()``, the clock is no faster than real time, so
    that the thread can respond first. Sockets also work; while timers are set, they are polled
    without waiting.

    ``run_until_complete`` and ``run_forever`` raise ``Deadlock`` when nothing can ever happen again.

    Args:
        thread_grace_s: How many real seconds the loop waits for other live threads before it raises
            ``Deadlock``. Without such threads it does not wait.

    Raises:
        TypeError, ValueError: *thread_grace_s* is not a finite number of seconds, 0 or more.
    """

    def __init__(self, *, thread_grace_s: Annotated[float, AtLeast(0, "seconds")] = 1.0) -> None:
        self._clock = _VirtualSelector(thread_grace_s)
        self._timer_numbers = count()
        super().__init__(self._clock)
        try:
            check_arguments(VirtualTimeLoop, thread_grace_s=thread_grace_s)
        except (TypeError, ValueError):
            self.close()
            raise

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._clock.now_s

    @property
    def longest_iteration_s(self) -> float:
        """Duration of the longest turn of the loop, in real seconds; may be reset."""
        return self._clock.longest_iteration_s

    @longest_iteration_s.setter
    def longest_iteration_s(self, value: float) -> None:
        self._clock.longest_iteration_s = value

    @contextmanager
    def real_time(self) -> Generator[None]:
        """
        Keep the clock from running faster than real time inside the block.

        For code that waits for something the loop can't see, such as its own thread or a socket.
        Inside, nothing counts as a deadlock.
        """
        self._clock.holds += 1
        try:
            yield
        finally:
            self._clock.holds -= 1

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call *callback* at *when* on the loop's clock."""
        if when == math.inf:
            # It never fires, and must not hide a deadlock.
            return asyncio.TimerHandle(when, callback, args, self, context)
        instant = _Instant(when, next(self._timer_numbers))
        timer = super().call_at(instant, callback, *args, context=context)
        heappush(self._clock.timers_s, when)
        return timer

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run *func* in a thread; the clock follows real time until it is done."""

        def done(_: asyncio.Future[T]) -> None:
            self._clock.holds -= 1

        future = super().run_in_executor(executor, func, *args)
        self._clock.holds += 1
        future.add_done_callback(done)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Wait, in real time, until the threads of the default executor have ended."""
        with self.real_time():
            await super().shutdown_default_executor(*args, **kwargs)

    def add_signal_handler(self, *args: Any, **kwargs: Any) -> None:
        """Add a signal handler; from then on an idle loop waits for signals."""
        super().add_signal_handler(*args, **kwargs)
        self._clock.handles_signals = True


class _Instant(float):
    """A time that sorts after equal ones with lower numbers."""

    __slots__ = ("number",)

    number: int

    def __new__(cls, when: float, number: int) -> Self:
        instant = super().__new__(cls, when)
        instant.number = number
        return instant

    def __lt__(self, other: float) -> bool:
        if isinstance(other, _Instant) and self == other:
            return self.number < other.number
        return float.__lt__(self, other)


class _VirtualSelector(selectors.DefaultSelector):
    """
    A loop's selector: it advances the clock instead of waiting for a timer.

    Attributes:
        now_s: The virtual time.
        timers_s: A heap of the times of timers; cancelled ones stay in it until they are due.
        holds: While it is above 0, the clock follows real time.
        handles_signals: Whether to wait for signals.
        longest_iteration_s: The longest real time from one call of `select` to the next.
    """

    def __init__(self, thread_grace_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self.timers_s: list[float] = []
        self.holds = 0
        self.handles_signals = False
        self.longest_iteration_s = 0.0
        self._thread_grace_s = thread_grace_s
        self._turns = 0
        self._turn_began = perf_counter()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; *timeout* is 0 if callbacks are ready, and None without timers."""
        self.longest_iteration_s = max(self.longest_iteration_s, perf_counter() - self._turn_began)
        if timeout is None:
            events = self._wait()
        elif timeout <= 0:
            self._turns += 1
            if self._turns > _FREE_TURNS:
                self.now_s = max(self.now_s + _TURN_S, math.nextafter(self.now_s, math.inf))
            events = super().select(0)
        else:
            events = super().select(timeout if self.holds else 0)
            if not events:
                self._jump(timeout)
        self._turn_began = perf_counter()
        return events

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for an external event: a descriptor, a signal, or another thread."""
        # One descriptor is the pipe by which threads wake the loop.
        if self.holds or self.handles_signals or len(self.get_map()) > 1:
            return super().select(None)
        events = super().select(self._thread_grace_s if threading.active_count() > 1 else 0)
        if not events:
            raise Deadlock(waiting_tasks(asyncio.get_running_loop()), self.now_s)
        return events

    def _jump(self, timeout_s: float) -> None:
        """Set the clock to the exact time of the timer that is due after about *timeout_s*."""
        timers_s, time_s = self.timers_s, self.now_s + timeout_s
        passed_s = max(self.now_s, time_s - _ROUNDING_S)
        while timers_s and timers_s[0] <= passed_s:
            heappop(timers_s)
        if timers_s and (timers_s[0] <= time_s + _ROUNDING_S or timeout_s >= _LONGEST_WAIT_S):
            time_s = timers_s[0]
        if time_s + _RESOLUTION_S == time_s:
            time_s = math.nextafter(time_s, math.inf)
        self.now_s = max(self.now_s, time_s)
        self._turns = 0
