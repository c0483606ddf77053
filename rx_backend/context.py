"""One request's context: its identity, and its cancellation signals (rows C1-C4)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rx_backend.latched_signal import LatchedSignal, Latches, Listener

__all__ = ("LatchedSignal", "RequestContext", "WastedTokens")


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

    Cancellation signals are latched: once set they stay set, and every later waiter or subscriber
    sees them at once (row C1). They may be set from any thread and from a `signal.signal` handler,
    any number of times (row C3). In such a handler, subscribers on the event loop of its thread are
    called in the handler itself; to have them called by the loop, use ``loop.add_signal_handler``.

    Args:
        id: Request id; a random one when left out.
        metadata: Propagated metadata; a snapshot is taken.
        trace_headers: Inbound W3C trace headers (``traceparent``, ``tracestate``), names in any
            case. The request's span becomes a child of that remote parent (row P1).

    Attributes:
        trace_headers: The trace headers, names in lower case; without a ``traceparent`` among those
            given, the ones in *metadata*.
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
        "_following",
        "_latches",
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
        self.trace_headers = (
            _trace_headers(trace_headers, metadata) if trace_headers or metadata else _EMPTY
        )
        self.queued_s = None
        self.wasted = None
        self._latches = Latches(self.id)
        self._decode = False
        self._following: tuple[Listener, ...] = ()

    def __repr__(self) -> str:
        state = "killed" if self.is_killed else "stopped" if self.is_stopped else "live"
        return f"RequestContext({self.id!r}, {state})"

    @property
    def is_stopped(self) -> bool:
        """Whether the request was asked to stop, gracefully or by :meth:`kill`."""
        return self._latches.stopped

    @property
    def is_killed(self) -> bool:
        """Whether the request was asked to stop at once."""
        return self._latches.killed

    @property
    def defers_abort(self) -> bool:
        """Whether an abort waits for the first token, as on a decode worker (row A4)."""
        return self._decode

    def stop_generating(self) -> None:
        """Ask the engine to end the request gracefully."""
        self._latches.set("stopped")

    def kill(self) -> None:
        """Ask the engine to end the request at once; a killed request also counts as stopped."""
        # The kill first: whoever sees the stop of a kill can see that it is one.
        self._latches.set("killed", "stopped")

    def notify_first_token(self) -> None:
        """
        Tell the library that the first token exists, before any chunk shows it.

        Releases a deferred abort (row A4). Idempotent, and a no-op outside decode mode (row C4).
        """
        if self._decode:
            self._latches.set("first_token")

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
        child.bind(self._latches.loop, decode=self._decode)
        if self.wasted is None:
            self.wasted = WastedTokens()
        child.wasted = self.wasted
        child._following = (
            self._latches.listen("killed", child._follow, self, anywhere=True),
            self._latches.listen("stopped", child._follow, self, anywhere=True),
        )
        return child

    def detach(self) -> None:
        """Stop following the parent's signals; for a :meth:`child` whose part is over. Idempotent."""
        for listener in self._following:
            listener.dispose()
        self._following = ()

    def stopped(self) -> LatchedSignal:
        """The stop signal, to await or to subscribe to (row C2)."""
        return LatchedSignal(self._latches, "stopped")

    def killed(self) -> LatchedSignal:
        """The kill signal, to await or to subscribe to (row C2)."""
        return LatchedSignal(self._latches, "killed")

    def first_token(self) -> LatchedSignal:
        """The first-token notice of a decode request, to await or to subscribe to."""
        return LatchedSignal(self._latches, "first_token")

    def bind(self, loop: asyncio.AbstractEventLoop | None, *, decode: bool) -> None:
        """
        Tell the context where its request runs; the adapter does.

        Args:
            loop: The event loop on which listeners are notified that subscribe outside of any.
            decode: Whether :meth:`notify_first_token` counts.
        """
        self._latches.loop = loop
        self._decode = decode

    def _follow(self, parent: RequestContext) -> None:
        """Set the signal that *parent* has; the stop of a kill sets the kill too."""
        if parent.is_killed:
            self.kill()
        else:
            self.stop_generating()


_EMPTY: Mapping[str, str] = MappingProxyType({})


def _trace_headers(
    given: Mapping[str, str] | None, metadata: Mapping[str, str] | None
) -> Mapping[str, str]:
    headers = _lower_case(given) if given else {}
    if metadata and "traceparent" not in headers:
        found = _lower_case(metadata)
        if "traceparent" in found:
            names = found.keys() & {"traceparent", "tracestate"}
            headers = {**headers, **{name: found[name] for name in names}}
    return MappingProxyType(headers) if headers else _EMPTY


def _lower_case(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* with their names in lower case; one that has it already wins."""
    lower = {name.lower(): value for name, value in headers.items()}
    return lower | {name: value for name, value in headers.items() if name in lower}
