"""Exchange between processes about answers: positions of readers, and stops."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from operators.assembly import done, start_task
from rx_backend.logger import describe, get_logger
from rx_backend.resumable.jetstream._follower import Follower
from rx_backend.resumable.jetstream._link import Link
from rx_backend.resumable.jetstream._options import Options
from rx_backend.resumable.jetstream._peer_messages import (
    NO_READERS,
    Call,
    Reply,
    decode_message,
    encode,
    parts,
)

if TYPE_CHECKING:
    from rx_backend.resumable.jetstream._answer import JetStreamAnswer

__all__ = ("Peers",)

# How often the positions of readers are checked.
_TICK_S: Final = 0.05
_IDLE_S: Final = 1.0
# How often a process calls another within the time after which a silent one counts as gone.
_CALLS_PER_LEASE: Final = 4


class Peers:
    """
    The other processes.

    One task checks the answers that are followed here. It sends the writing processes the positions
    of their readers and stops; replies show that those processes are alive.

    Attributes:
        process: The random name of this process.
    """

    def __init__(self, link: Link, options: Options) -> None:
        self.process = secrets.token_hex(8)
        self._link = link
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._written: dict[str, JetStreamAnswer] = {}
        self._call_s = options.lease_s / _CALLS_PER_LEASE
        # Pending questions: an answer's id, and whether the called process writes it.
        self._asked: list[tuple[str, asyncio.Future[bool]]] = []
        # Process and id of answers that are no longer followed.
        self._gone: list[tuple[str, str]] = []
        # Followed answers, with the position last sent to the writer.
        self._followed: dict[Follower, int | None] = {}
        self._heard: dict[str, float] = {}
        # When another process last reported readers of an answer.
        self._readers: dict[tuple[str, str], float] = {}
        self._up_since = 0.0
        self._last_tick = 0.0
        self._next_call = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen to other processes."""
        subject = self._options.process_subject(self.process)
        await self._link.listen(subject, self._receive)
        self._up_since = self._last_tick = self._clock()
        self._link.on_reconnect(self._came_up)
        self._task = start_task(self._run(), asyncio.get_running_loop())

    def _came_up(self) -> None:
        self._up_since = self._clock()

    def write(self, answer: JetStreamAnswer) -> None:
        """Record that this process writes *answer* from now on."""
        self._written[answer.id] = answer

    def end_writing(self, answer: JetStreamAnswer) -> None:
        """Record that this process no longer writes *answer*. Idempotent."""
        if self._written.get(answer.id) is answer:
            del self._written[answer.id]
            for key in [key for key in self._readers if key[0] == answer.id]:
                del self._readers[key]

    def follow(self, answer: Follower) -> None:
        """Report the readers of *answer* here to its writer, now and from now on."""
        self._followed[answer] = None
        self._heard.setdefault(answer.writer_process, self._clock())
        self.notify()

    def end_following(self, answer: Follower) -> None:
        """Record that *answer* is no longer followed here. Idempotent."""
        if self._followed.pop(answer, None) is not None:
            self._gone.append((answer.writer_process, answer.id))
            self.notify()

    async def send_stop(self, answer: Follower, *, kill: bool) -> bool:
        """
        Send a stop to the writer of *answer*; return whether it does write the answer.

        A process that is silent for ``lease_s`` does not.
        """
        written = asyncio.get_running_loop().create_future()
        asked = (answer.id, written)
        self._asked.append(asked)
        try:
            call = Call(self.process, True, {answer.id: NO_READERS}, {answer.id: kill})
            await self._send(answer.writer_process, call)
            async with asyncio.timeout(self._options.lease_s):
                return await written
        except TimeoutError:
            return False
        finally:
            self._asked.remove(asked)

    def notify(self) -> None:
        """Check the answers now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._tick(self._clock())
            except (nats.errors.Error, OSError) as error:
                _log.debug("call to other processes failed", **describe(error))
            busy = self._followed or self._readers
            try:
                async with asyncio.timeout(_TICK_S if busy else _IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _tick(self, now: float) -> None:
        if not self._link.is_up or now - self._last_tick > self._options.lease_s / 2:
            # This process may have been blocked or offline, so silence before now does not count.
            self._up_since = now
        self._last_tick = now
        if not self._link.is_up:
            return
        await self._send_calls(is_due=now >= self._next_call)
        if now >= self._next_call:
            self._next_call = now + self._call_s
            self._look_for_silence(now)

    async def _send_calls(self, *, is_due: bool) -> None:
        calls: defaultdict[str, tuple[dict[str, int], dict[str, bool]]]
        calls = defaultdict(lambda: ({}, {}))
        still = {answer.id for answer in self._followed}
        for process, gone in self._gone:
            if gone not in still:
                calls[process][0][gone] = NO_READERS
        self._gone.clear()
        for answer, told in self._followed.items():
            position, stop = answer.position(), answer.stop_wanted()
            position = NO_READERS if position is None else position
            if is_due or position != told or stop is not None:
                self._followed[answer] = position
                readers, stops = calls[answer.writer_process]
                readers[answer.id] = position
                if stop is not None:
                    stops[answer.id] = stop
        for process, (readers, stops) in calls.items():
            for part in parts(readers):
                stopped = {each: stops[each] for each in part if each in stops}
                await self._send(process, Call(self.process, is_due, part, stopped))

    def _look_for_silence(self, now: float) -> None:
        limit = now - self._options.lease_s
        if self._up_since > limit:
            return
        for answer in list(self._followed):
            if self._heard.get(answer.writer_process, now) < limit:
                answer.writer_lost()
        for (read, process), heard in list(self._readers.items()):
            if heard < limit:
                self._reader_left(read, process)
        followed = {answer.writer_process for answer in self._followed}
        for process in self._heard.keys() - followed:
            del self._heard[process]

    def _reader_left(self, id: str, process: str) -> None:
        self._readers.pop((id, process), None)
        if id in self._written:
            self._written[id].readers.left(process)

    async def _send(self, process: str, message: Call | Reply) -> None:
        await self._link.client.publish(self._options.process_subject(process), encode(message))

    async def _receive(self, message: Msg) -> None:
        try:
            received = decode_message(message.data)
        except msgspec.MsgspecError as error:
            _log.warning("unexpected message from another process", error=str(error))
            return
        if isinstance(received, Call):
            await self._called(received)
        else:
            self._replied(received)

    async def _called(self, call: Call) -> None:
        now, unknown, sequences = self._clock(), list[str](), dict[str, int]()
        for read, position in call.readers.items():
            answer = self._written.get(read)
            if answer is None:
                unknown.append(read)
                continue
            sequences[read] = answer.sequence
            if position == NO_READERS:
                self._reader_left(read, call.process)
            else:
                self._readers[read, call.process] = now
                answer.readers.moved(call.process, position)
        for stopped, kill in call.stops.items():
            if stopped in self._written:
                self._written[stopped].stop_asked(kill=kill)
        if call.wants_reply or unknown:
            await self._send(call.process, Reply(self.process, sequences, unknown))

    def _replied(self, reply: Reply) -> None:
        self._heard[reply.process] = self._clock()
        unknown = set(reply.unknown)
        for asked, written in self._asked:
            if not written.done() and (asked in unknown or asked in reply.sequences):
                written.set_result(asked in reply.sequences)
        for answer in list(self._followed):
            if answer.writer_process != reply.process:
                continue
            if answer.id in unknown:
                answer.writer_lost()
            elif answer.id in reply.sequences:
                answer.writer_at(reply.sequences[answer.id])

    async def aclose(self) -> None:
        """Stop calling; closing the link ends the subscription. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await done(task)


_log = get_logger(__name__)
