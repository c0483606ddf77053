"""Web processes that die, freeze and come back: no token is lost, and none comes twice."""

from __future__ import annotations

import signal

import pytest

from tests.engines import real_time
from tests.rx_backend.resumable.jetstream._answers import (
    LEASE_S,
    CountingEngine,
    expected,
    process,
    tokens,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer
from tests.rx_backend.resumable.jetstream._processes import child

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("after", [0, 1, 20])
@real_time
async def test_an_answer_of_a_killed_process_is_continued(nats: NatsServer, after: int) -> None:
    """SIGKILL in mid-stream: another process hands out the rest, with the whole answer's figures."""
    engine = CountingEngine()
    async with (
        process(nats.url, engine) as streams,
        child(nats.url, max_tokens=60, interval_s=0.02, lease_s=LEASE_S) as other,
    ):
        stream_id = await other.id()
        await other.read_to(20)
        await other.kill()
        assert other.tokens == expected(60)[: other.position]
        async with await streams.resume(stream_id, after, owner="me") as reader:
            items = [item async for item in reader]
        assert tokens(items) == expected(60, after)
        last = items[-1].data
        assert last is not None
        assert last.completion_usage is not None
        assert last.completion_usage.prompt_tokens == 3
        assert last.completion_usage.completion_tokens == 60
        assert last.cum_log_probs == -60.0
        assert "".join(item.data.text or "" for item in items if item.data) == "".join(
            f" {token}" for token in expected(60, after)
        )
        # What was handed out before is not made again.
        assert engine.made <= 60 - other.position


@real_time
async def test_a_reader_elsewhere_does_not_notice_a_killed_process(
    nats: NatsServer,
) -> None:
    """One that reads along in another process gets every token once, over two takeovers."""
    engine = CountingEngine(0.01)
    async with (
        process(nats.url, CountingEngine()) as streams,
        child(nats.url, max_tokens=80, interval_s=0.02, lease_s=LEASE_S) as other,
    ):
        stream_id = await other.id()
        async with await streams.resume(stream_id, owner="me") as reader:
            items = [await anext(reader) for _ in range(5)]
            await other.kill()
            items += [item async for item in reader]
        assert tokens(items) == expected(80)
        # And whoever comes later sees the same, from a process that saw nothing of it.
        async with (
            process(nats.url, engine) as third,
            await third.resume(stream_id, 7, owner="me") as reader,
        ):
            assert tokens([item async for item in reader]) == expected(80, 7)
        assert engine.made == 0


@real_time
async def test_a_frozen_process_appends_nothing_after_it_resumes(nats: NatsServer) -> None:
    """SIGSTOP for longer than the lease: it then reads on what the other process has made."""
    async with (
        process(nats.url, CountingEngine(0.02)) as streams,
        child(nats.url, max_tokens=100, interval_s=0.01, lease_s=LEASE_S) as other,
    ):
        stream_id = await other.id()
        await other.read_to(10)
        async with await streams.resume(stream_id, owner="me") as reader:
            other.signal(signal.SIGSTOP)
            items = [await anext(reader) for _ in range(2)]
            while reader.position < 60:
                items.append(await anext(reader))
            other.signal(signal.SIGCONT)
            items += [item async for item in reader]
        assert tokens(items) == expected(100)
        async with await streams.resume(stream_id, owner="me") as reader:
            assert tokens([item async for item in reader]) == expected(100)
        await other.read_to_end()
        assert other.tokens == expected(100)
