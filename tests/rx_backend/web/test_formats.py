"""How items are written: the formats of `rx_backend.web`."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rx_backend import (
    Annotated,
    FinishReason,
    InvalidArgument,
    LLMEngineOutput,
    RequestContext,
    Unknown,
)
from rx_backend.protocols import TopLogprob, usage
from rx_backend.web import ChatChunks, CompletionChunks, Format, JsonItems
from tests.wire import decode_annotated

CHAT = ChatChunks("m", id="c", created=7)
COMPLETION = CompletionChunks("m", id="c", created=7)
Item = Annotated[LLMEngineOutput]


class Stream:
    """What a format may know of a stream."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        raise StopAsyncIteration


def written(form: Format, *items: Item | LLMEngineOutput, stream: Stream | None = None) -> str:
    """Return what is written of some items, up to the end or the first failure."""
    writer = form.writer(stream or Stream())
    made = b""
    for item in items:
        made += writer.item(item if isinstance(item, Annotated) else Annotated(item))
    return (made if writer.has_failed else made + writer.end()).decode()


def events(text: str) -> list[Any]:
    """Return the data of the events; each event is one line of data."""
    found = [part.partition("data: ")[2] for part in text.split("\n\n") if part]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def choices(form: Format, *items: Item | LLMEngineOutput) -> list[Any]:
    return [event["choices"][0] for event in events(written(form, *items)) if event != "[DONE]"]


def test_a_chat() -> None:
    """Written in full, as the bytes that a client gets."""
    text = written(CHAT, LLMEngineOutput([1], text="a"), LLMEngineOutput.stop())
    head = '"object":"chat.completion.chunk","id":"c","created":7,"model":"m"'
    assert text == (
        f'data: {{{head},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"a"}},'
        '"logprobs":null,"finish_reason":null}]}\n\n'
        f'data: {{{head},"choices":[{{"index":0,"delta":{{}},'
        '"logprobs":null,"finish_reason":"stop"}]}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_completion() -> None:
    """In the same way."""
    text = written(COMPLETION, LLMEngineOutput([1], text="a"), LLMEngineOutput.length())
    head = '"object":"text_completion","id":"c","created":7,"model":"m"'
    assert text == (
        f'data: {{{head},"choices":[{{"index":0,"text":"a",'
        '"logprobs":null,"finish_reason":null}]}\n\n'
        f'data: {{{head},"choices":[{{"index":0,"text":"",'
        '"logprobs":null,"finish_reason":"length"}]}\n\n'
        "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (FinishReason.EOS, "stop"),
        (FinishReason.STOP, "stop"),
        (FinishReason.LENGTH, "length"),
        (FinishReason.CANCELLED, "stop"),
        (FinishReason.CONTENT_FILTER, "content_filter"),
    ],
)
def test_finish_reasons(form: Format, reason: FinishReason, word: str) -> None:
    """Each has a word that OpenAI's clients know."""
    assert choices(form, LLMEngineOutput(finish_reason=reason))[0]["finish_reason"] == word


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "failure", [LLMEngineOutput.error("boom"), Annotated[Any].from_error(Unknown("boom"))]
)
def test_a_failure_is_the_last_event(form: Format, failure: Item | LLMEngineOutput) -> None:
    """An error terminal is one, and no finish reason."""
    last = events(written(form, LLMEngineOutput([1], text="a"), failure))[-1]
    assert last == {
        "error": {"message": "boom", "type": "server_error", "param": None, "code": "Unknown"}
    }


def test_each_choice_begins_with_the_role() -> None:
    """Several answers come by index, in any order."""
    made = choices(
        CHAT,
        LLMEngineOutput([1], text="a", index=1),
        LLMEngineOutput([1], text="b"),
        LLMEngineOutput([2], text="c", index=1),
    )
    assert [(choice["index"], choice["delta"]) for choice in made] == [
        (1, {"role": "assistant", "content": "a"}),
        (0, {"role": "assistant", "content": "b"}),
        (1, {"content": "c"}),
    ]


def test_a_chat_without_text_has_a_role() -> None:
    """Its only chunk is the terminal."""
    assert choices(CHAT, LLMEngineOutput.stop())[0]["delta"] == {
        "role": "assistant",
        "content": "",
    }


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
def test_items_without_client_content_are_omitted(form: Format) -> None:
    """Handshakes, bare events, and chunks whose character is incomplete."""
    nothing = [LLMEngineOutput(), Annotated(comment=["ping"]), LLMEngineOutput([1], text="")]
    assert written(form, *nothing) == "data: [DONE]\n\n"


def test_the_rest_of_an_answer_has_no_second_role() -> None:
    """A client that came back has it; the answer keeps its id and its time."""
    stream = Stream(earlier_answers={0}, created=5.9, context=RequestContext("r1"))
    text = written(ChatChunks("m"), LLMEngineOutput([1], text="a"), stream=stream)
    chunk = events(text)[0]
    assert (chunk["id"], chunk["created"]) == ("chatcmpl-r1", 5)
    assert chunk["choices"][0]["delta"] == {"content": "a"}
    assert '"id":"cmpl-r1"' in written(CompletionChunks("m"), LLMEngineOutput.stop(), stream=stream)


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
def test_usage(form: ChatChunks | CompletionChunks) -> None:
    """In a last chunk where it is asked for: that of all answers, with the prompt once."""
    terminals = [
        LLMEngineOutput.stop().with_usage(usage(5, 2)),
        LLMEngineOutput(finish_reason=FinishReason.STOP, index=1, completion_usage=usage(5, 3)),
    ]
    asked = type(form)("m", include_usage=True)
    *_, chunk, done = events(written(asked, *terminals))
    assert (chunk["choices"], done) == ([], "[DONE]")
    cost = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert chunk["usage"] == cost
    assert "usage" not in written(form, *terminals)
    assert "usage" not in written(asked, LLMEngineOutput.stop())


LOGPROBS = LLMEngineOutput(
    [1, 2],
    text="aé",
    tokens=["a", None],
    log_probs=[-0.5, -math.inf],
    top_logprobs=[
        [TopLogprob(rank=1, token_id=1, token="a", logprob=-0.5, bytes=[97])],
        [TopLogprob(rank=1, token_id=3, logprob=-0.1)],
    ],
)


def test_logprobs_of_a_chat() -> None:
    """Each token with its bytes; one without a known text goes by its id, and none is infinite."""
    assert choices(CHAT, LOGPROBS)[0]["logprobs"]["content"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
        },
        {
            "token": "token_id:2",
            "logprob": -9999.0,
            "bytes": list(b"token_id:2"),
            "top_logprobs": [
                {"token": "token_id:3", "logprob": -0.1, "bytes": list(b"token_id:3")}
            ],
        },
    ]


def test_logprobs_of_a_completion() -> None:
    """With the place of each token in the text so far."""
    before = LLMEngineOutput([9], text="xyz")
    assert choices(COMPLETION, before, LOGPROBS)[1]["logprobs"] == {
        "tokens": ["a", "token_id:2"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"a": -0.5}, {"token_id:3": -0.1}],
        "text_offset": [3, 4],
    }


def test_a_held_back_character_has_its_logprobs() -> None:
    """They come with the token, though it has no text yet."""
    held = LLMEngineOutput([1], text="", log_probs=[-0.5], tokens=[""])
    made = choices(CHAT, held)
    assert made[0]["delta"] == {"role": "assistant", "content": ""}
    assert made[0]["logprobs"]["content"][0]["logprob"] == -0.5


def test_missing_text_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Once a stream."""
    written(CHAT, LLMEngineOutput([1]), LLMEngineOutput([2]))
    assert caplog.text.count("operators.detokenize") == 1


@pytest.mark.parametrize("form", [CHAT, COMPLETION, JsonItems()])
def test_text_of_all_kinds_stays_in_its_event(form: Format) -> None:
    """Whatever ends a line somewhere is escaped, and comes back."""
    text = "a\nb\r\n\r\rc\u2028d\x85e\x00"
    made = written(form, LLMEngineOutput([1], text=text), LLMEngineOutput([2], text="z"))
    first = events(made)[0]
    assert "\r" not in made
    assert len(made.split("\n\n")) == 4
    assert text in {
        first.get("data", {}).get("text"),
        first.get("choices", [{}])[0].get("text"),
        first.get("choices", [{}])[0].get("delta", {}).get("content"),
    }


def test_json_items() -> None:
    """The whole item, which the library reads again; the end is an event."""
    items = [
        Annotated(LLMEngineOutput([1], text="a"), id="s:1"),
        Annotated(None, None, "ping", ["one"]),
        Annotated(LLMEngineOutput.stop(), id="s:2"),
    ]
    text = written(JsonItems(), *items)
    parts = text.split("\n\n")
    assert parts[0].startswith("id: s:1\ndata: {")
    assert parts[1].startswith("event: ping\ndata: {")
    assert parts[3:] == ["event: done\ndata: {}", ""]
    read = [decode_annotated(part.partition("data: ")[2]) for part in parts[:3]]
    assert read == items


def test_an_error_among_json_items() -> None:
    """Is an event named error, without what caused it."""
    error = InvalidArgument("too long")
    error.__cause__ = KeyError("/srv/secret")
    text = written(JsonItems(), Annotated[Any].from_error(error))
    assert text.startswith("event: error\ndata: ")
    read = decode_annotated(text.partition("data: ")[2])
    assert (read.is_error, read.comment) == (True, ["too long"])
    assert isinstance(read.error, InvalidArgument)
    assert "secret" not in text


@pytest.mark.parametrize("form", [CHAT, COMPLETION, JsonItems()])
@pytest.mark.parametrize("wrong", ["a\nb", "a\rb", "a\x00b", "é"])
def test_an_id_that_would_break_the_line_is_omitted(form: Format, wrong: str) -> None:
    """As is the name of an event."""
    made = written(form, Annotated(LLMEngineOutput([1], text="a"), wrong, wrong))
    assert made.startswith("data: ")


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
def test_event_ids(form: Format) -> None:
    """An item's id is that of its event."""
    made = written(form, Annotated(LLMEngineOutput([1], text="a"), id="s:1"))
    assert made.startswith("id: s:1\ndata: ")


def test_half_a_surrogate_pair_is_replaced() -> None:
    """A detokenizer that cuts one in two makes it; two halves in one chunk are whole again."""
    chunks = [LLMEngineOutput([1], text=text) for text in ("a\ud83d", "\ud83d\ude00")]
    texts = [choice["delta"]["content"] for choice in choices(CHAT, *chunks)]
    assert texts == ["a\ufffd", "\U0001f600"]
    assert [choice["text"] for choice in choices(COMPLETION, *chunks)] == texts
    items = events(written(JsonItems(), *chunks))[:-1]
    assert [item["data"]["text"] for item in items] == texts
    likely = LLMEngineOutput(
        [1],
        tokens=["\ud83d"],
        text="\ud83d",
        log_probs=[-1.0],
        top_logprobs=[[TopLogprob(rank=1, token_id=1, token="\ud83d", logprob=-1.0)]],
    )
    content = choices(CHAT, likely)[0]["logprobs"]["content"][0]
    assert content["bytes"] == list("\ufffd".encode())
    for form in (CHAT, COMPLETION, JsonItems()):
        assert "cut \ufffd" in written(form, LLMEngineOutput.error("cut \ud83d"))
