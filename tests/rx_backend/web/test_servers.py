"""Responses on real servers, with the official client and over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import openai
import pytest

from rx_backend.resumable import parse_event_id
from tests.rx_backend.web.servers import COMMANDS, Server, running
from tests.rx_backend.web.service import TOKENS

pytestmark = [
    pytest.mark.needs("uvicorn", "hypercorn", "granian", "openai", "h2"),
    pytest.mark.timeout(60),
]

ANSWER = "".join(f"{number} " for number in range(TOKENS))
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def started() -> Generator[Callable[[str], Server]]:
    """Give a function that starts a server once, in whatever order the tests come."""
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Server:
            return stack.enter_context(running(name))

        yield start


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, started: Callable[[str], Server]) -> Server:
    return started(request.param)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, model: str, **options: Any) -> openai.Stream[Any]:
    messages: Any = [{"role": "user", "content": "count"}]
    return client.chat.completions.create(model=model, messages=messages, stream=True, **options)


def text_of(stream: openai.Stream[Any]) -> str:
    chunks = [chunk for chunk in stream if chunk.choices]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def aborts(server: Server, name: str) -> int:
    return httpx.get(f"{server.url}/aborts/{name}").json()


def wait_for_an_abort(server: Server, name: str) -> None:
    """Wait until the request was aborted; the test's timeout says that it is not."""
    while not aborts(server, name):
        time.sleep(0.02)


def test_the_official_client_gets_the_answer(client: openai.OpenAI) -> None:
    """With the role, a finish reason and the usage."""
    chunks = list(ask(client, "numbers", stream_options={"include_usage": True}))
    first, last, cost = chunks[0].choices[0], chunks[-2].choices[0], chunks[-1].usage
    assert (first.delta.role, last.finish_reason) == ("assistant", "stop")
    assert cost is not None
    assert cost.total_tokens == TOKENS + 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER


@pytest.mark.parametrize(
    ("model", "kind"), [("refused", openai.BadRequestError), ("full", openai.InternalServerError)]
)
def test_a_failure_before_the_first_token(
    client: openai.OpenAI, model: str, kind: type[openai.APIStatusError]
) -> None:
    """The client raises the class for the status, with the message and the request's id."""
    with pytest.raises(kind, match="expected fewer" if model == "refused" else "no room") as raised:
        ask(client, model)
    assert raised.value.request_id
    assert raised.value.code == ("InvalidArgument" if model == "refused" else "CannotConnect")


def test_a_failure_in_mid_stream(client: openai.OpenAI) -> None:
    """The client raises its error, after the tokens."""
    stream = ask(client, "breaks")
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["0 ", "1 ", "2 "]
    with pytest.raises(openai.APIError, match="peer gone"):
        next(stream)


def test_headers_first(client: openai.OpenAI) -> None:
    """A failure is raised by the stream then."""
    stream = ask(client, "full", extra_body={"headers_first": True})
    with pytest.raises(openai.APIError, match="no room"):
        next(stream)


def test_keep_alive_is_tolerated(server: Server) -> None:
    """Also behind events with ids, where a blank line would be an event."""
    url = f"{server.url}/resumable"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert text_of(ask(client, "silent")) == ANSWER
    body = {"model": "silent"}
    raw = httpx.post(f"{url}/chat/completions", json=body).text
    assert raw.count(": keep-alive\n") >= 2


@pytest.mark.rows("A2")
@pytest.mark.parametrize("path", ["/v1", "/resumable"])
def test_a_disconnect(server: Server, path: str) -> None:
    """Is one abort; where it may come back there is none."""
    name = uuid.uuid4().hex
    with openai.OpenAI(base_url=f"{server.url}{path}", api_key="none", max_retries=0) as client:
        stream = ask(client, "endless", extra_headers={"X-Request-Id": name})
        assert stream.response.headers["x-request-id"] == name
        next(stream)
        stream.close()
        if path == "/v1":
            wait_for_an_abort(server, name)
        assert text_of(ask(client, "numbers")) == ANSWER
    assert aborts(server, name) == (1 if path == "/v1" else 0)


@pytest.mark.rows("A2")
@pytest.mark.parametrize("headers_first", [False, True])
def test_a_disconnect_during_prefill(server: Server, headers_first: bool) -> None:
    """Before there is anything to send: it is noticed at once."""
    name = uuid.uuid4().hex
    body = {"model": "prefill", "headers_first": headers_first}
    request: dict[str, Any] = {"json": body, "headers": {"x-request-id": name}}
    if headers_first:
        with httpx.stream("POST", f"{server.url}{CHAT}", **request) as response:
            assert response.status_code == 200
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{CHAT}", timeout=0.3, **request)
    wait_for_an_abort(server, name)
    assert aborts(server, name) == 1


def test_a_client_resumes(server: Server) -> None:
    """By the id of the last event: it gets the rest, once, from its position."""
    url = f"{server.url}/resumable/chat/completions"
    with httpx.stream("POST", url, json={"model": "numbers"}) as response:
        ids = (line[4:] for line in response.iter_lines() if line.startswith("id: "))
        # A reader that is behind gets several items as one.
        last = next(found for found in ids if parse_event_id(found)[1] >= 5)
    position = parse_event_id(last)[1]
    rest = httpx.post(url, json={"model": "numbers"}, headers={"last-event-id": last}).text
    chunks = [json.loads(line[6:]) for line in rest.split("\n") if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "".join(f"{number} " for number in range(position, TOKENS))
    items = f"{server.url}/streams/{last.partition(':')[0]}"
    assert httpx.get(items).text.count('"text":') == 1 + (TOKENS >= 1)


def test_head(server: Server) -> None:
    """It ends, with the status and the headers of the stream and nothing pulled."""
    items = f"{server.url}/streams/guess"
    assert (httpx.head(items).status_code, httpx.head(items).content) == (404, b"")
    chat = f"{server.url}/resumable/chat/completions"
    with httpx.stream("POST", chat, json={"model": "numbers"}) as response:
        line = next(line for line in response.iter_lines() if line.startswith("id: "))
    name = parse_event_id(line[4:])[0]
    response = httpx.head(f"{server.url}/streams/{name}")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


def test_http_2(server: Server) -> None:
    """Where the server has it: several answers at a time over one connection, and one that leaves."""
    if server.name == "uvicorn":
        return
    name = uuid.uuid4().hex
    with httpx.Client(http1=False, http2=True, base_url=server.url) as client:
        with (
            client.stream("POST", CHAT, json={"model": "numbers"}) as one,
            client.stream("POST", CHAT, json={"model": "numbers"}) as two,
        ):
            assert (one.http_version, two.http_version) == ("HTTP/2", "HTTP/2")
            assert one.read()
            assert two.read()
            assert one.text.count("data: ") == two.text.count("data: ") == TOKENS + 2
        headers = {"x-request-id": name}
        with client.stream("POST", CHAT, json={"model": "endless"}, headers=headers) as leaving:
            next(leaving.iter_lines())
    # This client tells of it by closing the connection only.
    wait_for_an_abort(server, name)
    assert aborts(server, name) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_server_that_shuts_down(name: str) -> None:
    """
    An answer that ends in time is whole.

    A longer one gets a last event, where the server allows it.
    """
    with (
        running(name) as server,
        httpx.Client(base_url=server.url) as client,
        client.stream("POST", CHAT, json={"model": "silent"}) as short,
        client.stream("POST", CHAT, json={"model": "endless"}) as long,
    ):
        whole, cut = short.iter_lines(), long.iter_lines()
        next(whole)
        next(cut)
        server.process.terminate()
        assert [line for line in whole if line][-1] == "data: [DONE]"
        if name == "granian":
            # It kills its worker, which can say nothing any more.
            with pytest.raises(httpx.RemoteProtocolError):
                list(cut)
        elif name == "hypercorn" and sys.version_info >= (3, 12):
            # asyncio's server waits for its connections there, ahead of hypercorn's grace time.
            assert next(line for line in cut if line).startswith("data: ")
            assert server.process.poll() is None
        else:
            assert '"code":"EngineShutdown"' in [line for line in cut if line][-1]
