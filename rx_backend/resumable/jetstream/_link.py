"""The connection to NATS, which reconnects, and the JetStream stream of all answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from operators.assembly import done, start_task
from rx_backend.errors import BackendError, CannotConnect, Disconnected, Unknown
from rx_backend.logger import describe, get_logger
from rx_backend.resumable.jetstream._client import EndingClient
from rx_backend.resumable.jetstream._connecting import addresses, check_key_files, not_connected
from rx_backend.resumable.jetstream._entries import Entry, decode
from rx_backend.resumable.jetstream._options import Options
from rx_backend.resumable.jetstream._stored_stream import ensure_stream, is_full, refused

__all__ = ("Link", "Stored")

T = TypeVar("T")
MessageCallback: TypeAlias = Callable[[Msg], Awaitable[None]]

_RECONNECT_S: Final = 0.25
# How long to wait before retrying a call that failed although connected.
_PAUSE_S: Final = 0.1


class Stored(NamedTuple):
    """
    A stored entry.

    Attributes:
        entry: The entry.
        sequence: Its sequence number.
        time: When the server stored it, in seconds since the epoch.
    """

    entry: Entry
    sequence: int
    time: float


class Link:
    """
    One process's connection to NATS, which reconnects indefinitely.

    Args:
        servers: URLs of NATS servers.
        options: The options of the source.

    Attributes:
        client: The client, connected or connecting.
        jetstream: Its JetStream API.
    """

    client: EndingClient
    jetstream: JetStreamContext

    def __init__(self, servers: Sequence[str], options: Options) -> None:
        self._servers = list(servers)
        self._addresses = addresses(servers)
        self._options = options
        self._last_failure: Exception | None = None
        self._is_up = asyncio.Event()
        self._is_closing = False
        self._on_reconnect: set[Callable[[], None]] = set()
        # Subscriptions for the lifetime of the link.
        self._heard: list[tuple[str, MessageCallback]] = []
        self._reopening: asyncio.Task[None] | None = None
        self._renew_client()

    def _renew_client(self) -> None:
        self.client = EndingClient()
        self.jetstream = JetStreamContext(self.client, timeout=self._options.timeout_s)

    async def open(self) -> None:
        """
        Connect, and create the JetStream stream if it is missing.

        Raises:
            CannotConnect: Within ``timeout_s`` no server responds, accepts the user and has
                JetStream.
            InvalidArgument: The stream exists with an unsuitable configuration, or a client option
                is invalid.
        """
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await self._connect()
                await ensure_stream(self.jetstream, self._options)
        except TimeoutError as error:
            await self.aclose()
            text = f"NATS at {self._addresses} did not respond within {self._options.timeout_s:g} s"
            if self._last_failure is not None:
                text += f": {self._last_failure}"
            raise CannotConnect(text) from error
        except BaseException:
            await self.aclose()
            raise

    async def _connect(self) -> None:
        connect = self._options.connect
        further: dict[str, Any] = {"reconnect_time_wait": _RECONNECT_S, **connect}
        check_key_files(connect)
        try:
            await self.client.connect(
                self._servers,
                **further,
                # A refusal ends the first attempt; further attempts of this client would leak
                # sockets.
                allow_reconnect=False,
                max_reconnect_attempts=-1,
                error_cb=self._failed,
                disconnected_cb=self._went_down,
                reconnected_cb=self._came_up,
                closed_cb=self._was_closed,
            )
        except Exception as error:
            raise not_connected(self._servers, connect, error) from error
        self.client.options["allow_reconnect"] = True
        self._is_up.set()

    async def listen(self, subject: str, callback: MessageCallback) -> None:
        """Call *callback* with each message of a subject, until the link is closed."""
        self._heard.append((subject, callback))
        await self.client.subscribe(subject, cb=callback)

    async def _failed(self, error: Exception) -> None:
        self._last_failure = error
        _log.debug("connection to NATS failed", **describe(error))

    async def _went_down(self) -> None:
        if self._is_up.is_set():
            self._is_up.clear()
            _log.warning("connection to NATS lost", servers=self._addresses)

    async def _was_closed(self) -> None:
        """Reconnect with a new client: a refusal, such as too many connections, closes the old one."""
        await self._went_down()
        if not self._is_closing and self._reopening is None:
            self._reopening = start_task(self._reopen(), asyncio.get_running_loop())

    async def _reopen(self) -> None:
        while True:
            await asyncio.sleep(_RECONNECT_S)
            self._renew_client()
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    await self._connect()
                    for subject, callback in self._heard:
                        await self.client.subscribe(subject, cb=callback)
            except (BackendError, TimeoutError, nats.errors.Error, OSError) as error:
                _log.debug("connection to NATS failed", **describe(error))
                self._is_up.clear()
                await self.client.end()
            else:
                self._reopening = None
                await self._came_up()
                return

    async def _came_up(self) -> None:
        _log.info("connection to NATS restored", servers=self._addresses)
        self._is_up.set()
        for callback in list(self._on_reconnect):
            callback()

    @property
    def is_up(self) -> bool:
        """Whether the connection is up."""
        return self._is_up.is_set()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* after each reconnect; return a function that ends that."""
        self._on_reconnect.add(callback)
        return lambda: self._on_reconnect.discard(callback)

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """
        Call *call* until it returns or is rejected, retrying after a lost connection or a timeout.

        Raises:
            nats.js.errors.APIError: JetStream rejected the call.
            Disconnected: The client was closed.
        """
        while True:
            await self._connected()
            try:
                return await call()
            except (ServiceUnavailableError, NoStreamResponseError) as error:
                if is_full(error):
                    raise
                await self._check_stream_is_there(error)
            except APIError:
                raise
            except (nats.errors.Error, OSError) as error:
                _log.debug("call to NATS failed", **describe(error))
            await asyncio.sleep(_PAUSE_S)

    async def _connected(self) -> None:
        while not self._is_up.is_set():
            if self._is_closing:
                raise Disconnected("the connection to NATS was closed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_up.wait(), 1.0)

    async def _check_stream_is_there(self, cause: Exception) -> None:
        """Raise if the stream was deleted; a server that is not ready yet may be retried."""
        try:
            await self.jetstream.stream_info(self._options.name)
        except NotFoundError:
            raise Unknown(f"the JetStream stream {self._options.name!r} was deleted") from cause
        except (nats.errors.Error, OSError):
            return

    async def first(self, subject: str) -> Stored | None:
        """Return the oldest entry of a subject; None if there is none."""
        return await self._stored(subject, seq=1, next=True)

    async def last(self, subject: str) -> Stored | None:
        """Return the newest entry of a subject; None if there is none."""
        return await self._stored(subject)

    async def _stored(self, subject: str, **which: Any) -> Stored | None:
        name, get = self._options.name, self.jetstream.get_msg
        try:
            async with asyncio.timeout(self._options.timeout_s):
                found = await self.insist(lambda: get(name, subject=subject, **which))
        except NotFoundError:
            return None
        except APIError as error:
            raise refused(error, f"read {subject}") from error
        except TimeoutError as error:
            raise CannotConnect(f"NATS did not respond: read {subject}") from error
        stored = found.time.timestamp() if found.time else 0.0
        return Stored(decode(found.data or b"", subject), found.seq or 0, stored)

    async def purge(self, subject: str) -> None:
        """
        Remove all entries of a subject.

        Raises:
            BackendError: NATS rejects it, or does not respond.
        """
        try:
            await self.jetstream.purge_stream(self._options.name, subject=subject)
        except (nats.errors.Error, OSError) as error:
            raise refused(error, f"purge {subject}") from error

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        self._is_closing = True
        self._is_up.clear()
        if self._reopening is not None:
            self._reopening.cancel()
            await done(self._reopening)
        self._on_reconnect.clear()
        await self.client.end()


_log = get_logger(__name__)
