"""The FastAPI service in ``examples`` does what its texts promise."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest

from rx_backend.resumable import parse_event_id
from tests.rx_backend.web.servers import ROOT, Server, running

pytestmark = [
    pytest.mark.needs("fastapi", "jinja2", "openai", "uvicorn"),
    pytest.mark.timeout(60),
]

ASKED: Any = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 8}
ANSWER = " 0 1 2 3 4 5 6 7"


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    environment = {**os.environ, "TOKEN_INTERVAL_MS": "5"}
    with running("uvicorn", "fastapi_service:app", cwd=ROOT / "examples", env=environment) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat(client: openai.OpenAI) -> None:
    """With the model's name from the list, up to a stop text, and what it cost."""
    model = client.models.list().data[0].id
    create: Any = client.chat.completions.create
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "stop": " 5"}
    chunks = list(create(model=model, **ASKED, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == " 0 1 2 3 4"
    assert (chunks[-2].choices[0].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 5)
    assert chunks[0].model == model


def test_a_completion(client: openai.OpenAI) -> None:
    """And unsupported options are reported."""
    chunks = client.completions.create(model="m", prompt="a", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " 0 1 2"
    with pytest.raises(openai.BadRequestError, match="stream: expected true"):
        client.completions.create(model="m", prompt="a")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"logprobs": True}, "body.logprobs: Extra inputs are not permitted"),
        ({"max_tokens": 0}, "body.max_tokens: Input should be greater than or equal to 1"),
        ({"messages": [{"role": "user"}]}, "body.messages.0.content: Field required"),
        ({"n": 2}, "sampling_options.n: expected 1, got 2"),
    ],
)
def test_unsupported_fields_are_rejected(
    server: Server, field: dict[str, Any], message: str
) -> None:
    """By name, with OpenAI's error object; never ignored."""
    asked = {**ASKED, "stream": True, **field}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_a_prompt_cut_within_a_character(server: Server) -> None:
    """JSON can say so, where a page has cut a text by its length; the rest of it is answered."""
    for path, asked in (
        ("completions", r'"prompt":"\ud83d"'),
        ("chat/completions", r'"messages":[{"role":"user","content":"so \ud83d"}]'),
    ):
        body = f'{{{asked},"stream":true,"max_tokens":3}}'
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{server.url}/v1/{path}", content=body, headers=headers)
        assert (answer.status_code, "[DONE]" in answer.text) == (200, True)


def text_of(body: str, name: str) -> str:
    """Return the text of all events: what a client was behind comes merged, in fewer of them."""
    return "".join(re.findall(rf'"{name}":"([^"]*)"', body))


def test_a_resumed_chat(server: Server) -> None:
    """The same request with the id of the last event gets the rest."""
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**ASKED, "stream": True}) as response:
        ids = (line[4:] for line in response.iter_lines() if line.startswith("id: "))
        # A reader that is behind gets several items as one.
        last = next(found for found in ids if parse_event_id(found)[1] >= 3)
    rest = httpx.post(url, json={**ASKED, "stream": True}, headers={"last-event-id": last}).text
    position = parse_event_id(last)[1]
    assert text_of(rest, "content") == "".join(f" {number}" for number in range(position, 8))


def test_an_answer_for_a_browser(server: Server) -> None:
    """Begun by one request and read by another, from its beginning or any position; or stopped."""
    with httpx.Client(base_url=server.url) as client:
        begun = client.post("/streams", json=ASKED)
        assert (begun.status_code, "id" in begun.json()) == (201, True)
        place = begun.headers["location"]
        assert text_of(client.get(place).text, "text") == " 0 1 2 3 4 5 6 7"
        assert text_of(client.get(place, params={"after": 6}).text, "text") == " 6 7"
        assert client.get(place, params={"after": 8}).status_code == 204
        long = client.post("/streams", json={**ASKED, "max_tokens": 10_000}).headers["location"]
        assert client.delete(long).status_code == 204
        assert '"finish_reason":"cancelled"' in client.get(long).text
        assert client.delete("/streams/other").status_code == 404


def test_the_page(server: Server) -> None:
    """It is one file, and asks for nothing from elsewhere."""
    response = httpx.get(server.url)
    assert response.headers["content-type"].startswith("text/html")
    assert "EventSource" in response.text
    assert "https://" not in response.text
