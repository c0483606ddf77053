"""The source of answers that are stored in JetStream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, cast

from operators.assembly import OpenAnswers, done, start_task
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, CannotConnect, InvalidArgument
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest
from rx_backend.resumable.jetstream._answer import JetStreamAnswer
from rx_backend.resumable.jetstream._answer_log import new_writer
from rx_backend.resumable.jetstream._entries import Batch, Record, to_wire
from rx_backend.resumable.jetstream._link import Link
from rx_backend.resumable.jetstream._options import Options
from rx_backend.resumable.jetstream._peers import Peers
from rx_backend.resumable.jetstream._site import Site

__all__ = ("JetStreamSource",)

_TIDY_S: Final = 1.0


class JetStreamSource:
    """
    Answers that any process can serve and continue, for :class:`ResumableStreams`.

    Each answer is written to a JetStream stream, and items are handed out once they are stored
    there. Any process with the same *name* finds it by its id, follows it, and continues it on its
    own engine if the process that wrote it is gone. It is an asynchronous context manager; close it
    after the ``ResumableStreams`` that use it::

        async with (
            JetStreamSource(adapter, "nats://localhost:4222") as source,
            ResumableStreams(source) as streams,
        ):
            ...

    Args:
        adapter: Produces answers, and continues those of other processes.
        servers: URLs of NATS servers with JetStream.
        name: Name of the JetStream stream, which is created if it is missing, and prefix of the
            subjects ``<name>.<id>`` and ``<name>-processes.<process>``.
        replicas: On how many servers the stream is stored, 1 to 5. Used when it is created.
        max_age_s: After how many seconds an item is removed in any case; must exceed the duration
            of any answer. Used when the stream is created.
        max_bytes: How much the stream may store. When it is full no answer is started, and running
            ones fail. Used when the stream is created.
        lease_s: After how many seconds of silence a process counts as gone.
        keep_s: How long an answer is available after its end, in seconds.
        max_takeovers: How often one answer may be taken over from a dead process; then it fails.
            This stops an answer that crashes its process from crashing all others.
        batch_items: How many items may wait while JetStream stores the previous batch; the engine
            may be ahead by this many in addition to ``max_ahead``.
        timeout_s: How long NATS may take to connect, to start an answer and to find one, in
            seconds.
        connect: Further arguments for ``nats.connect``: ``user`` and ``password``, ``token``,
            ``user_credentials``, ``nkeys_seed``, ``tls``.

    Raises:
        InvalidArgument: An argument is invalid; names it.
    """

    def __init__(
        self,
        adapter: EngineAdapter[Annotated[LLMEngineOutput]],
        servers: str | Sequence[str],
        *,
        name: str = "rx-streams",
        replicas: int = 1,
        max_age_s: float = 3600.0,
        max_bytes: int = 2**30,
        lease_s: float = 3.0,
        keep_s: float = 60.0,
        max_takeovers: int = 3,
        batch_items: int = 64,
        timeout_s: float = 5.0,
        connect: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(adapter, EngineAdapter):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(
                f"adapter: expected an EngineAdapter, got {type(adapter).__name__}"
            )
        self._adapter = adapter
        self._servers = _urls(servers)
        self._options = Options(
            name=name,
            replicas=replicas,
            max_age_s=max_age_s,
            max_bytes=max_bytes,
            lease_s=lease_s,
            keep_s=keep_s,
            max_takeovers=max_takeovers,
            batch_items=batch_items,
            timeout_s=timeout_s,
            connect={} if connect is None else connect,
        )
        self._site: Site | None = None
        # Answers that ended here: when to remove them, and their subjects.
        self._ended: deque[tuple[float, str]] = deque()
        self._tidying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """
        Connect to NATS, and create the stream if it is missing.

        Raises:
            CannotConnect: Within ``timeout_s`` no server with JetStream responds and accepts the
                user, or there are fewer than ``replicas``.
            InvalidArgument: The stream exists with a configuration that would lose items, or an
                option of *connect* is invalid.
        """
        if self._site is not None:
            raise RuntimeError("the source is already open")
        link = Link(self._servers, self._options)
        await link.open()
        peers = Peers(link, self._options)
        try:
            await peers.open()
        except BaseException:
            await link.aclose()
            raise
        self._site = Site(self._adapter, link, peers, self._options, self._note_end)
        self._tidying = start_task(self._tidy(link), asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(
        self, id: str, request: PreprocessedRequest, context: RequestContext, owner: str | None
    ) -> JetStreamAnswer:
        """
        Start the answer to *request* under the stream id *id*.

        Raises:
            BackendError: As for ``EngineAdapter.generate``; nothing remains.
            CannotConnect: NATS has not stored the request within ``timeout_s``.
            InvalidArgument: The id or the request can't be stored.
        """
        site = self._opened()
        subject = self._options.subject(id)
        if subject is None:
            raise InvalidArgument(f"id: expected letters, digits, '_' and '-', got {id!r}")
        record = Record(
            writer=new_writer(),
            process=site.peers.process,
            request=to_wire(request),
            owner=owner,
            created=time.time(),
            context_id=context.id,
            metadata=dict(context.metadata),
            trace_headers=dict(context.trace_headers),
        )
        stream = await self._adapter.generate(request, context)
        answer = JetStreamAnswer(site, id, subject, record, context)
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await answer.write(stream, OpenAnswers(request.sampling_options.n or 1))
        except BaseException as error:
            await answer.aclose()
            await stream.aclose()
            if isinstance(error, TimeoutError):
                raise CannotConnect("NATS did not respond: the request was not stored") from error
            raise
        return answer

    async def find(self, id: str) -> JetStreamAnswer | None:
        """
        Return the stream *id*, from its beginning; None if there is none.

        Raises:
            CannotConnect: NATS does not respond within ``timeout_s``.
        """
        site = self._opened()
        subject = self._options.subject(id)
        first = None if subject is None else await site.link.first(subject)
        if subject is None or first is None or not isinstance(first.entry, Record):
            return None
        last = await site.link.last(subject)
        if last is None:
            return None
        entry, record = last.entry, first.entry
        is_over = isinstance(entry, Batch) and entry.is_end
        if is_over and time.time() - last.time > self._options.keep_s:
            return None
        answer = JetStreamAnswer(site, id, subject, record, record.open_context())
        answer.follow()
        return answer

    def _opened(self) -> Site:
        if self._site is None:
            raise RuntimeError("the source is not open: use `async with`")
        return self._site

    def _note_end(self, subject: str) -> None:
        self._ended.append((time.monotonic() + self._options.keep_s, subject))

    async def _tidy(self, link: Link) -> None:
        """Remove answers that ended here, ``keep_s`` after their ends."""
        while True:
            await asyncio.sleep(_TIDY_S)
            while self._ended and self._ended[0][0] <= time.monotonic() and link.is_up:
                try:
                    await link.purge(self._ended[0][1])
                except BackendError as error:
                    # Retried later; otherwise `max_age_s` removes it.
                    _log.debug("answer was not removed", **describe(error))
                    break
                self._ended.popleft()

    async def aclose(self) -> None:
        """Close the connection to NATS. Idempotent."""
        site, self._site = self._site, None
        task, self._tidying = self._tidying, None
        if task is not None:
            task.cancel()
            await done(task)
        if site is not None:
            await site.peers.aclose()
            await site.link.aclose()


def _urls(servers: object) -> list[str]:
    urls = [servers] if isinstance(servers, str) else servers
    if not isinstance(urls, Sequence) or not urls:
        raise InvalidArgument(f"servers: expected URLs of NATS servers, got {servers!r}")
    for url in cast("Sequence[object]", urls):
        if not isinstance(url, str) or not url:
            raise InvalidArgument(f"servers: expected URLs of NATS servers, got {url!r}")
    return list(cast("Sequence[str]", urls))


_log = get_logger(__name__)
