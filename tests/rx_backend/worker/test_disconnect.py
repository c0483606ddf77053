"""A client that leaves in mid-stream."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.otlp.receiver import Receiver
from tests.rx_backend.worker._processes import START_S, Served, serve, until
from tests.rx_backend.worker.engines import MODEL, WAIT

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


@pytest.mark.rows("A2", "A3", "P3")
def test_a_disconnect_is_one_abort(receiver: Receiver, tmp_path: Path) -> None:
    """The engine is aborted at once, the span records it, and the worker serves the next."""
    flags = ("--frontend", "--grace-s", "0", "--otlp", receiver.grpc)
    with (
        serve(tmp_path, "CountingEngine", *flags, RELEASE=str(tmp_path / "never")) as served,
        served.client() as client,
    ):
        served.line("curl -N", START_S)
        leaving = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": WAIT}], stream=True
        )
        # From its first token on a client's leaving is told to the worker at once.
        next(chunk for chunk in leaving if chunk.choices[0].delta.content)
        served.line("waiting")
        leaving.close()
        until(lambda: served.count("abort"), served)
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "count"}], max_tokens=2
        )
        assert answer.choices[0].message.content == " 0 1"
        served.signal()
        assert served.ended() == 0
        assert served.count("abort") == 1
    left, stayed = sorted(receiver.named("engine.generate"), key=lambda span: span.start_ns)
    assert (left.attributes["cancelled"], stayed.attributes["cancelled"]) == (True, False)
    told = [event.name for event in left.events]
    assert told == ["first_token", "stop", "abort_requested", "abort_called"]
    (aborts,) = receiver.points_of("rx_backend.aborts")
    assert (aborts.attributes["rx_backend.abort"], aborts.value) == ("immediate", 1.0)
    (active,) = receiver.points_of("rx_backend.requests.active")
    assert active.value == 0.0


async def leave_all(port: int, clients: int, latest_s: float) -> None:
    """Ask as so many clients, each of which is gone at a moment of its own, whatever has come."""
    base_url, moments = f"http://127.0.0.1:{port}/v1", random.Random(clients)

    async def leave(after_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                stream = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": WAIT}], stream=True
                )
                async with stream:
                    async for _ in stream:
                        pass

    async with (
        AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client,
        asyncio.TaskGroup() as leaving,
    ):
        for _ in range(clients):
            leaving.create_task(leave(moments.uniform(0.02, latest_s)))


@pytest.mark.rows("A2", "A3")
def test_with_heartbeats_every_disconnect_is_detected(tmp_path: Path) -> None:
    """
    At any moment, also while the frontend waits for the stream: each is one abort.

    There are more aborts than engines that wait: a client may leave between two pulls.
    """
    flags = ("--frontend", "--grace-s", "0", "--pipeline", "examples.pipelines:beating")
    with serve(tmp_path, "CountingEngine", *flags, RELEASE=str(tmp_path / "never")) as served:
        served.line("curl -N", START_S)
        while not served.count("waiting"):  # on a busy machine all may have left too early
            asyncio.run(leave_all(served.port, 60, 1.0))
        until(lambda: 0 < requests_over(served) == served.count("abort"), served)
        served.signal()
        # A request whose client was not heard leave would be waited for.
        assert served.ended() == 0
        assert served.count("abort") == requests_over(served)


def requests_over(served: Served) -> int:
    """How many requests the worker's log says are over, however they ended."""
    return sum("request dropped" in line or "request ended" in line for line in list(served.seen))


@pytest.mark.rows("A2", "S7")
def test_an_engine_that_holds_its_task_is_closed(tmp_path: Path) -> None:
    """At any moment, though it ignores stops; SIGTERM waits for the client that stays alone."""
    with (
        serve(
            tmp_path, "GroupEngine", "--frontend", "--grace-s", "0", "--drain-s", "600"
        ) as served,
        served.client() as client,
    ):
        served.line("curl -N", START_S)
        while not served.count("opened"):  # on a busy machine all may have left too early
            asyncio.run(leave_all(served.port, 30, 0.6))
        until(lambda: served.count("opened") == served.count("closed"), served)
        staying = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "c"}], max_tokens=40, stream=True
        )
        next(iter(staying))
        served.signal()
        left = [chunk.choices[0] for chunk in staying if chunk.choices]
        assert left[-1].finish_reason == "length"
        # What a client has left behind would be waited for.
        assert served.ended() == 0
        assert served.count("opened") == served.count("closed")
