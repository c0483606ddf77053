"""Two web processes on one NATS server: one is killed in mid-stream, the other hands out the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.reading import (
    CHAT,
    COMPLETION,
    Event,
    events,
    expected_text,
    expected_tokens,
    is_complete,
    text_of,
    tokens_of,
)
from tests.rx_backend.resumable.jetstream._nats import nats_server
from tests.rx_backend.web.servers import Server, running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


@pytest.fixture
def servers(tmp_path: Path) -> Generator[list[Server]]:
    with nats_server(tmp_path) as nats, ExitStack() as stack:
        environment = {**os.environ, "INTERVAL_S": "0.02", "NATS_URL": nats.url}
        yield [
            stack.enter_context(running("uvicorn", "tests.e2e.service:app", env=environment))
            for _ in range(2)
        ]


def get(url: str, id: str, last: str | None = None, begun: threading.Event | None = None) -> Any:
    """Read the items of an answer to its end, as a client of its own."""
    headers = {"user": "me"} if last is None else {"user": "me", "last-event-id": last}
    with httpx.stream("GET", f"{url}/streams/{id}", headers=headers, timeout=30) as response:
        assert response.status_code == 200, response.read()
        found: list[Event] = []
        for event in events(response):
            found.append(event)
            if begun is not None and len(found) == 5:
                begun.set()
    assert is_complete(found)
    return found


def test_clients_survive_a_killed_web_process(
    servers: list[Server], official: Callable[[str], openai.OpenAI]
) -> None:
    """
    Its client gets exactly the rest from the other process, in each format, by the official client too.

    One that read at the other process does not notice, and another gets all of it from there.
    """
    a, b = servers
    with ThreadPoolExecutor() as pool:
        with httpx.stream(
            "POST", f"{a.url}/v1/chat/completions", json=CHAT, headers={"user": "me"}
        ) as response:
            mine = events(response)
            found = [next(mine)]
            id, _, _ = str(found[0].id).partition(":")  # noqa: A001 - what the path calls it
            begun = threading.Event()
            along = pool.submit(get, b.url, id, None, begun)
            assert begun.wait(20)
            found += [next(mine) for _ in range(50)]
            a.process.kill()
            a.process.wait()
            with pytest.raises(httpx.HTTPError):
                found.extend(mine)
        last = str(found[-1].id)
        after = int(last.rpartition(":")[2])
        assert text_of(found) == expected_text()[: len(text_of(found))]
        assert 51 <= after < 100
        whole = pool.submit(get, b.url, id)
        rest = get(b.url, id, last)
        create: Any = official(b.url).completions.create
        headers = {"user": "me", "last-event-id": last}
        chunks = list(create(model="m", stream=True, extra_headers=headers, **COMPLETION))
        assert text_of(found) + text_of(rest) == expected_text()
        assert tokens_of(rest) == expected_tokens(after)
        assert text_of(found) + "".join(chunk.choices[0].text for chunk in chunks) == (
            expected_text()
        )
        for future in (along, whole):
            assert tokens_of(future.result()) == expected_tokens()
            assert text_of(future.result()) == expected_text()
    stolen = httpx.get(f"{b.url}/streams/{id}", headers={"user": "mallory"})
    assert (stolen.status_code, stolen.json()["error"]["code"]) == (404, "StreamNotFound")


def test_a_process_serves_answers_started_elsewhere(servers: list[Server]) -> None:
    """It hands out an answer of the other one from any position, while that runs and after its end."""
    a, b = servers
    with httpx.stream(
        "POST", f"{a.url}/v1/chat/completions", json=CHAT, headers={"user": "me"}
    ) as response:
        mine = events(response)
        found = [next(mine) for _ in range(30)]
        id, _, _ = str(found[0].id).partition(":")  # noqa: A001 - what the path calls it
        for position in (1, 15, 30):
            assert tokens_of(get(b.url, id, f"{id}:{position}")) == expected_tokens(position)
        found += mine
    assert is_complete(found)
    assert text_of(found) == expected_text()
    for position in (0, 1, 50, 99):
        assert tokens_of(get(b.url, id, f"{id}:{position}")) == expected_tokens(position)
