"""One answer in one process, which writes it or follows the writing process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

from operators import SharedStream
from operators.assembly import OpenAnswers
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import Annotated
from rx_backend.resumable._source import OpenedStream
from rx_backend.resumable.jetstream._answer_log import AnswerLog
from rx_backend.resumable.jetstream._continuation import (
    given,
    last_items,
    open_rest,
    rebased,
    stopped,
    unchanged,
)
from rx_backend.resumable.jetstream._entries import Item, Record, Release, TakeOver
from rx_backend.resumable.jetstream._errors import Fenced
from rx_backend.resumable.jetstream._feed import Feed
from rx_backend.resumable.jetstream._follower import Follower, WriterGone
from rx_backend.resumable.jetstream._passed_stop import pass_on_stop
from rx_backend.resumable.jetstream._producer import Producer
from rx_backend.resumable.jetstream._remote_readers import RemoteReaders
from rx_backend.resumable.jetstream._site import Site
from rx_backend.resumption import ResumeState
from rx_backend.stream import ResponseStream

__all__ = ("JetStreamAnswer",)

_RELEASE_S: Final = 2.0


class JetStreamAnswer(OpenedStream):
    """
    The items of one answer, which this or another process writes.

    The writing process hands out items that JetStream has acknowledged. Any other process hands out
    what it reads from JetStream, and takes over when the writer is gone: its own engine then
    continues the answer. A process that is fenced off follows the one that has taken over.

    Args:
        site: The state shared by all answers.
        id: The answer's id.
        subject: Its subject in JetStream.
        record: Its first entry.
        context: The request's context.

    Attributes:
        readers: Its readers in other processes, as `Peers` reports them.
    """

    def __init__(
        self,
        site: Site,
        id: str,
        subject: str,
        record: Record,
        context: RequestContext,
    ) -> None:
        super().__init__(
            self._pull(),
            context=context,
            owner=record.owner,
            created=record.created,
            started_here=False,
        )
        self.id = id
        self._site = site
        self._subject = subject
        self._record = record
        self._producer: Producer | None = None
        self._part: RequestContext | None = None
        self._follower: Follower | None = None
        self._handed_out = 0
        self._is_over = False
        self._is_released = False
        self._shared: SharedStream[Item] | None = None
        self.readers = RemoteReaders()
        self._end_watch = context.stopped().listen(site.peers.notify)

    async def write(self, stream: ResponseStream[Item], answers: OpenAnswers) -> None:
        """
        Start the answer: append its record, and then the items of *stream*.

        Raises:
            BackendError: JetStream rejects the record; the stream is not closed.
        """
        site, writer = self._site, self._record.writer
        log = AnswerLog(site.link, site.options.name, self._subject, answers, writer=writer)
        self._begin_writing(log)
        await log.append(self._record)
        self._producer = Producer(log, stream, unchanged, self._site.options.batch_items)

    def follow(self) -> Follower:
        """Follow the writing process, skipping items that were already handed out."""
        site = self._site
        feed = Feed(site.link, site.options.name, self._subject)
        self._follower = Follower(self.id, feed, self, self._record, self._handed_out)
        site.peers.follow(self._follower)
        return self._follower

    async def _pull(self) -> AsyncGenerator[Item]:
        try:
            while True:
                item = await self._next()
                if item is None:
                    self._is_over = True
                    return
                self._handed_out += 1
                self.readers.item_taken()
                yield item
        except BackendError as error:
            _log.warning("answer can't be continued", stream_id=self.id, **describe(error))
            self.readers.item_taken()
            yield Annotated.from_error(error)
        finally:
            await self._release()

    async def _next(self) -> Item | None:
        """Return the next item; switch between writing and following if needed."""
        while True:
            if self._producer is not None:
                try:
                    return await self._producer.next()
                except Fenced:
                    _log.warning("answer was taken over by another process", stream_id=self.id)
                    await self._end_writing()
            else:
                follower = self._follower or self.follow()
                try:
                    return await follower.next()
                except WriterGone:
                    await self._take_over(follower)

    def _begin_writing(self, log: AnswerLog) -> None:
        self._log = log
        self.started_here = True
        self._site.peers.write(self)

    async def _end_writing(self) -> None:
        self.started_here = False
        self._site.peers.end_writing(self)
        self.readers.close()
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.aclose()
        part, self._part = self._part, None
        if part is not None:
            part.detach()

    async def _end_following(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            self._site.peers.end_following(follower)
            await follower.aclose()

    async def _take_over(self, follower: Follower) -> None:
        """Write the answer from here on, unless another process was faster."""
        site = self._site
        log = AnswerLog.after(follower, site, self._subject)
        # Before others can read that this process writes it.
        self._begin_writing(log)
        try:
            await log.append(TakeOver(log.writer, log.head, site.peers.process))
        except Fenced:
            await self._end_writing()
            follower.renew()
            return
        await self._end_following()
        state = follower.state
        _log.warning(
            "answer taken over from another process",
            stream_id=self.id,
            takeovers=follower.takeovers + 1,
            output_tokens=len(state.token_ids),
        )
        self._producer = await self._rest_of(state, follower)

    async def _rest_of(self, state: ResumeState, follower: Follower) -> Producer:
        """Return a producer of the answer's missing items."""
        options, prepare = self._site.options, unchanged
        limit = options.max_takeovers
        blocker = f"already taken over {limit} times" if follower.takeovers >= limit else None
        if follower.answers.are_over:
            stream = given()
        elif last := last_items(state, follower.answers.left, self.context, blocker):
            stream = given(*last)
        else:
            self._part = self.context.child(f"{self.context.id}/resume-{follower.takeovers + 1}")
            try:
                stream = await open_rest(self._site.adapter, state, self._part)
                prepare = partial(rebased, state)
            except BackendError as error:
                stream = given(Annotated.from_error(error))
        return Producer(self._log, stream, prepare, options.batch_items)

    async def _release(self) -> None:
        """Release everything; a writer first records the answer's state in the log."""
        if self._is_released:
            return
        self._is_released = True
        self._end_watch()
        was_writer = self._producer is not None
        await self._end_writing()
        try:
            if self._follower is not None:
                await pass_on_stop(self._site, self._subject, self._follower, self.context)
        finally:
            await self._end_following()
        if not was_writer:
            # Nor if it was about to be: this process tells others that it is not.
            return
        if not self._is_over:
            await self._give_up()
        if self._is_over or self.context.is_stopped:
            self._site.ended(self._subject)

    async def _give_up(self) -> None:
        """Let another process continue the answer, or end it if it was stopped."""
        log = self._log
        try:
            async with asyncio.timeout(_RELEASE_S):
                if self.context.is_stopped:
                    # After pending items, in which answers may have ended.
                    await log.append_items([], is_end=False)
                    await log.append_items(stopped(log.answers.left), is_end=True)
                else:
                    await log.append(Release(log.writer, log.head))
        except (Fenced, BackendError, TimeoutError) as error:
            _log.debug("answer was not released", stream_id=self.id, **describe(error))

    async def head(self) -> int:
        """
        Return how many items the answer has, in any process.

        Raises:
            CannotConnect: NATS does not respond within ``timeout_s``.
        """
        if self.started_here:
            return self._log.head
        last = await self._site.link.last(self._subject)
        return 0 if last is None else last.entry.first + last.entry.size

    def watch(self, shared: SharedStream[Item]) -> None:
        """Mark the readers of other processes in *shared*, and report its own readers to them."""
        self._shared = shared
        self.readers.watch(shared)

    def fastest(self) -> int | None:
        """Return the position of the fastest reader in this process; None without readers."""
        shared = self._shared
        return shared.fastest if shared is not None and shared.readers else None

    def shut_down(self) -> None:
        """Do nothing: another process may continue the answer."""

    async def aclose(self) -> None:
        """
        End the items; other processes may continue an answer that this one has not completed.

        Idempotent.
        """
        await super().aclose()
        await self._release()

    # Notified by `Peers`.

    @property
    def sequence(self) -> int:
        """The sequence number of the last entry."""
        return self._log.sequence

    def stop_asked(self, *, kill: bool) -> None:
        """Stop the answer at another process's request."""
        if kill:
            self.context.kill()
        else:
            self.context.stop_generating()


_log = get_logger(__name__)
