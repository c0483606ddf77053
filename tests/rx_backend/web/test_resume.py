"""Resumable streams over HTTP, against the ASGI interface and in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from operators import PositionDropped
from rx_backend import (
    CannotConnect,
    Disconnected,
    EngineAdapter,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    Unknown,
)
from rx_backend.protocols import FinishReason, SamplingOptions, usage
from rx_backend.resumable import ResumableStreams
from rx_backend.web import (
    ChatChunks,
    JsonItems,
    error_response,
    respond,
    resume,
    start_or_resume,
    status_of,
)
from tests.engines import virtual
from tests.engines.scripted import ScriptedEngine, Step
from tests.rx_backend.web.asgi import Client, lines_of

REQUEST = PreprocessedRequest(token_ids=[1])
COUNT = 20


def counting(every_s: float = 0.1) -> list[Step]:
    steps: list[Step] = []
    for number in range(COUNT):
        steps += [every_s, LLMEngineOutput([number], text=f"{number} ")]
    return [*steps, LLMEngineOutput.stop()]


class Service:
    """Routes as a user writes them, over an engine that plays a script."""

    def __init__(self, engine: ScriptedEngine, streams: ResumableStreams) -> None:
        self.engine = engine
        self.streams = streams
        self.app = Starlette(
            routes=[
                Route("/chat", self.chat, methods=["POST"]),
                Route("/streams/{id}", self.stream),
            ]
        )

    async def chat(self, http_request: Request) -> Response:
        context = RequestContext()
        opening = start_or_resume(
            self.streams, http_request, REQUEST, context, owner=http_request.headers.get("user")
        )
        return respond(opening, ChatChunks("m"), context=context)

    async def stream(self, http_request: Request) -> Response:
        opening = resume(
            self.streams,
            http_request,
            http_request.path_params["id"],
            owner=http_request.headers.get("user"),
        )
        return respond(opening, JsonItems())

    async def chat_of(self, last: str | None = None, **options: Any) -> Client:
        headers = {} if last is None else {"Last-Event-ID": last}
        return await Client(headers, path="/chat", **options).ask(self.app)

    async def get(self, path: str, **headers: str) -> Client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await Client(names, method="GET", path=path).ask(self.app)


@asynccontextmanager
async def serving(*script: Step, **options: Any) -> AsyncGenerator[Service]:
    engine = ScriptedEngine(*(script or counting()))
    async with ResumableStreams(EngineAdapter(engine), **options) as streams:
        yield Service(engine, streams)


def ids_of(client: Client) -> list[str]:
    return [line[4:] for line in lines_of(client.body) if line.startswith("id: ")]


def texts_of(client: Client) -> str:
    data = [line[6:] for line in lines_of(client.body) if line.startswith("data: {")]
    chunks = [json.loads(text) for text in data]
    found = [chunk["choices"][0]["delta"] for chunk in chunks if "choices" in chunk]
    items = [chunk["data"] for chunk in chunks if "data" in chunk]
    return "".join(
        [delta.get("content", "") for delta in found] + [item["text"] or "" for item in items]
    )


ANSWER = "".join(f"{number} " for number in range(COUNT))


@virtual
async def test_an_answer_that_fails_before_its_first_token_is_not_held() -> None:
    """The client has its error status, and no event to come back to."""
    async with serving(1.0, CannotConnect("full")) as service:
        client = await service.chat_of()
        assert (client.status, len(service.streams)) == (503, 0)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 2.5), max_size=3), st.booleans())
@virtual
async def test_a_client_that_reconnects_repeatedly(times: list[float], by_items: bool) -> None:
    """It gets each token once, whenever it reconnects; the engine does not notice."""
    async with serving(linger_s=10.0) as service:
        loop, text, last = asyncio.get_running_loop(), "", None
        for lasts in [*times, None]:
            names = {} if last is None else {"Last-Event-ID": last}
            path, method = "/chat", "POST"
            if by_items and last is not None:
                path, method = f"/streams/{last.partition(':')[0]}", "GET"
            client = Client(names, path=path, method=method)
            if lasts is not None:
                loop.call_later(lasts, client.leave)
            await client.ask(service.app)
            text += texts_of(client)
            last = (ids_of(client) or [last])[-1]
            if client.status == 204 or client.is_complete:
                break
        assert text == ANSWER
        assert service.engine.aborts == []


@pytest.mark.rows("A2")
@virtual
async def test_a_client_that_does_not_reconnect() -> None:
    """The answer continues for a while, and is stopped then, once."""
    async with serving(linger_s=1.0) as service:
        client = Client(path="/chat")
        asyncio.get_running_loop().call_later(0.25, client.leave)
        await client.ask(service.app)
        await asyncio.sleep(0.6)
        assert service.engine.aborts == []
        await asyncio.sleep(0.6)
        assert len(service.engine.aborts) == 1


@virtual
async def test_from_every_position() -> None:
    """The rest, with the ids of its events, and the end; by header, or by the query."""
    async with serving() as service:
        ids = ids_of(await service.chat_of())
        assert [int(name.partition(":")[2]) for name in ids] == list(range(1, COUNT + 2))
        name = ids[0].partition(":")[0]
        for after in range(COUNT + 1):
            rest = "".join(f"{number} " for number in range(after, COUNT))
            again = await service.chat_of(f"{name}:{after}")
            assert texts_of(again) == rest
            assert lines_of(again.body)[-1] == "data: [DONE]"
            items = await service.get(f"/streams/{name}?after={after}")
            assert texts_of(items) == rest
            assert lines_of(items.body)[-2:] == ["event: done", "data: {}"]
        # The header is of a browser that reconnects, and newer than what was in the address.
        items = await service.get(f"/streams/{name}?after=0", last_event_id=f"{name}:19")
        assert texts_of(items) == "19 "


@virtual
async def test_a_client_that_has_everything() -> None:
    """Gets the end alone: 204, at which a browser stops to reconnect, or OpenAI's last line."""
    async with serving() as service:
        last = ids_of(await service.chat_of())[-1]
        name = last.partition(":")[0]
        items = await service.get(f"/streams/{name}", last_event_id=last)
        assert (items.status, items.body, items.is_complete) == (204, b"", True)
        chat = await service.chat_of(last)
        assert (chat.status, chat.body) == (200, b"data: [DONE]\n\n")


@virtual
async def test_a_client_that_was_cut_off_before_the_usage() -> None:
    """Gets that of the whole answer, from whatever position it comes back."""
    script = [
        LLMEngineOutput([1], text="a", index=0),
        LLMEngineOutput([2], text="b", index=1),
        LLMEngineOutput(index=0, finish_reason=FinishReason.STOP, completion_usage=usage(5, 1)),
        LLMEngineOutput(index=1, finish_reason=FinishReason.STOP, completion_usage=usage(5, 2)),
    ]
    form = ChatChunks("m", include_usage=True)
    async with ResumableStreams(EngineAdapter(ScriptedEngine(*script))) as streams:
        two = PreprocessedRequest(token_ids=[1], sampling_options=SamplingOptions(n=2))
        whole = await Client().ask(respond(streams.start(two), form))
        for last in ids_of(whole):
            name, _, position = last.partition(":")
            again = await Client().ask(respond(streams.resume(name, int(position)), form))
            *chunks, end = [line for line in lines_of(again.body) if line.startswith("data: ")]
            assert end == "data: [DONE]"
            cost = json.loads(chunks[-1][6:])["usage"]
            assert cost == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
            assert len(chunks) == len(script) - int(position) + 1


@virtual
async def test_each_answer_of_a_chat_has_its_role_once() -> None:
    """From whatever position a client comes back, and however late an answer begins."""
    script = [
        LLMEngineOutput([1], text="a", index=0),
        LLMEngineOutput([1], index=1),
        LLMEngineOutput([2], text="b", index=1),
        LLMEngineOutput([2], text="c", index=0),
        *(LLMEngineOutput(index=index, finish_reason=FinishReason.STOP) for index in (2, 1, 0)),
    ]
    async with ResumableStreams(EngineAdapter(ScriptedEngine(*script))) as streams:
        three = PreprocessedRequest(token_ids=[1], sampling_options=SamplingOptions(n=3))
        whole = await Client().ask(respond(streams.start(three), ChatChunks("m")))
        for last in ids_of(whole):
            seen = whole.body[: whole.body.index(b"\n\n", whole.body.index(f"{last}\n".encode()))]
            name, _, position = last.partition(":")
            again = streams.resume(name, int(position))
            both = seen + (await Client().ask(respond(again, ChatChunks("m")))).body
            for index in range(3):
                assert both.count(f'"index":{index},"delta":{{"role":'.encode()) == 1


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/streams/{id}?after=99", {}, 400, "PositionUnknown"),
        ("/streams/{id}?after=-1", {}, 400, "InvalidArgument"),
        ("/streams/{id}?after=²", {}, 400, "InvalidArgument"),
        ("/streams/{id}", {"last_event_id": "nonsense"}, 400, "InvalidArgument"),
        ("/streams/{id}", {"last_event_id": "other:3"}, 400, "InvalidArgument"),
        ("/streams/{id}", {"last_event_id": "{id}:99"}, 400, "PositionUnknown"),
        ("/streams/other", {}, 404, "StreamNotFound"),
        ("/streams/{id}", {"user": "mallory"}, 404, "StreamNotFound"),
        ("/streams/{id}?after=0", {}, 410, "PositionDropped"),
    ],
)
@virtual
async def test_streams_that_can_not_be_resumed(
    path: str, headers: dict[str, str], status: int, code: str
) -> None:
    """It is reported by a status, and by a code for each reason; nothing of the stream is."""
    async with serving(max_bytes=100) as service:
        name = ids_of(await service.chat_of())[0].partition(":")[0]
        given_headers = {key: value.format(id=name) for key, value in headers.items()}
        client = await service.get(path.format(id=name), **given_headers)
        assert client.status == status
        assert json.loads(client.body)["error"]["code"] == code
        assert "retry-after" not in client.headers
        names = {key.replace("_", "-"): value for key, value in given_headers.items()}
        head = Client(names, method="HEAD", path=path.format(id=name))
        await head.ask(service.app)
        assert (head.status, head.body) == (status, b"")


@pytest.mark.parametrize(
    ("last", "status", "code"),
    [
        ("other:3", 404, "StreamNotFound"),
        ("{id}:99", 400, "PositionUnknown"),
        ("{id}:one", 400, "InvalidArgument"),
        ("{id}:0", 410, "PositionDropped"),
    ],
)
@virtual
async def test_a_chat_that_can_not_be_resumed(last: str, status: int, code: str) -> None:
    """Is refused in the same way, and not begun anew."""
    async with serving(max_bytes=100) as service:
        name = ids_of(await service.chat_of())[0].partition(":")[0]
        client = await service.chat_of(last.format(id=name))
        assert (client.status, json.loads(client.body)["error"]["code"]) == (status, code)
        assert service.engine.calls == 1


@virtual
async def test_too_many_streams() -> None:
    """The response says when the client may try again."""
    async with serving(max_streams=1) as service:
        begun = asyncio.create_task(service.chat_of())
        await asyncio.sleep(0.5)
        refused = await service.chat_of()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.body)["error"]["code"] == "TooManyStreams"
        assert texts_of(await begun) == ANSWER


@virtual
async def test_a_reader_that_falls_behind() -> None:
    """What is not held any more is an error at that place, with its code; never a gap."""
    async with serving(max_bytes=100) as service:
        slow = Client(path="/chat", reads=2)
        reading = asyncio.create_task(slow.ask(service.app))
        await asyncio.sleep(0.15)
        name = ids_of(slow)[0].partition(":")[0]
        items = Client(method="GET", path=f"/streams/{name}", reads=2)
        reading_items = asyncio.create_task(items.ask(service.app))
        await asyncio.sleep(0.2)
        await service.get(f"/streams/{name}?after=2")
        for client in (slow, items):
            client._room.set()  # pyright: ignore[reportPrivateUsage]
        await asyncio.gather(reading, reading_items)
        for client in (slow, items):
            last = json.loads(lines_of(client.body)[-1][6:])
            assert last["error"]["code"] == "PositionDropped"
            assert ANSWER.startswith(texts_of(client))
            assert not client.body.endswith((b"[DONE]\n\n", b"data: {}\n\n"))


@virtual
async def test_a_failure_is_kept_for_reconnecting_clients() -> None:
    """A response that begins with it has its status."""
    async with serving(
        LLMEngineOutput([1], text="a"), 0.1, Disconnected("no room left")
    ) as service:
        first = await service.chat_of()
        name = ids_of(first)[0].partition(":")[0]
        assert (first.status, b"no room left" in first.body) == (200, True)
        from_beginning = await service.get(f"/streams/{name}")
        assert lines_of(from_beginning.body)[2:4] == [f"id: {name}:2", "event: error"]
        for again in (
            await service.get(f"/streams/{name}?after=1"),
            await service.chat_of(f"{name}:1"),
        ):
            assert (again.status, b"no room left" in again.body) == (502, True)


@virtual
async def test_without_an_id() -> None:
    """A route that takes none from its path needs the header."""
    async with serving() as service:
        request = Request(Client(method="GET").scope)
        with pytest.raises(Exception, match="Last-Event-ID: expected <stream id>:<position>"):
            await resume(service.streams, request)


def test_a_position_that_is_dropped_while_it_is_waited_for() -> None:
    """It is reported like one that was dropped before."""
    failure = Unknown("position 1 was dropped")
    failure.__cause__ = PositionDropped(1, 5)
    assert status_of(failure) == 410
    response = error_response(failure)
    assert json.loads(bytes(response.body))["error"] == {
        "message": "position 1 was dropped: items are held from 5 on",
        "type": "invalid_request_error",
        "param": None,
        "code": "PositionDropped",
    }
