"""The entries of one answer as they are appended, across lost connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from rx_backend.resumable.jetstream._entries import Entry, decode
from rx_backend.resumable.jetstream._link import Link
from rx_backend.resumable.jetstream._stored_stream import refused

__all__ = ("Feed",)

# A consumer that was not deleted is removed by the server after this time.
_INACTIVE_S = 30.0


class Feed:
    """
    The entries of one subject, in order, each once.

    They come from a JetStream consumer that is created at the first :meth:`get`, and recreated,
    after the last entry, when the connection was lost or :meth:`renew` is called.

    Args:
        link: The connection.
        name: The JetStream stream.
        subject: The answer's subject.

    Attributes:
        sequence: The sequence number of the last entry that was handed out; 0 before the first.
        last_arrived: That of the last entry received.
    """

    def __init__(self, link: Link, name: str, subject: str) -> None:
        self.sequence = 0
        self.last_arrived = 0
        self._link = link
        self._name = name
        self._subject = subject
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._wake = asyncio.Event()
        self._is_interrupted = False
        self._is_stale = True
        self._subscription: Subscription | None = None
        self._consumer: str | None = None
        self._end_watch: Callable[[], None] = link.on_reconnect(self.renew)

    def renew(self) -> None:
        """Request the entries after the last one again: some may have been missed."""
        self._is_stale = True
        self._wake.set()

    def interrupt(self) -> None:
        """Make a pending :meth:`get`, or the next one, return None."""
        self._is_interrupted = True
        self._wake.set()

    async def get(self) -> Entry | None:
        """
        Wait for the next entry; return None if interrupted.

        Raises:
            Disconnected: The link was closed.
            BackendError: JetStream rejects reading the stream.
        """
        while not self._arrived:
            if self._is_stale:
                await self._subscribe()
            elif self._is_interrupted:
                self._is_interrupted = False
                return None
            else:
                self._wake.clear()
                await self._wake.wait()
        self.sequence, data = self._arrived.popleft()
        return decode(data, self._subject)

    async def _subscribe(self) -> None:
        """Replace the consumer by one that starts after the last entry."""
        try:
            await self._link.insist(self._add_consumer)
        except APIError as error:
            raise refused(error, f"read {self._subject}") from error

    async def _add_consumer(self) -> None:
        await self._unsubscribe()
        self._is_stale = False
        try:
            client = self._link.client
            # With its own inbox, so that messages of an earlier consumer don't mix with its.
            arrive = partial(self._arrive, count(1))
            self._subscription = await client.subscribe(client.new_inbox(), cb=arrive)
            config = ConsumerConfig(
                deliver_subject=self._subscription.subject,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self.last_arrived + 1,
                filter_subject=self._subject,
                ack_policy=AckPolicy.NONE,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=_INACTIVE_S,
            )
            info = await self._link.jetstream.add_consumer(self._name, config)  # pyright: ignore[reportUnknownMemberType]
            self._consumer = info.name
        except BaseException:
            self._is_stale = True
            raise

    async def _arrive(self, numbers: Iterator[int], message: Msg) -> None:
        if self._is_stale:
            return
        sequence = message.metadata.sequence
        if sequence.consumer != next(numbers):
            # A previous message was lost in transit.
            self.renew()
            return
        self.last_arrived = sequence.stream
        self._arrived.append((sequence.stream, message.data))
        self._wake.set()

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, None
        if subscription is None or self._link.client.is_closed:
            return
        try:
            await subscription.unsubscribe()
            if consumer is not None and self._link.is_up:
                await self._link.jetstream.delete_consumer(self._name, consumer)
        except (nats.errors.Error, OSError):
            # Without a subscription the server removes the consumer by itself.
            return

    async def aclose(self) -> None:
        """Delete the consumer. Idempotent."""
        self._end_watch()
        await self._unsubscribe()
