"""Appending to the log of one answer, as its only writer."""

from __future__ import annotations

import secrets
from typing import Final, Self

from msgspec.structs import replace
from nats.js.api import Header
from nats.js.errors import APIError, NotFoundError

from operators.assembly import OpenAnswers
from rx_backend.resumable._errors import check_item
from rx_backend.resumable.jetstream._entries import Batch, Entry, Item, decode, encode, to_wire
from rx_backend.resumable.jetstream._errors import EntryTooLarge, Fenced, LogRemoved
from rx_backend.resumable.jetstream._follower import Follower
from rx_backend.resumable.jetstream._link import Link
from rx_backend.resumable.jetstream._site import Site
from rx_backend.resumable.jetstream._stored_stream import refused

__all__ = ("AnswerLog", "new_writer")

_WRONG_LAST_SEQUENCE: Final = 10071
# Room for the headers, which also count: the server closes the connection if a message is too
# large.
_HEADERS: Final = 512


def new_writer() -> str:
    """Return a random name for a writer."""
    return secrets.token_hex(8)


class AnswerLog:
    """
    The entries of one answer, for one writer.

    Each entry is appended directly after the last known one, by its sequence number, or not at all.
    So two writers never interleave: the second one is fenced off. An entry whose acknowledgement
    was lost is looked up before it is appended again.

    Args:
        link: The connection.
        name: The JetStream stream.
        subject: The answer's subject.
        answers: The request's answers, some of which may have ended.
        writer: The name of the writer, which has not appended anything yet; random by default.
        sequence: The sequence number of the last entry; 0 for a new answer.
        head: How many items there are.

    Attributes:
        writer: The writer's name, which identifies its own entries.
        answers, sequence, head: As given, and updated by :meth:`append`.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        subject: str,
        answers: OpenAnswers,
        *,
        writer: str | None = None,
        sequence: int = 0,
        head: int = 0,
    ) -> None:
        self.writer = new_writer() if writer is None else writer
        self.answers = answers
        self.sequence = sequence
        self.head = head
        self._link = link
        self._name = name
        self._subject = subject

    @classmethod
    def after(cls, follower: Follower, site: Site, subject: str) -> Self:
        """Return the log for a new writer, after all entries that *follower* has read."""
        return cls(
            site.link,
            site.options.name,
            subject,
            follower.answers,
            sequence=follower.sequence,
            head=follower.count,
        )

    async def append(self, entry: Entry) -> None:
        """
        Append an entry and wait until JetStream has it, however long NATS is unavailable.

        Raises:
            Fenced: Another writer has appended in the meantime; nothing was appended.
            LogRemoved: The earlier entries were removed.
            StreamFull, EntryTooLarge, BackendError: JetStream rejected the entry.
        """
        while True:
            data = encode(entry)
            if len(data) > self._link.client.max_payload - _HEADERS:
                raise EntryTooLarge(
                    f"append to {self._subject}: {len(data):,} bytes, more than the server's "
                    "max_payload"
                )
            try:
                await self._link.insist(lambda data=data: self._publish(data))
            except APIError as error:
                if error.err_code != _WRONG_LAST_SEQUENCE:
                    raise refused(error, f"append to {self._subject}") from error
                found, stored = await self._last_own()
                self._note(found)
                if stored == data:
                    return
                # It was appended by an earlier, cancelled call: this entry goes after it.
                entry = replace(entry, first=self.head)
            else:
                self._note(entry)
                return

    async def _publish(self, data: bytes) -> None:
        headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(self.sequence)}
        ack = await self._link.jetstream.publish(self._subject, data, headers=headers)
        self.sequence = ack.seq

    async def _last_own(self) -> tuple[Entry, bytes]:
        """
        Return the last entry, whose acknowledgement this writer has lost, and its bytes.

        Raises:
            Fenced: It is another writer's.
        """
        try:
            last = await self._link.insist(
                lambda: self._link.jetstream.get_last_msg(self._name, self._subject)
            )
        except NotFoundError:
            raise LogRemoved(f"{self._subject}: the entries were removed") from None
        except APIError as error:
            raise refused(error, f"read {self._subject}") from error
        stored = last.data or b""
        entry = decode(stored, self._subject)
        if entry.writer != self.writer or last.seq is None or last.seq <= self.sequence:
            raise Fenced
        self.sequence = last.seq
        return entry, stored

    def _note(self, entry: Entry) -> None:
        """Update the state for *entry*, the last one."""
        self.head = entry.first + entry.size
        if isinstance(entry, Batch):
            entry.end(self.answers)

    async def append_items(self, items: list[Item], *, is_end: bool) -> None:
        """
        Append items as one entry, as :meth:`append` does.

        Raises:
            InvalidArgument: One has no wire form, or is not an ``Annotated``.
        """
        for item in items:
            check_item(item)
        wire = [to_wire(item) for item in items]
        await self.append(Batch(self.writer, self.head, wire, is_end))
