"""An answer of 100 chunks on a real server: from every position, at any pace, and what is refused."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Generator

import httpx
import openai
import pytest

from tests.e2e.reading import (
    CHAT,
    COMPLETION,
    TOKENS,
    Event,
    aevents,
    events,
    expected_text,
    expected_tokens,
    is_complete,
    position_of,
    text_of,
    tokens_of,
)
from tests.e2e.service import GATED
from tests.rx_backend.web.servers import Server, running

pytestmark = [pytest.mark.needs("nats", "openai", "uvicorn"), pytest.mark.timeout(60)]

FORMATS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}
CHAT_PATH, COMPLETION_PATH = FORMATS


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    environment = {**os.environ, "INTERVAL_S": "0.005"}
    with running("uvicorn", "tests.e2e.service:app", env=environment) as found:
        yield found


@pytest.fixture
def fast() -> Generator[Server]:
    """A server whose engine waits for nobody."""
    with running("uvicorn", "tests.e2e.service:app") as found:
        yield found


@pytest.fixture
def client(server: Server) -> Generator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"user": "me"}) as made:
        yield made


def read(client: httpx.Client, path: str, last: str | None, body: object = None) -> list[Event]:
    """Ask for an answer behind an event, and read it to its end."""
    headers = {} if last is None else {"last-event-id": last}
    method = "GET" if body is None else "POST"
    with client.stream(method, path, headers=headers, json=body) as response:
        assert response.status_code == 200
        found = list(events(response))
    assert is_complete(found)
    return found


def test_every_position_while_the_answer_runs(server: Server) -> None:
    """A client resumes after each event, in each of the formats in turn."""

    async def rest(client: httpx.AsyncClient, id: str, path: str) -> str:
        body = FORMATS.get(path)
        method, headers = "GET" if body is None else "POST", {"last-event-id": id}
        async with client.stream(method, path, headers=headers, json=body) as response:
            assert response.status_code == 200
            found = [event async for event in aevents(response)]
        assert is_complete(found)
        return text_of(found)

    async def main() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        options = {"base_url": server.url, "headers": {"user": "me"}, "timeout": 30}
        async with (
            httpx.AsyncClient(limits=limits, **options) as client,  # pyright: ignore[reportArgumentType]
            client.stream("POST", CHAT_PATH, json=CHAT) as response,
            asyncio.TaskGroup() as group,
        ):
            tasks: list[asyncio.Task[str]] = []
            async for event in aevents(response):
                if event.id is None:
                    break
                position = position_of(event)
                assert position == len(tasks) + 1
                paths = [*FORMATS, f"/streams/{event.id.partition(':')[0]}"]
                if position < TOKENS:
                    tasks.append(group.create_task(rest(client, event.id, paths[position % 3])))
        return [task.result() for task in tasks]

    rests = asyncio.run(main())
    assert rests == [expected_text(after) for after in range(1, TOKENS)]


def test_every_position_after_the_end(client: httpx.Client) -> None:
    """In each of the formats, whichever the id came in."""
    found = read(client, COMPLETION_PATH, None, COMPLETION)
    assert text_of(found) == expected_text()
    assert [position_of(event) for event in found[:-1]] == [*range(1, TOKENS + 1)]
    name = str(found[0].id).partition(":")[0]
    for after in range(TOKENS):
        path, last = f"/streams/{name}", f"{name}:{after}"
        by_items = read(client, path, last)
        assert tokens_of(by_items) == expected_tokens(after)
        assert text_of(by_items) == expected_text(after)
        form = list(FORMATS)[after % 2]
        assert text_of(read(client, form, last, FORMATS[form])) == expected_text(after)
    assert client.get(f"/streams/{name}?after={TOKENS}").status_code == 204


def test_the_official_client_resumes(
    server: Server, official: Callable[[str], openai.OpenAI]
) -> None:
    """It shows no event ids, so it is given the one that another client of the answer has seen."""
    headers = {"user": "me"}
    with httpx.Client(base_url=server.url, headers=headers) as other:
        found = read(other, CHAT_PATH, None, CHAT)
    stream = official(server.url).chat.completions.create(
        model="m",
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={**headers, "last-event-id": str(found[49].id)},
        **CHAT,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected_text(50)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == TOKENS


@pytest.mark.parametrize("held", ["all", "little"])
def test_a_slow_reader_beside_a_fast_one(fast: Server, held: str) -> None:
    """
    One reads nothing while the other reads all.

    Then it gets the rest as far as that is held; else the error, and nothing behind the gap.
    """
    tokens, user = 20_000, {"user": "me"}
    body = {**COMPLETION, "model": GATED, "max_tokens": tokens}
    base = "" if held == "all" else "/small"
    options = {"base_url": fast.url, "headers": user, "timeout": 30}
    with (
        httpx.Client(**options) as client,  # pyright: ignore[reportArgumentType]
        httpx.Client(**options, transport=slow_transport()) as other,  # pyright: ignore[reportArgumentType]
        client.stream("POST", f"{base}{COMPLETION_PATH}", json=body) as response,
    ):
        theirs = response.iter_text()
        path = f"{base}/streams/{next(theirs).removeprefix('id: ').partition(':')[0]}"
        with other.stream("GET", path) as behind:
            mine = events(behind)
            found = [next(mine)]
            assert httpx.post(f"{fast.url}/gate").status_code == 204
            assert deque(theirs, maxlen=2)[-1].endswith("data: [DONE]\n\n")
            found += mine
    got = tokens_of(found)
    if held == "all":
        assert is_complete(found)
        assert got == expected_tokens(tokens=tokens)
        assert len(found) < tokens
    else:
        assert not is_complete(found)
        told = found[-1].json["error"]["message"]
        assert (found[-1].name, f"position {len(got)} was dropped" in told) == ("error", True)
        assert got == expected_tokens(tokens=tokens)[: len(got)]
        assert len(got) < tokens


def slow_transport() -> httpx.HTTPTransport:
    """Return a transport whose connections take next to nothing that is not read."""
    return httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
