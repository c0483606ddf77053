"""What OpenAIEngine makes of a server's answers, the odd ones too."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import ClientSession, web
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from rx_backend import EngineAdapter, RequestContext
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.engines.openai.client import OpenAIClient
from rx_backend.errors import (
    BackendError,
    CannotConnect,
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    StreamIncomplete,
    Unknown,
)
from rx_backend.protocols import (
    GuidedDecodingOptions,
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    PromptTokensDetails,
    SamplingOptions,
    StopConditions,
    TopLogprob,
    usage,
)
from tests.engines import real_time
from tests.rx_backend.engines.driving import chunks_of
from tests.rx_backend.engines.openai.scripted_server import (
    ScriptedServer,
    choice,
    data,
    started,
    streaming,
)

LAST = choice(8, finish_reason="length")
USAGE: dict[str, Any] = {
    "choices": [],
    "usage": {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    },
}
PROMPT = PreprocessedRequest(token_ids=[1, 2])


class Letters:
    """A tokenizer: 1 is "a", 2 is "b" and so on."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(96 + token_id) for token_id in token_ids)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


async def ask(
    *parts: bytes,
    request: PreprocessedRequest = PROMPT,
    cut: bool = False,
    server: ScriptedServer | None = None,
    server_kind: str | None = None,
    **options: Any,
) -> list[LLMEngineOutput]:
    """Return the chunks that an engine makes of a stream."""
    server = server or ScriptedServer()
    server.answer = streaming(*parts, cut=cut)
    async with started(server, server=server_kind, **options) as engine:
        return await chunks_of(engine, request)


def failure(*parts: bytes, **options: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        asyncio.run(ask(*parts, **options))
    return caught.value


@pytest.mark.rows("E1", "E2", "E3")
def test_tokens_and_usage_of_vllm() -> None:
    """Chunks have the server's token ids alone; the usage, which comes last, is on the terminal."""
    server = ScriptedServer()
    body = data(choice(7), LAST, USAGE)
    chunks = asyncio.run(ask(body, server=server))
    assert chunks[0] == LLMEngineOutput([7])
    assert chunks[1].token_ids == [8]
    assert str(chunks[1].finish_reason) == "length"
    used = usage(2, 2)
    used.prompt_tokens_details = PromptTokensDetails(cached_tokens=1)
    assert chunks[1].completion_usage == used
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {
            "model": "m",
            "prompt": [1, 2],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 98,
            "return_token_ids": True,
        }
    ]


@pytest.mark.parametrize("end", [b"", b"data: [DONE]", b"data: [DONE]\n\n"])
def test_an_answer_with_a_finish_reason_is_complete(end: bytes) -> None:
    """Whether or not the server sends its usage, and what OpenAI sends after the last event."""
    chunks = asyncio.run(ask(data(choice(7), LAST, end=end)))
    assert [chunk.token_ids for chunk in chunks] == [[7], [8]]
    assert chunks[-1].completion_usage == usage(2, 2)


def test_a_connection_lost_after_the_finish_reason_is_no_failure() -> None:
    """Only the server's usage is missing."""
    chunks = asyncio.run(ask(data(choice(7), LAST, end=b""), cut=True))
    assert [chunk.token_ids for chunk in chunks] == [[7], [8]]
    assert chunks[-1].completion_usage == usage(2, 2)


@pytest.mark.parametrize("odd", [{"error": "boom"}, {"usage": {"prompt_tokens": None}}], ids=str)
def test_an_error_after_the_finish_reason_is_no_failure(odd: object) -> None:
    """Whatever that is: the answer is complete."""
    chunks = asyncio.run(ask(data(choice(7), LAST, odd)))
    assert [str(chunk.finish_reason) for chunk in chunks] == ["None", "length"]


@pytest.mark.rows("S9")
def test_a_stream_without_a_finish_reason_is_incomplete() -> None:
    """With or without its last event."""
    assert isinstance(failure(data(choice(7))), StreamIncomplete)
    assert isinstance(failure(data(choice(7), end=b"")), StreamIncomplete)


@pytest.mark.rows("S6")
def test_a_cut_connection_is_disconnected() -> None:
    """What arrived before comes out first."""
    server = ScriptedServer(streaming(data(choice(7), end=b""), cut=True))
    got: list[LLMEngineOutput] = []

    async def read() -> None:
        async with started(server) as engine:
            async for chunk in engine.generate(PROMPT, RequestContext()):
                got.append(chunk)  # noqa: PERF401  what came before the error

    with pytest.raises(Disconnected, match=r"http://127\.0\.0\.1:"):
        asyncio.run(read())
    assert got == [LLMEngineOutput([7])]


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidArgument),
        (404, InvalidArgument),
        (408, ResponseTimeout),
        (422, InvalidArgument),
        (429, CannotConnect),
        (500, Unknown),
        (502, Disconnected),
        (503, CannotConnect),
        (504, ResponseTimeout),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "it says so", "code": "some_word"}}',
        b'{"object": "error", "message": "it says so", "code": 418}',
        b'{"error": "it says so"}',
        b"it says so",
    ],
)
@real_time
async def test_an_error_status_has_a_kind(
    status: int, kind: type[BackendError], body: bytes
) -> None:
    """The one of the table, with the server's own words however it puts them."""

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async with started(ScriptedServer(refuse)) as engine:
        with pytest.raises(kind) as caught:
            await chunks_of(engine, PROMPT)
    assert type(caught.value) is kind
    assert caught.value.message == "it says so"


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("status", "type_", "body", "kind", "words"),
    [
        (
            200,
            "application/json",
            b'{"error": {"code": 429, "message": "full"}}',
            CannotConnect,
            "full",
        ),
        (200, "text/html", b"<h1>log in</h1>", Unknown, "status 200.*log in"),
        (302, "text/html", b"", Unknown, "status 302"),
    ],
)
@real_time
async def test_an_answer_other_than_a_stream_is_reported(
    status: int, type_: str, body: bytes, kind: type[BackendError], words: str
) -> None:
    """With what a proxy or the server says in its place; a redirect is not followed."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(
            status=status, body=body, content_type=type_, headers={"location": "/v1/models"}
        )

    async with started(ScriptedServer(answer)) as engine:
        with pytest.raises(kind, match=words):
            await chunks_of(engine, PROMPT)


@real_time
async def test_a_server_that_wants_a_key() -> None:
    """The start says how to give one; a server that only refuses the key is not lost."""

    async def forbidden(request: web.Request) -> web.Response:
        return web.Response(status=401)

    server = ScriptedServer()
    server.models = ()
    server.handle = forbidden
    async with server.running():
        engine = OpenAIEngine(server.url)
        with pytest.raises(InvalidArgument, match="401: pass the key by api_key_env"):
            await engine.start(0)
        client = OpenAIClient(server.url, {}, 1.0)
        await client.open()
        answers = await client.answers()
        await client.close()
    assert answers


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"error": {"message": "no", "code": 400}}, InvalidArgument),
        ({"error": {"message": "no", "type": "server_error"}}, Unknown),
        ({"error": "no", "error_type": "generation"}, Unknown),
        ({"object": "error", "message": "no", "code": 503}, CannotConnect),
    ],
)
def test_an_error_inside_a_stream_ends_it(event: object, kind: type[BackendError]) -> None:
    """By the code that it has, if that is a status."""
    error = failure(data(choice(7), event))
    assert (type(error), error.message) == (kind, "no")


def test_an_invalid_event_is_reported() -> None:
    """JSON that breaks off, or has another form, is shown."""
    assert "'{oops'" in str(failure(b"data: {oops\n\n"))
    assert isinstance(failure(data({"choices": [{"index": "first"}]})), Unknown)


@pytest.mark.parametrize("raw", [b'{"message": "\xff"}', b'{"x": ' + b"[" * 100_000])
def test_an_unparsable_event_is_no_client_error(raw: bytes) -> None:
    """Bytes that are no UTF-8, and JSON that is too deep."""
    assert isinstance(failure(b"data: " + raw + b"\n\n"), Unknown)


def test_an_endless_event_is_rejected() -> None:
    """It is not gathered in memory."""
    error = failure(b"data: " + b"x" * 5_000, max_event_bytes=1_000)
    assert "an event of more than 1000 bytes (max)" in error.message


def test_characters_and_line_ends_may_be_cut_anywhere() -> None:
    """Comments and other fields are no events."""
    text = {"choices": [{"text": "漢"}]}
    end = {"choices": [{"text": "!", "finish_reason": "stop"}]}
    raw = b": ping\r\n\r\nid: 4\r\n" + data(text, end).replace(b"\n", b"\r\n")
    raw = raw.replace(b"\\u6f22", "漢".encode())
    chunks = asyncio.run(ask(*(raw[n : n + 1] for n in range(len(raw)))))
    assert [chunk.text for chunk in chunks] == ["漢", "!"]


@pytest.mark.rows("E3")
def test_each_of_several_answers_has_a_terminal() -> None:
    """Each terminal counts its own tokens, so that their sum is the server's count."""
    stream = data(
        choice(1, index=0),
        choice(2, index=1),
        choice(3, index=1, finish_reason="stop"),
        choice(4, index=0),
        choice(5, index=0, finish_reason="length"),
        {
            "choices": [],
            "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
        },
    )
    request = PreprocessedRequest(token_ids=[1, 2], sampling_options=SamplingOptions(n=2))
    server = ScriptedServer()
    chunks = asyncio.run(ask(stream, request=request, server=server))
    assert server.bodies[0]["n"] == 2
    assert [(chunk.index, chunk.token_ids, str(chunk.finish_reason)) for chunk in chunks] == [
        (0, [1], "None"),
        (1, [2], "None"),
        (1, [3], "stop"),
        (0, [4], "None"),
        (0, [5], "length"),
    ]
    assert chunks[2].completion_usage == usage(2, 2)
    assert chunks[4].completion_usage == usage(2, 3)


def test_log_probs_of_vllm() -> None:
    """Tokens are named by their ids."""
    logprobs = {
        "tokens": ["token_id:7"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:9": -1.5, "token_id:7": -0.5, "token_id:3": -2.5}],
        "text_offset": [0],
    }
    request = PreprocessedRequest(token_ids=[1, 2], output_options=OutputOptions(logprobs=2))
    server = ScriptedServer()
    stream = data(choice(7, logprobs=logprobs), LAST)
    first, _ = asyncio.run(ask(stream, request=request, server=server))
    assert first.log_probs == [-0.5]
    assert first.top_logprobs == [
        [
            TopLogprob(rank=1, token_id=7, logprob=-0.5),
            TopLogprob(rank=2, token_id=9, logprob=-1.5),
        ]
    ]
    assert server.bodies[0]["logprobs"] == 2
    assert server.bodies[0]["return_tokens_as_token_ids"] is True


def test_incomplete_log_probs_are_omitted() -> None:
    """The tokens arrive all the same."""
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5], "top_logprobs": [None]}
    request = PreprocessedRequest(token_ids=[1, 2], output_options=OutputOptions(logprobs=1))
    first, _ = asyncio.run(ask(data(choice(7, 9, logprobs=logprobs), LAST), request=request))
    assert (first.token_ids, first.log_probs) == ([7, 9], None)


@pytest.mark.rows("E3")
def test_an_empty_finish_reason_counts_as_none() -> None:
    """The answer continues."""
    stream = data(choice(7, finish_reason=""), choice(9, finish_reason=""), LAST)
    chunks = asyncio.run(ask(stream))
    assert [chunk.token_ids for chunk in chunks] == [[7], [9], [8]]


@pytest.mark.parametrize(
    ("word", "stop_reason", "expected"),
    [
        ("stop", None, ("stop", None)),
        ("stop", "END", ("stop", "END")),
        ("stop", 42, ("stop", 42)),
        ("eos_token", None, ("eos", None)),
        ("stop_sequence", None, ("stop", None)),
        ("content_filter", None, ("content_filter", None)),
        ("abort", None, ("cancelled", None)),
        ("tool_calls", None, ("stop", "tool_calls")),
    ],
)
def test_finish_and_stop_reasons(
    word: str, stop_reason: str | int | None, expected: tuple[str, str | int | None]
) -> None:
    """Those of all servers are read."""
    stream = data(choice(7, finish_reason=word, stop_reason=stop_reason))
    (chunk,) = asyncio.run(ask(stream))
    assert (str(chunk.finish_reason), chunk.stop_reason) == expected


def test_a_text_server_gets_text() -> None:
    """The ids in its chunks are the tokenizer's."""
    server = ScriptedServer(models=[{"id": "m"}], pages={"/api/version": {"version": "0.1"}})
    stream = data(
        {"choices": [{"text": "cd"}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}
    )
    first, last = asyncio.run(ask(stream, server=server, tokenizer=Letters()))
    assert first == LLMEngineOutput([3, 4], text="cd")
    assert last.completion_usage == usage(2, 2)
    assert server.bodies[0]["prompt"] == "ab"
    assert "return_token_ids" not in server.bodies[0]


def test_a_text_server_needs_a_tokenizer() -> None:
    """For the prompt; the start says so."""
    server = ScriptedServer(models=[{"id": "m"}], pages={"/api/version": {"version": "0.1"}})
    with pytest.raises(
        InvalidArgument, match=r"\(ollama\) accepts only text prompts: pass tokenizer"
    ):
        asyncio.run(ask(server=server))


@pytest.mark.parametrize("takes_ids", [True, False])
@real_time
async def test_an_unknown_server_is_probed_for_token_ids(takes_ids: bool) -> None:
    """Once, at the start, with a prompt of one token."""
    server = ScriptedServer(models=[{"id": "m", "owned_by": "me"}])

    async def probe(request: web.Request) -> web.StreamResponse:
        if takes_ids:
            return await streaming(data({"choices": []}))(request)
        return web.json_response({"error": "text only"}, status=422)

    server.answer = probe
    async with started(server, tokenizer=Letters()) as engine:
        server.answer = streaming(data({"choices": [{"text": "c", "finish_reason": "stop"}]}))
        await chunks_of(engine, PROMPT)
    assert [body["prompt"] for body in server.bodies] == [[1], [1, 2] if takes_ids else "ab"]


def test_a_chat_goes_to_the_chat_endpoint() -> None:
    """Text comes as text; tool calls and reasoning as the server sends them."""
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    stream = data(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"reasoning": "well"}}]},
        {"choices": [{"delta": {"content": "hi"}}]},
        {"choices": [{"delta": {"tool_calls": [call]}}]},
        {"choices": [{"delta": {"content": None}, "finish_reason": "tool_calls"}]},
        USAGE,
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages = [{"role": "user", "content": "hello"}]
    request = PreprocessedRequest(
        token_ids=[], extra_args={"messages": messages, "tools": tools, "nvext": {}}
    )
    server = ScriptedServer()
    chunks = asyncio.run(ask(stream, request=request, server=server))
    assert [(chunk.text, chunk.engine_data) for chunk in chunks] == [
        (None, {"reasoning_content": "hm"}),
        (None, {"reasoning_content": "well"}),
        ("hi", None),
        (None, {"tool_calls": [call]}),
        (None, None),
    ]
    assert (str(chunks[-1].finish_reason), chunks[-1].stop_reason) == ("stop", "tool_calls")
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == messages
    assert server.bodies[0]["tools"] == tools
    assert "nvext" not in server.bodies[0]


ALL_OPTIONS = PreprocessedRequest(
    token_ids=[1, 2],
    stop_conditions=StopConditions(
        max_tokens=5,
        min_tokens=2,
        stop=["END"],
        stop_token_ids=[9],
        stop_token_ids_hidden=[3],
        ignore_eos=False,
    ),
    sampling_options=SamplingOptions(
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        guided_decoding=GuidedDecodingOptions(json={"type": "object"}),
    ),
    eos_token_ids=[3],
)
PLAIN = {
    "max_tokens": 5,
    "stop": ["END"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": -1,
    "min_p": 0.1,
    "seed": 7,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
}
HEAD = {"model": "m", "prompt": [1, 2], "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("vllm", {"structured_outputs": {"json": {"type": "object"}}}),
        ("sglang", {"json_schema": '{"type":"object"}'}),
    ],
)
def test_options_have_the_servers_names(kind: str, own: dict[str, Any]) -> None:
    """All that are set are passed on; stop tokens without the model's own, which the server knows."""
    server = ScriptedServer()
    asyncio.run(ask(data(LAST), request=ALL_OPTIONS, server=server, server_kind=kind))
    assert server.bodies[0] == {
        **HEAD,
        **PLAIN,
        **own,
        "min_tokens": 2,
        "stop_token_ids": [9],
        "repetition_penalty": 1.1,
        "return_token_ids": True,
    }


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("llama-server", ["stop_conditions.min_tokens"]),
        (
            "ollama",
            [
                "stop_conditions.min_tokens",
                "sampling_options.repetition_penalty",
                "sampling_options.min_p",
                "sampling_options.guided_decoding",
            ],
        ),
    ],
)
def test_options_that_a_server_lacks_are_rejected(kind: str, refused: list[str]) -> None:
    """By their names, before anything is sent."""
    server = ScriptedServer()
    error = failure(request=ALL_OPTIONS, server=server, server_kind=kind, tokenizer=Letters())
    assert isinstance(error, InvalidArgument)
    assert {name for name in refused if name not in error.message} == set()
    assert "sampling_options.temperature" not in error.message
    assert server.bodies == []


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"stop_conditions": {"stop_token_ids": [9]}}, "stop_conditions.stop_token_ids"),
        (
            {"sampling_options": {"include_stop_str_in_output": True}},
            "sampling_options.include_stop_str_in_output",
        ),
        ({"output_options": {"skip_special_tokens": False}}, "output_options.skip_special_tokens"),
        (
            {"sampling_options": {"guided_decoding": {"regex": "a+"}}},
            "sampling_options.guided_decoding.regex",
        ),
    ],
)
def test_text_options_are_rejected_where_the_server_detokenizes(
    fields: dict[str, Any], refused: str
) -> None:
    """The frontend can't mend a text that comes from llama-server."""
    request = PreprocessedRequest(token_ids=[1, 2], **fields)
    error = failure(request=request, server_kind="llama-server")
    assert error.message.endswith(f"can't honour {refused}")


def test_a_bad_prompt_is_rejected_before_sending() -> None:
    """Also by servers that would cut it, or make an answer of nothing."""
    assert "the prompt is empty" in str(failure(request=PreprocessedRequest(token_ids=[])))
    long = PreprocessedRequest(token_ids=[1] * 100)
    assert "context of 100 tokens (max)" in str(failure(request=long))
    negative = PreprocessedRequest(token_ids=[1, -1])
    assert "ids must be from 0, got -1" in str(failure(request=negative))


@pytest.mark.rows("P1")
@real_time
async def test_the_server_gets_the_request_id_and_the_trace() -> None:
    """The trace of the span that the request has here; without one, that of the client."""
    server = ScriptedServer(streaming(data(LAST)))
    client = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

    async with started(server) as engine:
        await chunks_of(engine, PROMPT, RequestContext("r1", trace_headers=client))
        with TracerProvider().get_tracer("test").start_as_current_span("here") as span:
            await chunks_of(engine, PROMPT, RequestContext("r2", trace_headers=client))
    span_id = trace.format_span_id(span.get_span_context().span_id)
    first, second = ({key.lower(): one[key] for key in one} for one in server.headers)
    assert (first["x-request-id"], first["traceparent"]) == ("r1", client["traceparent"])
    assert second["x-request-id"] == "r2"
    assert span_id in second["traceparent"]


def test_the_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is on no command line."""
    server = ScriptedServer()
    monkeypatch.setenv("SOME_KEY", "secret")
    asyncio.run(ask(data(LAST), server=server, api_key_env="SOME_KEY"))
    assert server.headers[0]["Authorization"] == "Bearer secret"
    with pytest.raises(InvalidArgument, match="OTHER_KEY is not set"):
        OpenAIEngine("http://127.0.0.1:1", api_key_env="OTHER_KEY")


class Hanging:
    """Sends these bytes, and then nothing more until the client leaves."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.arrived, self.left = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            if self.first:
                await response.prepare(request)
                await response.write(self.first)
            self.arrived.set()
            await asyncio.sleep(60)
        finally:
            self.left.set()
        return response


@pytest.mark.rows("E4", "A2")
@pytest.mark.parametrize("tokens", [0, 1])
@real_time
async def test_a_stop_closes_the_connection_and_ends_the_stream(tokens: int) -> None:
    """At once, with the usage so far, also while the server has not answered yet."""
    handler = Hanging(data(choice(7), end=b"") if tokens else b"")
    context, server = RequestContext(), ScriptedServer(handler)
    async with started(server) as engine:
        async with await EngineAdapter(engine).generate(PROMPT, context) as stream:
            for _ in range(tokens):
                await anext(stream)
            reading = asyncio.ensure_future(anext(stream))
            await handler.arrived.wait()
            # A whole answer later the pull waits for its own.
            async with ClientSession() as session, session.get(f"{server.url}/v1/models"):
                context.stop_generating()
            last = (await reading).data
        await handler.left.wait()
        # No connection was lost, so nobody needs to ask whether the server is.
        assert not engine._client.failed.is_set()  # pyright: ignore[reportPrivateUsage]
    assert last == LLMEngineOutput.cancelled().with_usage(usage(2, tokens))


@pytest.mark.rows("E4")
@real_time
async def test_buffered_events_do_not_delay_a_stop() -> None:
    """Tokens that wait after the one that was read are dropped, and a terminal too."""
    context = RequestContext()
    async with started(ScriptedServer(streaming(data(choice(7), choice(8), LAST)))) as engine:
        chunks: list[LLMEngineOutput] = []
        async for chunk in engine.generate(PROMPT, context):
            chunks.append(chunk)
            context.stop_generating()
    assert [chunk.token_ids for chunk in chunks] == [[7], []]
    assert str(chunks[-1].finish_reason) == "cancelled"


@pytest.mark.rows("E3", "E4")
@real_time
async def test_a_stop_between_choices_keeps_each_terminal() -> None:
    """The event is passed on whole: an answer that ends in it is not counted as ended and dropped."""
    context = RequestContext()
    request = PreprocessedRequest(token_ids=[1, 2], sampling_options=SamplingOptions(n=2))
    both = {"choices": choice(7)["choices"] + choice(8, index=1, finish_reason="stop")["choices"]}
    async with started(ScriptedServer(streaming(data(both)))) as engine:
        stream = await EngineAdapter(engine).generate(request, context)
        chunks = [(await anext(stream)).data]
        context.stop_generating()
        chunks += [item.data async for item in stream]
    assert [(each.index, each.token_ids, str(each.finish_reason)) for each in chunks if each] == [
        (0, [7], "None"),
        (1, [8], "stop"),
        (0, [], "cancelled"),
    ]


@pytest.mark.rows("E4")
@real_time
async def test_a_stopped_request_is_not_sent() -> None:
    """It ends as cancelled."""
    context, server = RequestContext(), ScriptedServer()
    context.stop_generating()
    async with started(server) as engine:
        chunks = await chunks_of(engine, PROMPT, context)
    assert chunks == [LLMEngineOutput.cancelled().with_usage(usage(2, 0))]
    assert server.bodies == []


@pytest.mark.rows("S7")
@real_time
async def test_a_dropped_stream_closes_the_connection() -> None:
    """Also where the consumer's task is cancelled while it waits for the server."""
    handler = Hanging(b"")
    async with started(ScriptedServer(handler)) as engine:
        reading = asyncio.create_task(chunks_of(engine, PROMPT))
        await handler.arrived.wait()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        await handler.left.wait()


@pytest.mark.rows("S7")
@pytest.mark.parametrize("how", ["close", "forget"])
@real_time
async def test_an_abandoned_stream_closes_the_connection(how: str) -> None:
    """In mid-answer."""
    handler = Hanging(data(choice(7), end=b""))
    async with started(ScriptedServer(handler)) as engine:
        stream = await EngineAdapter(engine).generate(PROMPT)
        await anext(stream)
        if how == "close":
            await stream.aclose()
        del stream
        await handler.left.wait()


@pytest.mark.rows("A1")
@real_time
async def test_a_server_that_closes_idle_connections_is_no_failure() -> None:
    """One request right after another does not meet a connection that is being closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # As llama-server does: no word of it in the header.
        is_post = (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST")
        body = data(LAST) if is_post else b'{"data": [{"id": "m", "owned_by": "vllm"}]}'
        head = f"content-length: {len(body)}\r\ncontent-type: text/event-stream".encode()
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        engine = OpenAIEngine(f"http://127.0.0.1:{port}")
        await engine.start(0)
        for _ in range(20):
            (last,) = await chunks_of(engine, PROMPT)
            assert last.token_ids == [8]
        await engine.cleanup()


def test_an_unreachable_server_fails_the_start() -> None:
    """The start fails with the address, and leaves nothing open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def main() -> None:
            await OpenAIEngine(f"http://127.0.0.1:{port}").start(0)

        with pytest.raises(CannotConnect, match=str(port)):
            asyncio.run(main())


@pytest.mark.rows("E7")
@real_time
async def test_a_dead_server_means_the_engine_is_lost() -> None:
    """Noticed by a request that fails; one that answers again, or refuses, is not lost."""
    server = ScriptedServer(streaming(data(choice(7), end=b""), cut=True))
    async with server.running():
        engine = OpenAIEngine(server.url, lost_after_s=0)
        await engine.start(0)
        lost = asyncio.create_task(engine.lost())
        with pytest.raises(Disconnected):
            await chunks_of(engine, PROMPT)
        server.answer = streaming(data(LAST))
        await chunks_of(engine, PROMPT)
        assert not lost.done()
    with pytest.raises((CannotConnect, Disconnected)):
        await chunks_of(engine, PROMPT)
    assert "was unreachable for 0 s" in await lost
    await engine.cleanup()


@pytest.mark.rows("E5")
@real_time
async def test_cleanup() -> None:
    """Before a start, twice, and requests after it are refused."""
    engine = OpenAIEngine("http://127.0.0.1:1/v1/")
    await engine.cleanup()
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        await chunks_of(engine, PROMPT)


@pytest.mark.rows("E5")
@pytest.mark.parametrize("begun", [True, False])
@real_time
async def test_cleanup_ends_open_streams(begun: bool) -> None:
    """With the same error as other engines, whatever the connection is doing; no server is lost."""
    asked = asyncio.Event()

    async def never_end(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if begun:
            await response.prepare(request)
            await response.write(data(choice(7), end=b""))
        asked.set()
        await asyncio.Event().wait()
        return response

    async with started(ScriptedServer(never_end)) as engine:
        stream = engine.generate(PROMPT, RequestContext())
        if begun:
            assert (await anext(stream)).token_ids == [7]
        pull = asyncio.ensure_future(anext(stream))
        await asked.wait()
        await engine.cleanup()
        with pytest.raises(EngineShutdown):
            await pull
        assert not engine._client.failed.is_set()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"base_url": "localhost:8000"}, r"base_url: expected a URL such as http://host:8000/v1"),
        (
            {"base_url": "http://me:secret@host"},
            r"base_url: expected a URL without a password; .* api_key_env$",
        ),
        ({"server": "mine"}, "server: expected one of vllm, sglang, llama-server"),
        ({"lost_after_s": -1}, "lost_after_s: expected a number of seconds, 0 or more"),
        ({"max_event_bytes": 0}, "max_event_bytes: expected a whole number of bytes, 1 or more"),
        ({"tokenizer": "/no/such/folder"}, "tokenizer: there is no file"),
    ],
)
def test_parameters_are_checked(options: dict[str, Any], complaint: str) -> None:
    """The message names the parameter."""
    given: dict[str, Any] = {"base_url": "http://127.0.0.1:1", **options}
    with pytest.raises(InvalidArgument, match=complaint):
        OpenAIEngine(**given)


def test_a_missing_aiohttp_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the module works without it."""
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r"pip install 'rx-backend\[engine-openai\]'"):
        OpenAIEngine("http://127.0.0.1:1")
