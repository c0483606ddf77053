"""`rx_backend.web.respond`, against the ASGI interface and in virtual time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from operators import fuse
from rx_backend import (
    Annotated,
    BackendError,
    CannotConnect,
    Disconnected,
    EngineAdapter,
    InvalidArgument,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    ResponseStream,
)
from rx_backend.protocols import SamplingOptions
from rx_backend.testing import run_virtual
from rx_backend.web import ChatChunks, JsonItems, context_of, respond
from tests.engines import virtual
from tests.engines.scripted import ScriptedEngine, Step
from tests.logs import capture_logs
from tests.rx_backend.web.asgi import Client, lines_of

REQUEST = PreprocessedRequest(token_ids=[1])
CHAT = ChatChunks("m", id="c", created=7)


def word(text: str) -> LLMEngineOutput:
    return LLMEngineOutput([7], text=text)


class Served:
    """A response over an engine that plays a script."""

    def __init__(self, *script: Step, setup: list[Step] | None = None, **options: Any) -> None:
        self.engine = ScriptedEngine(*script, setup=setup or [])
        self.context = RequestContext("r1")
        self.options: dict[str, Any] = {"format": CHAT, "keep_alive_s": None, **options}

    def opening(self) -> Coroutine[Any, Any, ResponseStream[Any]]:
        return EngineAdapter(self.engine).generate(REQUEST, self.context)

    async def ask(self, client: Client) -> Client:
        return await client.ask(respond(self.opening(), context=self.context, **self.options))


def asked(served: Served, **options: Any) -> Client:
    async def main() -> Client:
        return await served.ask(Client(**options))

    return run_virtual(main())


def data_of(client: Client) -> list[Any]:
    """Return the data of the events."""
    texts = [line.removeprefix("data: ") for line in lines_of(client.body) if line[:5] == "data:"]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def contents(client: Client) -> list[str | None]:
    chunks = [event for event in data_of(client) if event != "[DONE]" and "choices" in event]
    return [chunk["choices"][0]["delta"].get("content") for chunk in chunks]


@pytest.mark.rows("A1")
def test_an_item_is_sent_in_the_iteration_it_arrives() -> None:
    """The headers with the first token, each token when the engine has it; the end is no abort."""
    served = Served(1.0, word("a"), 2.0, word("b"), 3.0, LLMEngineOutput.stop())
    client = asked(served)
    assert (client.status, client.times) == (200, [1.0, 3.0, 6.0, 6.0])
    assert contents(client) == ["a", "b", None]
    assert data_of(client)[-1] == "[DONE]"
    assert client.is_complete
    assert (served.engine.aborts, served.engine.closed) == ([], 1)
    assert not served.context.is_stopped


def test_proxies_are_told_not_to_buffer() -> None:
    """No cache keeps it, nothing compresses it, and nginx does not collect it."""
    client = asked(Served(word("a"), LLMEngineOutput.stop(), headers={"X-Mine": "1"}))
    assert client.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-mine": "1",
        "x-request-id": "r1",
    }


def test_an_id_that_could_be_another_header_is_not_sent() -> None:
    """Where a service made the context's id from what a client sent."""
    served = Served(word("a"), LLMEngineOutput.stop())
    served.context = RequestContext("r1\r\nset-cookie: a=b")
    assert "x-request-id" not in asked(served).headers


@pytest.mark.rows("S5", "S6")
@pytest.mark.parametrize("where", ["in the set-up", "as the first item", "behind a handshake"])
@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InvalidArgument("too long"), 400, ("too long", "invalid_request_error")),
        (ValueError("too long"), 400, ("too long", "invalid_request_error")),
        (CannotConnect("full"), 503, ("full", "server_error")),
        (Disconnected("peer gone"), 502, ("peer gone", "server_error")),
        (ConnectionResetError("10.0.0.7"), 502, ("the connection to the engine was lost",)),
        (TimeoutError(), 504, ("the engine did not answer in time",)),
        (KeyError("/srv/secret"), 500, ("the engine failed", "server_error")),
    ],
)
def test_a_failure_before_the_first_token_has_a_status(
    where: str, error: Exception, status: int, told: tuple[str, ...]
) -> None:
    """Of its own, and OpenAI's error object; the text of an untyped exception is not for clients."""
    if where == "in the set-up":
        served = Served(setup=[1.0, error])
    else:
        served = Served(*([LLMEngineOutput(), 1.0] if "behind" in where else []), error)
    client = asked(served)
    found = json.loads(client.body)["error"]
    assert (client.status, client.headers["content-type"]) == (status, "application/json")
    assert (found["message"], found["type"])[: len(told)] == told
    assert (client.headers["x-request-id"], client.is_complete) == ("r1", True)
    assert served.engine.aborts == []


def test_an_error_terminal_before_the_first_token_has_a_status() -> None:
    """With the engine's message, which is written for clients."""
    client = asked(Served(LLMEngineOutput.error("no memory left")))
    assert (client.status, json.loads(client.body)["error"]["message"]) == (500, "no memory left")


def test_a_failure_with_unencodable_text_has_its_status() -> None:
    """As where a client sent a character cut in two, and the engine says what is wrong with it."""
    client = asked(Served(InvalidArgument("not known: \ud83d")))
    assert client.status == 400
    assert json.loads(client.body)["error"]["message"] == "not known: \ufffd"


@pytest.mark.parametrize("failure", [Disconnected("peer gone"), LLMEngineOutput.error("peer gone")])
def test_a_later_failure_is_an_event(failure: Step) -> None:
    """The last one: a client must not take the answer for a whole one."""
    client = asked(Served(word("a"), 1.0, failure))
    assert (client.status, client.is_complete) == (200, True)
    assert data_of(client)[-1]["error"]["message"] == "peer gone"
    assert "[DONE]" not in data_of(client)


@virtual
async def test_headers_first() -> None:
    """They go out before the engine is set up; a failure then is an event."""
    served = Served(setup=[5.0, CannotConnect("full")], headers_first=True, keep_alive_s=2.0)
    client = Client()
    asking = asyncio.create_task(served.ask(client))
    await asyncio.sleep(1.0)
    assert (client.status, client.body) == (200, b"")
    await asking
    assert lines_of(client.body)[:2] == [": keep-alive", ": keep-alive"]
    assert client.times == [2.0, 4.0, 5.0]
    assert data_of(client)[-1]["error"]["code"] == "CannotConnect"


def test_keep_alive_is_sent_only_in_silence() -> None:
    """After so long without an event; it is a line, without the blank one that makes an event."""
    served = Served(word("a"), 1.5, word("b"), 5.0, LLMEngineOutput.stop(), keep_alive_s=2.0)
    client = asked(served)
    assert client.times == [0.0, 1.5, 3.5, 5.5, 6.5, 6.5]
    assert b"\n\n: keep-alive\n: keep-alive\ndata: " in client.body


class Fails(Exception):
    """What makes an application's own code fail."""


@pytest.mark.rows("A2", "S7")
@pytest.mark.parametrize("headers_first", [False, True])
@virtual
async def test_a_disconnect_before_the_headers_is_one_abort(
    headers_first: bool,
) -> None:
    """Though it is their sending that fails."""
    client = Client(fails=True)

    def leave(_: RequestContext) -> None:
        client.leave()

    served = Served(leave, word("a"), 9.0, headers_first=headers_first)
    await served.ask(client)
    assert (served.engine.aborts, served.engine.closed) == ([0.0], 1)
    assert served.context.is_killed


@virtual
async def test_a_client_that_left_before_anything_was_opened() -> None:
    """Then nothing is."""
    served, client = Served(word("a"), headers_first=True), Client(fails=True)
    client.leave()
    await served.ask(client)
    assert served.engine.calls == 0


class Deaf(Client):
    """A client whose leaving only shows where something is sent to it."""

    async def _receive(self) -> Message:
        return await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("kind", [Client, Deaf])
@virtual
async def test_a_client_that_leaves_is_no_error_in_the_log(kind: type[Client]) -> None:
    """Though it is the sending of an event that fails."""
    client = kind(fails=True)

    def leave(_: RequestContext) -> None:
        client.leave()

    served = Served(word("a"), leave, word("b"), 9.0)
    with capture_logs(logging.WARNING) as logged:
        await served.ask(client)
    assert (contents(client), served.engine.aborts, logged) == (["a"], [0.0], [])


async def swallow_cancellation(_: RequestContext) -> None:
    """Take five seconds for a set-up, whoever cancels it; a step."""
    ends = asyncio.get_running_loop().time() + 5.0
    while (left := ends - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


@pytest.mark.rows("A2", "S7")
@pytest.mark.parametrize("shuts_down", [False, True])
@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize("headers_first", [False, True])
@virtual
async def test_a_set_up_that_can_not_be_cancelled(
    shuts_down: bool, with_context: bool, headers_first: bool
) -> None:
    """Its stream is closed as soon as there is one, and the client has one response."""
    engine = ScriptedEngine(word("a"), 9.0, word("b"), setup=[swallow_cancellation])
    context = RequestContext("r1")
    response = respond(
        EngineAdapter(engine).generate(REQUEST, context),
        CHAT,
        context=context if with_context else None,
        headers_first=headers_first,
    )
    client = Client(fails=not shuts_down)
    asking = asyncio.create_task(client.ask(response))
    await asyncio.sleep(1.0)
    if shuts_down:
        asking.cancel()
    else:
        client.leave()
    await asyncio.wait([asking])
    assert asyncio.get_running_loop().time() == 5.0
    assert asking.cancelled() or asking.exception() is None
    assert engine.pulls == 0
    assert context.is_killed
    assert client.late == 0


@pytest.mark.rows("A2")
def test_an_item_that_can_not_be_written_stops_the_request() -> None:
    """It is the last event, so the response does not wait for the engine."""
    served = Served(
        word("a"), LLMEngineOutput([1], extra_args={"a": object()}), 9.0, format=JsonItems()
    )
    client = asked(served)
    assert data_of(client)[-1]["comment"] == ["the engine failed"]
    assert (served.engine.aborts, served.engine.closes) == ([0.0], [0.0])


@pytest.mark.parametrize("at", [0.5, 1.5])
@virtual
async def test_middleware_gets_a_response(at: float) -> None:
    """Starlette's own fails without one, also where the client has left."""
    seen: list[int] = []

    class Middleware(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            seen.append(response.status_code)
            return response

    served = Served(1.0, word("a"), 9.0)

    async def route(request: Request) -> Response:
        return respond(served.opening(), CHAT)

    app = Starlette(routes=[Route("/", route, methods=["POST"])])
    app.add_middleware(Middleware)
    client = Client()
    asyncio.get_running_loop().call_later(at, client.leave)
    await client.ask(app)
    assert seen == [499 if at == 0.5 else 200]
    assert served.engine.aborts == [at]


@pytest.mark.rows("A2", "A3", "S7")
@given(
    # Never in the moment in which something else happens.
    st.integers(0, 39).map(lambda eighths: eighths / 8 + 1 / 16),
    st.sampled_from([None, 0.5]),
    st.booleans(),
    st.booleans(),
)
@virtual
async def test_a_disconnect_is_one_abort(
    at: float, keep_alive_s: float | None, headers_first: bool, fails: bool
) -> None:
    """In the set-up, in the prefill, between two tokens: at once, and nothing is left."""
    served = Served(1.0, word("a"), 1.0, word("b"), 1.0, LLMEngineOutput.stop(), setup=[1.0])
    served.options |= {"keep_alive_s": keep_alive_s, "headers_first": headers_first}
    client = Client(fails=fails)
    asyncio.get_running_loop().call_later(at, client.leave)
    await served.ask(client)
    assert client.is_complete == (at > 4)
    if not client.is_complete:
        assert asyncio.get_running_loop().time() == at
        assert served.context.is_killed
    # In the set-up there is no stream yet: that is cancelled. Behind the terminal nothing is aborted.
    assert served.engine.aborts == ([at] if 1 < at < 4 else [])
    assert served.engine.closes == ([] if at < 1 else [min(at, 4.0)])


@pytest.mark.rows("S4")
@virtual
async def test_a_client_that_does_not_read_pauses_the_engine() -> None:
    """And it is released when the client leaves."""
    served = Served(*[word("a")] * 9, LLMEngineOutput.stop(), keep_alive_s=1.0)
    client = Client(reads=2)
    asyncio.get_running_loop().call_later(10.0, client.leave)
    await served.ask(client)
    assert served.engine.pulls == 2
    assert len(served.engine.aborts) == 1


@pytest.mark.rows("A2", "S7")
@virtual
async def test_a_client_that_never_reads_times_out() -> None:
    """After the time for it, however long its connection stays open; one that is slow is served."""
    script = [step for _ in range(20) for step in (1.0, word("a"))]
    served = Served(*script, LLMEngineOutput.stop(), send_timeout_s=4.0)
    client = await served.ask(Client(reads=5))
    assert not client.is_complete
    assert len(served.engine.aborts) == 1
    assert 9.0 <= served.engine.aborts[0] <= 13.0
    slow = await Served(word("a"), 30.0, LLMEngineOutput.stop(), send_timeout_s=4.0).ask(Client())
    assert slow.is_complete


@pytest.mark.parametrize("at", [0.5, 1.5])
@virtual
async def test_a_server_that_shuts_down_sends_a_last_event(at: float) -> None:
    """By a status, or by a last event; the engine stops."""
    served, client = Served(1.0, word("a"), 9.0), Client()
    asking = asyncio.create_task(served.ask(client))
    await asyncio.sleep(at)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.is_complete
    assert client.status == (503 if at == 0.5 else 200)
    assert b'"code":"EngineShutdown"' in client.body
    assert (served.engine.aborts, served.engine.closes) == ([at], [at])


@virtual
async def test_a_shutdown_does_not_wait_for_engines() -> None:
    """The last event is out before the engine has closed: the process may end any moment."""
    engine = ScriptedEngine(word("a"), 9.0, closing=[5.0])
    client = Client()
    stream = await EngineAdapter(engine).generate(REQUEST)
    response = respond(stream, CHAT, keep_alive_s=2.0)
    asking = asyncio.create_task(client.ask(response))
    await asyncio.sleep(1.0)
    asking.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert client.is_complete
    await asyncio.wait([asking])
    assert (engine.closed, client.late) == (1, 0)


@virtual
async def test_nothing_follows_the_last_event_of_a_shutdown() -> None:
    """Also from an iterator that goes on when it is cancelled."""

    async def items() -> AsyncIterator[Annotated[LLMEngineOutput]]:
        yield Annotated(word("a"))
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(9.0)
        yield Annotated(word("b"))
        yield Annotated(LLMEngineOutput.stop())

    client = Client()
    asking = asyncio.create_task(client.ask(respond(items(), CHAT, headers_first=True)))
    await asyncio.sleep(1.0)
    asking.cancel()
    await asyncio.wait([asking])
    assert (client.is_complete, client.late) == (True, 0)
    assert contents(client) == ["a"]


@virtual
async def test_the_last_event_of_a_shutdown_does_not_wait_for_slow_clients() -> None:
    """Longer than a second."""
    served, client = Served(word("a"), word("b")), Client(reads=1)
    asking = asyncio.create_task(served.ask(client))
    await asyncio.sleep(1.0)
    client._reads = 2  # pyright: ignore[reportPrivateUsage]
    asking.cancel()
    await asyncio.wait([asking])
    assert asyncio.get_running_loop().time() == 2.0


@pytest.mark.rows("A1")
def test_head_opens_the_stream_and_pulls_nothing() -> None:
    """The headers are those of the stream; the request is killed before it begins."""
    served = Served(word("a"))
    client = asked(served, method="HEAD")
    assert (client.status, client.body, served.engine.pulls) == (200, b"", 0)
    assert client.headers["content-type"].startswith("text/event-stream")
    assert client.is_complete
    assert served.context.is_killed


@pytest.mark.rows("S7")
@virtual
async def test_a_client_that_leaves_a_head_request_is_no_fault() -> None:
    """Its stream is closed."""
    engine = ScriptedEngine(9.0)
    stream = await EngineAdapter(engine).generate(REQUEST)
    client = Client(method="HEAD", fails=True)
    client.leave()
    await client.ask(respond(stream, CHAT))
    assert stream.dropped


def test_head_is_rejected_like_get() -> None:
    """With the status of a set-up that fails, and without a body."""
    client = asked(Served(setup=[CannotConnect("no engine")]), method="HEAD")
    assert (client.status, client.body) == (503, b"")
    assert client.headers["content-type"] == "application/json"


@pytest.mark.rows("S7")
@virtual
async def test_head_closes_an_existing_stream() -> None:
    """It is not left to the garbage collector."""
    engine = ScriptedEngine(9.0)
    stream = await EngineAdapter(engine).generate(REQUEST)
    await Client(method="HEAD").ask(respond(stream, CHAT))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.rows("A2")
@virtual
async def test_a_failure_of_one_answer_ends_all() -> None:
    """OpenAI's clients read no further than an error: what runs for them is stopped."""
    failed = LLMEngineOutput.error("boom")
    engine = ScriptedEngine(word("a"), failed, 9.0)
    request = PreprocessedRequest(token_ids=[1], sampling_options=SamplingOptions(n=2))
    client = await Client().ask(respond(EngineAdapter(engine).generate(request), CHAT))
    assert data_of(client)[-1]["error"]["message"] == "boom"
    assert (len(engine.aborts), engine.closed) == (1, 1)
    assert asyncio.get_running_loop().time() == 0


def test_a_background_task_runs_at_the_end() -> None:
    """As with any response of Starlette."""
    done: list[str] = []
    asked(Served(LLMEngineOutput.stop(), background=BackgroundTask(done.append, "done")))
    assert done == ["done"]


@virtual
async def test_an_existing_stream_can_be_sent() -> None:
    """It may be given as it is: a stream of the adapter, or any iterator of items."""
    engine = ScriptedEngine(word("a"), LLMEngineOutput.stop())
    stream = await EngineAdapter(engine).generate(REQUEST, RequestContext("r2"))
    client = await Client().ask(respond(stream, CHAT))
    assert (contents(client), client.headers["x-request-id"]) == (["a", None], "r2")

    async def items() -> AsyncIterator[Annotated[LLMEngineOutput]]:
        yield Annotated(word("a"))
        yield Annotated(LLMEngineOutput.stop())

    assert contents(await Client().ask(respond(items(), CHAT))) == ["a", None]
    assert contents(await Client().ask(respond(fuse(items(), []), CHAT))) == ["a", None]


@virtual
async def test_an_exception_of_the_service_is_left_to_the_framework() -> None:
    """An exception that is no failure of a stream reaches the application's own handlers."""

    async def opening() -> ResponseStream[Any]:
        raise Fails

    async def route(request: Request) -> Response:
        return respond(opening(), CHAT)

    async def handler(request: Request, error: Exception) -> Response:
        return Response("mine", 418)

    app = Starlette(
        routes=[Route("/", route, methods=["POST"])], exception_handlers={Fails: handler}
    )
    assert (await Client().ask(app)).status == 418


@virtual
async def test_a_failure_after_the_error_mapping() -> None:
    """What an iterator raises in mid-stream is an event too, and in the log."""

    async def items() -> AsyncIterator[Annotated[LLMEngineOutput]]:
        yield Annotated(word("a"))
        raise KeyError("/srv/secret")

    with capture_logs(logging.ERROR) as logged:
        client = await Client().ask(
            respond(items(), JsonItems(), context=RequestContext("r1"), keep_alive_s=None)
        )
    assert data_of(client)[-1]["comment"] == ["the engine failed"]
    assert b"secret" not in client.body
    (event,) = logged
    assert (event["request_id"], event["error_class"]) == ("r1", "KeyError")


@pytest.mark.rows("S6")
@pytest.mark.parametrize("count", [0, 1])
@virtual
async def test_a_typed_error_of_an_iterator_is_a_failure_of_its_own(count: int) -> None:
    """It has its status before the first token, and its event later; it is no bug to be logged."""

    async def items() -> AsyncIterator[Annotated[LLMEngineOutput]]:
        for _ in range(count):
            yield Annotated(word("a"))
        raise CannotConnect("full")

    with capture_logs(logging.ERROR) as logged:
        client = await Client().ask(respond(items(), CHAT))
    assert (client.status, logged) == (200 if count else 503, [])
    assert b'"full"' in client.body


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("name", ["keep_alive_s", "send_timeout_s"])
@virtual
async def test_times_are_checked(name: str, value: object) -> None:
    """When the response is made."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument, match=f"{name}: .* seconds .or None., more than 0, got"):
        respond(asyncio.get_running_loop().create_future(), CHAT, **options)


def test_a_stream_is_expected() -> None:
    """Anything else is rejected by name."""
    wrong: Any = "text"
    with pytest.raises(InvalidArgument, match="stream: expected an asynchronous iterator"):
        respond(wrong, CHAT)


@pytest.mark.rows("P1")
def test_a_context_has_the_trace_and_the_id() -> None:
    """And of the other headers those that the service asks for."""
    headers = {"Traceparent": "00-1-2-01", "X-Request-ID": "req-7", "X-Tenant": "t", "Cookie": "s"}
    context = context_of(headers, metadata=["X-Tenant"])
    assert context.id == "req-7"
    assert dict(context.trace_headers) == {"traceparent": "00-1-2-01"}
    assert dict(context.metadata) == {"x-tenant": "t"}


@pytest.mark.parametrize("given_id", ["", "a b", "a\nb", "ä", "x" * 129, "../x\x00", "'"])
def test_an_unsafe_id_is_replaced(given_id: str) -> None:
    """By a random one."""
    context = context_of({"x-request-id": given_id})
    assert context.id != given_id
    assert len(context.id) == 32


@virtual
async def test_error_responses_without_a_stream() -> None:
    """A handler for the application gives them the same form."""
    from rx_backend.web import error_response

    def handler(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def route(request: Request) -> Response:
        raise InvalidArgument("messages: expected a list")

    app = Starlette(
        routes=[Route("/", route, methods=["POST"])],
        exception_handlers={BackendError: handler},
    )
    client = await Client().ask(app)
    assert (client.status, b"expected a list" in client.body) == (400, True)
