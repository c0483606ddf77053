"""Signals that stay set, and the listeners that they notify once (rows C1-C3)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, Final, Literal, TypeAlias

from reactivex import Observable, abc

from rx_backend.logger import describe, get_logger

__all__ = ("LatchedSignal", "Latches", "Listener", "SignalName")

SignalName: TypeAlias = Literal["stopped", "killed", "first_token"]


class Latches:
    """
    The signals of one request and their listeners.

    There is no lock, so that a `signal.signal` handler may set a signal whatever it interrupts.
    Every step is one operation that neither another thread nor a handler can come between: setting
    a flag, and ``append``, ``copy`` and ``remove`` of the list. A flag is set before the list is
    read, and a listener is appended before its flag is read, so at least one side sees the other.
    Whoever removes the listener calls it; only one can.

    Args:
        request_id: For the log.

    Attributes:
        stopped, killed, first_token: Whether the signal is set.
        loop: The event loop on which listeners are notified that subscribe outside of any loop.
    """

    __slots__ = ("_listeners", "first_token", "killed", "loop", "request_id", "stopped")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.stopped = False
        self.killed = False
        self.first_token = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[Listener] = []

    def is_set(self, name: SignalName) -> bool:
        """Return whether the signal is set."""
        flag: bool = getattr(self, name)
        return flag

    def set(self, *names: SignalName) -> None:
        """Set the signals, in this order, and then notify their listeners."""
        for name in names:
            setattr(self, name, True)
        for listener in self._listeners.copy():
            if self.is_set(listener.name) and self.remove(listener):
                listener.notify()

    def listen(
        self,
        name: SignalName,
        callback: Callable[..., None],
        *args: object,
        anywhere: bool = False,
    ) -> Listener:
        """
        Call *callback* once when the signal comes, at once if it is set.

        It is called on the event loop that runs here; without one on `loop`; without that, or with
        *anywhere*, in the thread that signals.
        """
        loop = None if anywhere else _running_loop() or self.loop
        listener = Listener(self, name, loop, callback, args)
        self._listeners.append(listener)
        if self.is_set(name) and self.remove(listener):
            callback(*args)
        return listener

    def remove(self, listener: Listener) -> bool:
        """Forget a listener; return whether it was still waiting."""
        try:
            self._listeners.remove(listener)
        except ValueError:
            return False
        return True


class Listener(abc.DisposableBase):
    """A callback that waits for a signal, until it is notified or disposed of."""

    __slots__ = ("_args", "_callback", "_latches", "_loop", "name")

    def __init__(
        self,
        latches: Latches,
        name: SignalName,
        loop: asyncio.AbstractEventLoop | None,
        callback: Callable[..., None],
        args: tuple[object, ...],
    ) -> None:
        self._latches = latches
        self.name: SignalName = name
        self._loop = loop
        self._callback = callback
        self._args = args

    def dispose(self) -> None:
        """Do not call back any more, not even if a notification is on its way to the loop."""
        self._callback = _ignore
        self._latches.remove(self)

    def notify(self) -> None:
        """Call back: at once on the listener's event loop, else as soon as that loop runs."""
        loop = self._loop
        if loop is None:
            self._call()
        elif loop is _running_loop():
            self._call()
            # A `signal.signal` handler may have interrupted a loop that waits for I/O.
            loop.call_soon_threadsafe(_ignore)
        else:
            # A loop that is closed has nobody left to notify.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        try:
            self._callback(*self._args)
        except Exception as error:
            # One listener's bug must not keep the signal from the others.
            request_id = self._latches.request_id
            _log.error("context listener failed", request_id=request_id, **describe(error))


class LatchedSignal(Observable[bool]):
    """
    A signal of a context that stays set: awaitable, and an Observable that replays it (row C2).

    As an Observable it emits ``True`` and completes, at once for a late subscriber. A subscriber
    or waiter is notified on the event loop that it subscribed from, whichever thread signals.

    >>> from rx_backend import RequestContext
    >>> context = RequestContext()
    >>> context.stop_generating()
    >>> _ = context.stopped().subscribe(print)
    True
    """

    def __init__(self, latches: Latches, name: SignalName) -> None:
        # The base class makes a lock here, for operators that a request's signal rarely meets.
        self._latches = latches
        self._name: SignalName = name

    @cached_property
    def lock(self) -> threading.RLock:
        """What some ``reactivex`` operators hold while they handle an item."""
        return threading.RLock()

    @property
    def is_set(self) -> bool:
        """Whether the signal was given."""
        return self._latches.is_set(self._name)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* once when the signal comes (at once if it is set); undo by the result."""
        return self._latches.listen(self._name, callback).dispose

    def subscribe(
        self,
        on_next: abc.ObserverBase[bool] | abc.OnNext[bool] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """Subscribe as to any Observable; a lone function costs a tenth of an observer here."""
        if isinstance(on_next, _FUNCTIONS) and on_completed is None:
            return self._latches.listen(self._name, on_next, True)
        return super().subscribe(on_next, on_error, on_completed, scheduler=scheduler)

    def _subscribe_core(
        self,
        observer: abc.ObserverBase[bool],
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        def fire() -> None:
            observer.on_next(True)
            observer.on_completed()

        return self._latches.listen(self._name, fire)

    def __await__(self) -> Generator[Any, None, bool]:
        if not self.is_set:
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            unlisten = self.listen(lambda: None if future.done() else future.set_result(True))
            try:
                yield from future
            finally:
                unlisten()
        return True


_log = get_logger(__name__)
_FUNCTIONS: Final = (FunctionType, MethodType)


def _ignore(*_: object) -> None: ...


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
