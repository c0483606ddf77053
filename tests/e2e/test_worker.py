"""The engine's worker is killed in mid-stream: the answer continues at another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.reading import (
    CHAT,
    TOKENS,
    events,
    expected_text,
    expected_tokens,
    is_complete,
    position_of,
    text_of,
    tokens_of,
)
from tests.rx_backend.resumable.jetstream._answers import PROMPT
from tests.rx_backend.web.servers import Server, running

pytestmark = [pytest.mark.needs("aiohttp", "nats", "openai", "uvicorn"), pytest.mark.timeout(60)]


@dataclass(frozen=True)
class Deployment:
    """A web service, and the workers behind it."""

    web: Server
    workers: list[Server]


@pytest.fixture
def deployment() -> Generator[Deployment]:
    environment = {**os.environ, "INTERVAL_S": "0.01"}
    with ExitStack() as stack:

        def run(app: str, **more: str) -> Server:
            return stack.enter_context(running("uvicorn", app, env={**environment, **more}))

        workers = [run("tests.e2e.upstream:app") for _ in range(2)]
        urls = ",".join(worker.url for worker in workers)
        yield Deployment(run("tests.e2e.service:app", UPSTREAMS=urls), workers)


def test_an_answer_continues_on_another_worker(
    deployment: Deployment, official: Callable[[str], openai.OpenAI]
) -> None:
    """
    The official client and a client that comes back have each token once, and what all cost.

    The other worker was asked for the rest only.
    """
    create: Any = official(deployment.web.url).chat.completions.create
    stream = create(model="m", stream=True, stream_options={"include_usage": True}, **CHAT)
    chunks = [next(stream) for _ in range(20)]
    with httpx.Client(base_url=deployment.web.url) as client:
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            mine = events(response)
            found = [next(mine) for _ in range(20)]
        deployment.workers[0].process.kill()
        deployment.workers[0].process.wait()
        last = str(found[-1].id)
        with client.stream(
            "GET", f"/streams/{last.partition(':')[0]}", headers={"last-event-id": last}
        ) as response:
            rest = list(events(response))
        chunks += stream
    assert is_complete(rest)
    assert text_of(found) + text_of(rest) == expected_text()
    assert tokens_of(rest) == expected_tokens(position_of(found[-1]))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected_text()
    cost = chunks[-1].usage
    assert (cost.prompt_tokens, cost.completion_tokens) == (len(PROMPT), TOKENS)
    prompts = httpx.get(f"{deployment.workers[1].url}/prompts").json()
    assert len(prompts) == 2
    assert min(prompts) >= len(PROMPT) + 20


def test_losing_every_worker_is_reported(
    deployment: Deployment, official: Callable[[str], openai.OpenAI]
) -> None:
    """The client gets an error after the last token; one that resumes later gets the same."""
    with httpx.Client(base_url=deployment.web.url) as client:
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            mine = events(response)
            found = [next(mine) for _ in range(20)]
            for worker in deployment.workers:
                worker.process.kill()
                worker.process.wait()
            found += mine
        assert not is_complete(found)
        error = found.pop().json["error"]
        assert error["code"] in {"CannotConnect", "Disconnected", "StreamIncomplete"}
        text = text_of(found)
        assert expected_text().startswith(text)
        last = str(found[-1].id)
        again = client.get(f"/streams/{last.partition(':')[0]}", headers={"last-event-id": last})
        assert again.status_code in {502, 503}
        assert again.json()["error"]["code"] == error["code"]
    with pytest.raises(openai.InternalServerError):
        official(deployment.web.url).chat.completions.create(model="m", stream=True, **CHAT)
