"""Reading an answer that another process writes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from operators.assembly import OpenAnswers
from rx_backend.resumable.jetstream._entries import Batch, Entry, Item, Record, TakeOver
from rx_backend.resumable.jetstream._errors import LogRemoved
from rx_backend.resumable.jetstream._feed import Feed
from rx_backend.resumption import ResumeState

if TYPE_CHECKING:
    from rx_backend.resumable.jetstream._answer import JetStreamAnswer

__all__ = ("Follower", "WriterGone")


class WriterGone(Exception):
    """No process writes the answer: its writer is gone, or has shut down."""


class Follower:
    """
    The items of an answer, as another process appends them.

    Args:
        id: The answer's id.
        feed: Its entries, from the first one on.
        answer: The answer in this process, which reads them.
        record: The first entry.
        skip: How many items were already handed out.

    Attributes:
        state: The progress of the answer.
        answers: The request's answers, and which of them have ended.
        count: How many items were read, including skipped ones.
        is_over: Whether the answer is complete.
        takeovers: How often it was taken over.
        writer_process: The process that writes it.
    """

    def __init__(
        self, id: str, feed: Feed, answer: JetStreamAnswer, record: Record, skip: int
    ) -> None:
        self.id = id
        self.state = ResumeState(record.open_request())
        self.answers = OpenAnswers(self.state.request.sampling_options.n or 1)
        self.count = 0
        self.is_over = False
        self.takeovers = 0
        self.writer_process = record.process
        self._feed = feed
        self._answer = answer
        self._skip = skip
        self._has_record = False
        self._is_writer_gone = False
        # The writer's last entry, according to its last reply.
        self._told = 0
        self._items: deque[Item] = deque()

    @property
    def sequence(self) -> int:
        """The sequence number of the last entry that was read."""
        return self._feed.sequence

    async def next(self) -> Item | None:
        """
        Return the next item; None at the end.

        Raises:
            WriterGone: All entries have been read, and no process writes more.
            LogRemoved: Items are missing.
            BackendError: JetStream rejects reading, or an entry has an unknown form.
        """
        while not self._items:
            if self.is_over:
                return None
            entry = await self._feed.get()
            if entry is not None:
                self._read(entry)
            elif self._is_writer_gone:
                raise WriterGone
        return self._items.popleft()

    def _read(self, entry: Entry) -> None:
        if not self._has_record and not isinstance(entry, Record):
            raise LogRemoved(_GONE)
        self._has_record = True
        if isinstance(entry, Batch):
            self._read_items(entry)
        elif isinstance(entry, TakeOver):
            self.takeovers += 1
            self.writer_process = entry.process
            self._is_writer_gone = False
        elif not isinstance(entry, Record):
            self.writer_lost()

    def _read_items(self, batch: Batch) -> None:
        if batch.first != self.count:
            raise LogRemoved(_GONE)
        for item in batch.open_items():
            self.count += 1
            if item.data is not None:
                self.state.add(item.data)
            if self.count > self._skip:
                self._items.append(item)
        batch.end(self.answers)
        self.is_over = batch.is_end

    async def read_to(self, sequence: int) -> None:
        """
        Read the entries up to *sequence*, even if no process writes more.

        Raises:
            BackendError: As :meth:`next`.
        """
        while self.sequence < sequence:
            entry = await self._feed.get()
            if entry is not None:
                self._read(entry)

    def renew(self) -> None:
        """Continue to read after another process was faster to take over."""
        self._is_writer_gone = False
        self._feed.renew()

    # Notified by `Peers`.

    def position(self) -> int | None:
        """Return the position of the fastest reader here; None without readers."""
        return self._answer.fastest()

    def stop_wanted(self) -> bool | None:
        """Return None unless the answer is to be stopped; then whether it is to be killed."""
        context = self._answer.context
        return context.is_killed if context.is_stopped else None

    def writer_at(self, sequence: int) -> None:
        """Request missing entries again; *sequence* is the writer's last."""
        self._is_writer_gone = False
        if self._told > self._feed.last_arrived:
            self._feed.renew()
        self._told = sequence

    def writer_lost(self) -> None:
        """
        Let a waiting reader take over the answer.

        The writer has been silent for ``lease_s``, or no longer writes it.
        """
        self._is_writer_gone = True
        self._feed.interrupt()

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        await self._feed.aclose()


_GONE = "some of the answer's items were removed"
