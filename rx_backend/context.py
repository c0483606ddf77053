"""One request's context: who it is, and its cancellation signals as levels (rows C1-C4)."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

from reactivex import Observable, abc

from rx_backend.logger import describe, get_logger

__all__ = ("Level", "RequestContext", "WastedTokens")

_STOPPED, _KILLED, _FIRST_TOKEN = 1, 2, 4

# One lock for all contexts: it is held for a few instructions, and a lock per request costs memory.
_LOCK = threading.Lock()


@dataclass(slots=True)
class WastedTokens:
    """
    Tokens of one request that a further engine cost, and that its answer did not need.

    Attributes:
        input: Read by an engine that lost, or read again after an engine was lost.
        output: Made by an engine that lost.
    """

    input: int = 0
    output: int = 0


class RequestContext:
    """
    Identity, metadata and cancellation of one request.

    Cancellation signals are levels: once set they stay set, and every later waiter or subscriber
    sees them at once (row C1). They may be signalled from any thread, any number of times (row C3).

    Args:
        id: Request id; a random one when left out.
        metadata: Propagated metadata; a snapshot is taken.
        trace_headers: Inbound W3C trace headers (``traceparent``, ``tracestate``), lower-case keys.
            The request's span becomes a child of that remote parent (row P1).

    Attributes:
        queued_s: How long the request waited for its turn at the engine, in seconds; for an engine
            that knows to set, before its stream ends. It goes to the span and to the metrics.
        wasted: What further engines cost, for an engine that asks some to add to; shared by all
            children, and None as long as there are none. It goes to the metrics.

    >>> context = RequestContext("r1")
    >>> context.stop_generating()
    >>> context.is_stopped, context.is_killed
    (True, False)
    """

    __slots__ = (
        "__weakref__",
        "_decode",
        "_levels",
        "_listeners",
        "_loop",
        "id",
        "metadata",
        "queued_s",
        "trace_headers",
        "wasted",
    )

    id: str
    metadata: Mapping[str, str]
    trace_headers: Mapping[str, str]
    queued_s: float | None
    wasted: WastedTokens | None

    def __init__(
        self,
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex if id is None else id
        self.metadata = MappingProxyType(dict(metadata)) if metadata else _EMPTY
        self.trace_headers = MappingProxyType(dict(trace_headers)) if trace_headers else _EMPTY
        self.queued_s = None
        self.wasted = None
        self._levels = 0
        self._decode = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[_Listener] | None = None

    def __repr__(self) -> str:
        state = "killed" if self.is_killed else "stopped" if self.is_stopped else "live"
        return f"RequestContext({self.id!r}, {state})"

    @property
    def is_stopped(self) -> bool:
        """Whether the request was asked to stop, gracefully or by :meth:`kill`."""
        return self._levels & _STOPPED != 0

    @property
    def is_killed(self) -> bool:
        """Whether the request was asked to stop at once."""
        return self._levels & _KILLED != 0

    @property
    def defers_abort(self) -> bool:
        """Whether an abort waits for the first token, as on a decode worker (row A4)."""
        return self._decode

    def stop_generating(self) -> None:
        """Ask the engine to end the request gracefully."""
        self._set(_STOPPED)

    def kill(self) -> None:
        """Ask the engine to end the request at once; a killed request also counts as stopped."""
        self._set(_STOPPED | _KILLED)

    def notify_first_token(self) -> None:
        """
        Tell the library that the first token exists, before any chunk shows it.

        Releases a deferred abort (row A4). Idempotent, and a no-op outside decode mode (row C4).
        """
        if self._decode:
            self._set(_FIRST_TOKEN)

    def child(self, id: str | None = None) -> RequestContext:
        """
        A context for a part of the request that may be stopped alone, such as a second engine's.

        A signal here reaches the child at once, in the signalling thread; a signal to the child
        stays there. The first-token notice is each one's own.

        Args:
            id: The part's id; that of the request when left out.

        >>> context = RequestContext("r1")
        >>> loser = context.child("r1/2")
        >>> loser.stop_generating()
        >>> context.is_stopped
        False
        """
        child = RequestContext(
            self.id if id is None else id, self.metadata, trace_headers=self.trace_headers
        )
        child.bind(self._loop, decode=self._decode)
        if self.wasted is None:
            self.wasted = WastedTokens()
        child.wasted = self.wasted
        # First the stronger one: who hears of the stop of a kill can see that it is one.
        self._listen(_KILLED, child.kill, anywhere=True)
        self._listen(_STOPPED, child.stop_generating, anywhere=True)
        return child

    def stopped(self) -> Level:
        """The stop signal, to await or to subscribe to (row C2)."""
        return Level(self, _STOPPED)

    def killed(self) -> Level:
        """The kill signal, to await or to subscribe to (row C2)."""
        return Level(self, _KILLED)

    def first_token(self) -> Level:
        """The first-token notice of a decode request, to await or to subscribe to."""
        return Level(self, _FIRST_TOKEN)

    def bind(self, loop: asyncio.AbstractEventLoop | None, *, decode: bool) -> None:
        """
        Tell the context where its request runs; the adapter does.

        Args:
            loop: The event loop on which listeners hear of signals; None for the one they run on.
            decode: Whether :meth:`notify_first_token` counts.
        """
        self._loop = loop
        self._decode = decode

    def _set(self, levels: int) -> None:
        with _LOCK:
            new = levels & ~self._levels
            if not new:
                return
            self._levels |= new
            listeners = self._listeners
            if not listeners:
                return
            due = [listener for listener in listeners if listener.level & new]
            self._listeners = [listener for listener in listeners if not listener.level & new]
        for listener in due:
            listener.hear()

    def _listen(
        self,
        level: int,
        callback: Callable[..., None],
        *args: object,
        anywhere: bool = False,
    ) -> _Listener:
        """
        Call back once when *level* is set, on the event loop that listens.

        With *anywhere* the callback runs in the thread that signals.
        """
        loop = None if anywhere else self._loop or _running_loop()
        listener = _Listener(self, level, loop, callback, args)
        with _LOCK:
            if not self._levels & level:
                if self._listeners is None:
                    self._listeners = [listener]
                else:
                    self._listeners.append(listener)
                return listener
        callback(*args)
        return listener

    def _unlisten(self, listener: _Listener) -> None:
        with _LOCK:
            if self._listeners and listener in self._listeners:
                self._listeners.remove(listener)


class Level(Observable[bool]):
    """
    A signal of a context that stays set: awaitable, and an Observable that replays it (row C2).

    As an Observable it emits ``True`` and completes, at once for a late subscriber. A subscriber
    or waiter hears of it on the event loop it subscribed from, whichever thread signals.

    >>> context = RequestContext()
    >>> context.stop_generating()
    >>> _ = context.stopped().subscribe(print)
    True
    """

    def __init__(self, context: RequestContext, level: int) -> None:
        # The base class makes a lock here, for operators that a request's level rarely meets.
        self._context = context
        self._level = level

    @cached_property
    def lock(self) -> threading.RLock:
        """What some ``reactivex`` operators hold while they handle an item."""
        return threading.RLock()

    @property
    def is_set(self) -> bool:
        """Whether the signal was given."""
        return self._context._levels & self._level != 0  # pyright: ignore[reportPrivateUsage]

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* once when the signal comes (at once if it is set); undo by the result."""
        return self._listen(callback).dispose

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
            return self._context._listen(self._level, on_next, True)  # pyright: ignore[reportPrivateUsage]
        return super().subscribe(on_next, on_error, on_completed, scheduler=scheduler)

    def _subscribe_core(
        self,
        observer: abc.ObserverBase[bool],
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        def fire() -> None:
            observer.on_next(True)
            observer.on_completed()

        return self._listen(fire)

    def _listen(self, callback: Callable[..., None], *args: object) -> _Listener:
        return self._context._listen(self._level, callback, *args)  # pyright: ignore[reportPrivateUsage]

    def __await__(self) -> Generator[Any, None, bool]:
        if not self.is_set:
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            unlisten = self.listen(lambda: None if future.done() else future.set_result(True))
            try:
                yield from future
            finally:
                unlisten()
        return True


class _Listener(abc.DisposableBase):
    """One who listens to a level until it is set, or until this is disposed of."""

    __slots__ = ("_args", "_callback", "_context", "_loop", "level")

    def __init__(
        self,
        context: RequestContext,
        level: int,
        loop: asyncio.AbstractEventLoop | None,
        callback: Callable[..., None],
        args: tuple[object, ...],
    ) -> None:
        self._context = context
        self.level = level
        self._loop = loop
        self._callback = callback
        self._args = args

    def dispose(self) -> None:
        self._context._unlisten(self)  # pyright: ignore[reportPrivateUsage]

    def hear(self) -> None:
        """Call back: at once on the listener's event loop, else as soon as that runs."""
        loop = self._loop
        if loop is not None and loop is not _running_loop():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._callback, *self._args)
            return
        try:
            self._callback(*self._args)
        except Exception as error:
            # One listener's bug must not keep the signal from the others.
            _log.error("context listener failed", request_id=self._context.id, **describe(error))


_log = get_logger(__name__)
_FUNCTIONS = (FunctionType, MethodType)
_EMPTY: Mapping[str, str] = MappingProxyType({})


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
