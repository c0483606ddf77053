"""Pushing a request's items to the runtime."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Protocol

import msgspec

from rx_backend.errors import Unknown
from rx_backend.telemetry.metrics import COALESCED

__all__ = ("ClientLeft", "Outlet", "ResponseSender")

# The room in the buffers if a client reads nothing: the runtime's own queue takes 128 frames of any
# size, a socket with Linux's defaults at least 46 kB. The second is a frame's overhead per item.
_SURE_BYTES: Final = 65_536
_FRAME_BYTES: Final = 48
# How many items may wait for a slow client before the engine waits.
_MOST_WAITING: Final = 256
_MERGED: Final = frozenset(("token_ids", "text", "index"))


class ResponseSender(Protocol):
    """The runtime's sender of one request's items."""

    def send(self, obj: object, /) -> None:
        """Encode and send an item; block while the buffers to the client are full."""
        ...

    def close(self) -> None:
        """End the stream."""
        ...


class ClientLeft(Exception):
    """The runtime takes no more items: the client has disconnected or stopped the request."""


class Outlet:
    """
    Send one request's items to the runtime without blocking the event loop.

    The runtime's ``send`` blocks while the buffers to the client are full, which can't be checked
    beforehand. So items are sent on the event loop only while they fit into the buffers even if the
    client has read nothing, and in a thread after that. Items that arrive while the thread works
    wait, merged where possible.

    Args:
        sender: The runtime's sender.
        merge: Whether to merge waiting plain chunks of the same answer.
    """

    __slots__ = (
        "_count",
        "_failure",
        "_is_draining",
        "_is_due",
        "_lock",
        "_merges",
        "_room",
        "_sender",
        "_sure_bytes",
        "_waiting",
    )

    def __init__(self, sender: ResponseSender, *, merge: bool) -> None:
        self._sender = sender
        self._merges = merge
        self._sure_bytes = _SURE_BYTES
        self._waiting: list[dict[str, Any]] = []
        self._count = 0
        self._is_due = False
        # Guards what the thread and the event loop share.
        self._lock = threading.Lock()
        self._is_draining = False
        # Not an exception raised here: its traceback would refer to us.
        self._failure: tuple[type[Exception], str] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether so many items wait that the caller must await :meth:`room` before the next."""
        return self._count >= _MOST_WAITING

    def send_soon(self, wire: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        """Send an item in the event loop's next turn, with those that arrive until then."""
        self._put(wire)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._send_due)

    def send(self, wire: dict[str, Any]) -> bool:
        """
        Send an item now, after those that wait; return whether :meth:`room` must be awaited next.

        Raises:
            ClientLeft: The runtime takes no more items.
            Unknown: It could not encode one.
        """
        if self._sure_bytes > 0 and not self._waiting and self._failure is None:
            # The hot path of most tokens.
            COALESCED.chunks_in += 1
            self._send_now(wire)
            return False
        self._put(wire)
        self._send_waiting()
        self._check_failure()
        return self.is_full

    def _put(self, wire: dict[str, Any]) -> None:
        """Queue an item."""
        COALESCED.chunks_in += 1
        with self._lock:
            self._count += 1
            if not (self._merges and self._waiting and _merge(self._waiting[-1], wire)):
                self._waiting.append(wire)

    def _send_due(self) -> None:
        self._is_due = False
        self._send_waiting()

    def _check_failure(self) -> None:
        if self._failure is not None:
            kind, message = self._failure
            if kind is Unknown:
                # An error item follows, instead of the items after it.
                with self._lock:
                    self._failure = None
                    self._take()
            raise kind(message)

    def _send_waiting(self) -> None:
        if self._is_draining or not self._waiting or self._failure is not None:
            return
        if self._sure_bytes > 0:
            self._send_all(self._take())
        else:
            self._is_draining = True
            _threads.start(self._drain)

    async def room(self) -> None:
        """Wait until the thread has taken the queued items."""
        room = asyncio.get_running_loop().create_future()
        with self._lock:
            if not self._is_draining:
                return
            self._room = room
        await room

    async def finish(self, last: dict[str, Any] | None = None) -> None:
        """
        Send the queued items, then *last*; return when the runtime has taken it, or takes no more.

        Raises:
            Unknown: An item could not be encoded.
        """
        if last is not None:
            self._put(last)
        with suppress(ClientLeft):
            self._send_waiting()
            while self._is_draining:
                await self.room()
            self._check_failure()

    def close(self) -> None:
        """End the stream, also for the client."""
        self._sender.close()

    def _drain(self) -> None:
        """Send the queued items, in a thread, until none are left."""
        while True:
            with self._lock:
                wires = self._take()
                self._is_draining = bool(wires) and self._failure is None
                room, self._room = self._room, None
            if room is not None:
                _wake(room)
            if not self._is_draining:
                return
            self._send_all(wires)

    def _take(self) -> list[dict[str, Any]]:
        wires, self._waiting = self._waiting, []
        self._count = 0
        return wires

    def _send_all(self, wires: list[dict[str, Any]]) -> None:
        try:
            for wire in wires:
                self._send_now(wire)
        except ClientLeft as error:
            self._failure = ClientLeft, str(error)
        except Unknown as error:
            self._failure = Unknown, error.message

    def _send_now(self, wire: dict[str, Any]) -> None:
        COALESCED.chunks_out += 1
        try:
            if self._sure_bytes > 0:
                self._sure_bytes -= len(_encode(wire)) + _FRAME_BYTES
            self._sender.send(wire)
        except RuntimeError as error:
            raise ClientLeft(str(error)) from None
        except (OverflowError, TypeError, ValueError) as error:
            raise Unknown(f"an item could not be encoded: {error}") from None


def _merge(first: dict[str, Any], wire: dict[str, Any]) -> bool:
    """If both are plain chunks of one answer, add *wire* to *first* and return True."""
    keys = first.keys()
    if not (keys == wire.keys() <= _MERGED and first.get("index") == wire.get("index")):
        return False
    first["token_ids"] += wire["token_ids"]
    if "text" in keys:
        first["text"] += wire["text"]
    return True


def _wake(waiter: asyncio.Future[None]) -> None:
    """Wake a waiter in another thread's event loop, which may be closed."""

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    with suppress(RuntimeError):
        waiter.get_loop().call_soon_threadsafe(wake)


class _Threads:
    """Daemon threads, one more whenever all are busy, so that a blocked one delays no other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def start(self, job: Callable[[], None]) -> None:
        """Run *job*, which must not raise, in a thread."""
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._run, name="rx-backend-send", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()
            self._idle.release()


_threads = _Threads()
_encode = msgspec.msgpack.encode
