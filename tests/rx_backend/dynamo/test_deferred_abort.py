"""A decode worker on the real runtime: its aborts wait for the first token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import Handler, serving
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.engines import real_time, stop, token
from tests.rx_backend.dynamo._runtime import NEEDS, cluster, new_context, received, settled
from tests.rx_backend.dynamo.test_serving import EITHER_WAY, all_over, either, watched

pytestmark = NEEDS

Play: TypeAlias = Callable[["Decoding", RequestContext], AsyncGenerator[LLMEngineOutput]]


class Decoding(LLMEngine):
    """
    Plays one stream, told step by step, beside others that end at once.

    Args:
        play: The stream of the request that is not called ``other``.

    Attributes:
        journal: What has happened to that request, in order.
        go_on: For the play to wait for.
        aborted: The same; set by the abort.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self.journal: list[str] = []
        self.go_on = asyncio.Event()
        self.aborted = asyncio.Event()

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="decoding")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        if context.id == "other":
            yield stop().with_tokens([1])
            return
        self.journal.append("asked")
        unlisten = context.stopped().listen(lambda: self.journal.append("stopped"))
        try:
            async for chunk in self._play(self, context):
                if chunk.token_ids:
                    self.journal.append("token")
                yield chunk
        finally:
            unlisten()
            self.journal.append("closed")

    async def abort(self, context: RequestContext) -> None:
        self.journal.append("abort")
        self.aborted.set()


async def waits(engine: Decoding, context: RequestContext) -> AsyncGenerator[LLMEngineOutput]:
    """Wait for the transfer, whatever the client does; then go on to the abort."""
    await engine.go_on.wait()
    yield token(1)
    await engine.aborted.wait()
    yield LLMEngineOutput.cancelled()


async def notifies(engine: Decoding, context: RequestContext) -> AsyncGenerator[LLMEngineOutput]:
    """Tell of the first token as soon as the transfer is through, and make none."""
    await engine.go_on.wait()
    engine.journal.append("notice")
    context.notify_first_token()
    await engine.aborted.wait()
    yield LLMEngineOutput.cancelled()


async def handshakes(engine: Decoding, context: RequestContext) -> AsyncGenerator[LLMEngineOutput]:
    """Give chunks without tokens up to the transfer."""
    while not engine.go_on.is_set():
        yield LLMEngineOutput()
        await asyncio.sleep(0.001)
    async for chunk in waits(engine, context):
        yield chunk


class Served:
    """The engine in a decode worker, and a client of it."""

    def __init__(self, engine: Decoding, client: Any) -> None:
        self.engine = engine
        self._client = client

    async def ask(self, id: str = "r1") -> tuple[Any, Any]:
        """Send the request; gives its stream and its context on the client's side."""
        context = new_context(id)
        return await self._client.round_robin({"token_ids": [1]}, context=context), context

    async def happened(self, *journal: str) -> None:
        """Wait for the last of these; nothing else has happened, also after one more request."""
        await settled(lambda: journal[-1] in self.engine.journal)
        other = new_context("other")
        await received(self._client.round_robin({"token_ids": [1]}, context=other))
        assert self.engine.journal == list(journal)


@asynccontextmanager
async def served(
    play: Play,
    *,
    pushed: bool = True,
    around: Callable[[Handler], Handler] = lambda handler: handler,
) -> AsyncGenerator[Served]:
    async with cluster() as joined:
        engine = Decoding(play)
        before = asyncio.all_tasks()
        adapter = EngineAdapter(engine, "decode")
        handler, streams = watched(serving(adapter))
        client = await joined.serve(either(around(handler), pushed))
        serving_it = asyncio.all_tasks() - before
        yield Served(engine, client)
        await settled(lambda: all_over(streams) and asyncio.all_tasks() - before == serving_it)


@pytest.mark.rows("A2", "A4")
@EITHER_WAY
@real_time
async def test_a_stop_before_the_first_token_waits_for_it(pushed: bool) -> None:
    """The engine hears of the stop at once, and is aborted once, when the first token is there."""
    async with served(waits, pushed=pushed) as worker:
        _stream, context = await worker.ask()
        await worker.happened("asked")
        context.stop_generating()
        await worker.happened("asked", "stopped")
        worker.engine.go_on.set()
        await worker.happened("asked", "stopped", "token", "abort", "closed")


@pytest.mark.rows("A5")
@EITHER_WAY
@real_time
async def test_a_stream_that_is_dropped_before_the_first_token_is_not_aborted(pushed: bool) -> None:
    """Chunks without tokens don't count; the runtime lets go of the stream, and that closes it."""
    async with served(handshakes, pushed=pushed) as worker:
        stream, context = await worker.ask()
        await anext(stream)
        context.stop_generating()
        await worker.happened("asked", "stopped", "closed")


class Noticing:
    """A context of the real runtime that counts the first-token notices it gets."""

    def __init__(self, context: Any, notices: list[str]) -> None:
        self._context = context
        self._notices = notices

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def notify_first_token(self) -> None:
        self._context.notify_first_token()
        self._notices.append(self._context.id())


def noticing(handler: Handler, notices: list[str]) -> Handler:
    def handle(
        request: Mapping[str, Any], context: Any, response_sender: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        return handler(request, Noticing(context, notices), response_sender)

    return handle


@pytest.mark.rows("A4", "C4")
@real_time
async def test_a_notice_releases_the_abort_and_reaches_the_runtime() -> None:
    """An engine that tells of its first token needs no chunk for it, and the runtime hears it."""
    notices: list[str] = []
    async with served(notifies, around=lambda handler: noticing(handler, notices)) as worker:
        _stream, context = await worker.ask()
        await worker.happened("asked")
        context.stop_generating()
        await worker.happened("asked", "stopped")
        assert "r1" not in notices
        worker.engine.go_on.set()
        await worker.happened("asked", "stopped", "notice", "abort", "closed")
    assert notices.count("r1") == 1
