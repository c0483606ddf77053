"""Signals that stay set, and the listeners that they notify once (rows C1-C3)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, Final, Literal, TypeAlias

from reactivex import Observable, abc

from operators.assembly import running_loop
from rx_backend.logger import describe, get_logger

__all__ = ("LatchedSignal", "Latches", "Listener", "SignalName")

SignalName: TypeAlias = Literal["stopped", "killed", "first_token"]
"""The signals of a request."""


@dataclass(slots=True, eq=False)
class Latches:
    """
    The signals of one request and their listeners.

    There is no lock, so a `signal.signal` handler may set a signal whatever it interrupts. Each step
    is atomic for threads and handlers: setting a flag, and ``append``, ``copy`` and ``remove`` of the
    list. A flag is set before the list is read, and a listener is appended before its flag is read,
    so at least one side sees the other. The side that removes the listener calls it; only one can.

    Attributes:
        request_id: For the log.
        stopped, killed, first_token: Whether the signal is set.
        loop: The event loop that notifies listeners registered outside any loop.
    """

    request_id: str
    stopped: bool = False
    killed: bool = False
    first_token: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    _listeners: list[Listener] = field(default_factory=list["Listener"])

    def is_set(self, name: SignalName) -> bool:
        """Return whether the signal is set."""
        flag: bool = getattr(self, name)
        return flag

    def set(self, *names: SignalName) -> None:
        """Set the signals in this order, then notify their listeners."""
        for name in names:
            setattr(self, name, True)
        for listener in self._listeners.copy():
            if self.is_set(listener.name) and self.remove(listener):
                listener.notify()

    def listen(
        self,
        name: SignalName,
        callback: Callable[..., object],
        *args: object,
        anywhere: bool = False,
    ) -> Listener:
        """
        Call *callback* once when the signal is set, at once if it already is.

        It is called on the running event loop, or else on `loop`; without both, or with *anywhere*,
        in the thread that signals.
        """
        loop = None if anywhere else running_loop() or self.loop
        listener = Listener(self, name, loop, callback, args)
        self._listeners.append(listener)
        if self.is_set(name) and self.remove(listener):
            callback(*args)
        return listener

    def remove(self, listener: Listener) -> bool:
        """Remove a listener; return whether it was still registered."""
        try:
            self._listeners.remove(listener)
        except ValueError:
            return False
        return True


@dataclass(slots=True, eq=False)
class Listener(abc.DisposableBase):
    """A callback registered for a signal, until it is notified or disposed of."""

    _latches: Latches
    name: SignalName
    _loop: asyncio.AbstractEventLoop | None
    _callback: Callable[..., object]
    _args: tuple[object, ...]

    def dispose(self) -> None:
        """Prevent the callback, even if a notification is already scheduled on the loop."""
        self._callback = _ignore
        self._latches.remove(self)

    def notify(self) -> None:
        """Call back: at once if the listener's event loop runs here, else in that loop."""
        loop = self._loop
        if loop is None:
            self._call()
        elif loop is running_loop():
            self._call()
            # A `signal.signal` handler may have interrupted a loop that waits for I/O.
            loop.call_soon_threadsafe(_ignore)
        else:
            # A closed loop has no listeners left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        try:
            self._callback(*self._args)
        except Exception as error:
            # An error in one listener must not keep the signal from the others.
            request_id = self._latches.request_id
            _log.error("context listener failed", request_id=request_id, **describe(error))


class LatchedSignal(Observable[bool]):
    """
    A context's signal that stays set: awaitable, and an Observable that replays it (row C2).

    The Observable emits ``True`` and completes, at once for a late subscriber. Subscribers and
    waiters are notified on their own event loop, whichever thread signals.

    >>> from rx_backend import RequestContext
    >>> context = RequestContext()
    >>> context.stop_generating()
    >>> _ = context.stopped().subscribe(print)
    True
    """

    def __init__(self, latches: Latches, name: SignalName) -> None:
        # The base class would make a lock here, which few operators use.
        self._latches = latches
        self._name: SignalName = name

    @cached_property
    def lock(self) -> threading.RLock:
        """The lock that some ``reactivex`` operators hold while they handle an item."""
        return threading.RLock()

    @property
    def is_set(self) -> bool:
        """Whether the signal is set."""
        return self._latches.is_set(self._name)

    def listen(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call *callback* once when the signal is set; return a function that prevents it."""
        return self._latches.listen(self._name, callback).dispose

    def subscribe(
        self,
        on_next: abc.ObserverBase[bool] | abc.OnNext[bool] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """Subscribe as to any Observable; a plain function costs a tenth of an observer."""
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
