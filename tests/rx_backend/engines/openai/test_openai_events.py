"""From bytes to events to chunks, without a server."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.engines.openai.answers import LlamaServerAnswers, OpenAIAnswers
from rx_backend.engines.openai.stream import EventReader
from rx_backend.errors import Unknown
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    PromptTokensDetails,
    SamplingOptions,
    TopLogprob,
    usage,
)
from tests.rx_backend.engines.openai.scripted_server import choice, data

PROMPT = PreprocessedRequest(token_ids=[1, 2])

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
noise = st.sampled_from([b"", b": ping", b"event: message", b"id: 1", b"data"])


def read(parts: list[bytes]) -> list[bytes]:
    reader = EventReader(1_000)
    return [found for part in parts for found in reader.feed(part)] + reader.end()


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=4),
    cuts=st.lists(st.integers(0, 400)) | st.just([*range(400)]),
    extra=noise,
    line_end=line_ends,
    is_ended=st.booleans(),
)
def test_any_split_gives_the_same_events(
    texts: list[str], cuts: list[int], extra: bytes, line_end: bytes, is_ended: bool
) -> None:
    """In the middle of a character or a line end, with other fields, and data on two lines."""
    values = [json.dumps(text, ensure_ascii=False).encode() for text in texts]
    events = [b"[\n" + value + b"]" for value in values]
    lines = [(extra, b"data: [", b"data: " + value + b"]", b"", b"") for value in values]
    raw = b"".join(map(b"\n".join, lines))
    raw = (raw if is_ended else raw.removesuffix(b"\n\n")).replace(b"\n", line_end)
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    assert read([raw[start:end] for start, end in pairwise(places)]) == events


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_read_when_its_empty_line_has_come(line_end: bytes) -> None:
    """Not with what follows: after the last one that may be a lost connection."""
    reader = EventReader(100)
    assert reader.feed(b"data: 1" + line_end) == []
    assert reader.feed(line_end) == [b"1"]
    assert reader.feed(b"data: 2" + line_end * 2) == [b"2"]
    assert reader.end() == []


@given(ids=st.lists(st.integers(0, 99), min_size=1, max_size=6), size=st.integers(1, 50))
def test_any_split_gives_the_same_chunks(ids: list[int], size: int) -> None:
    """Tokens in their order, and one terminal with their count."""
    raw = data(*(choice(each) for each in ids), choice(finish_reason="stop"))
    answers = OpenAIAnswers(PROMPT)
    events = read([raw[start : start + size] for start in range(0, len(raw), size)])
    chunks = [chunk for event in events for chunk in answers.read(event)]
    (last,) = answers.end(is_stopped=False)
    assert chunks == [LLMEngineOutput([each]) for each in ids]
    assert last == LLMEngineOutput.stop().with_usage(usage(2, len(ids)))


def test_data_on_several_lines_is_one_event() -> None:
    """As the format of server-sent events has it."""
    assert read([b'data: {"a":\ndata:  1}\n\n']) == [b'{"a":\n1}']


@given(size=st.integers(1, 300))
def test_the_size_of_an_event_is_limited(size: int) -> None:
    """However small the parts that it comes in."""
    reader = EventReader(1_000)
    for _ in range(1_000 // size):
        reader.feed(b"x" * size)
    with pytest.raises(Unknown, match="more than 1000 bytes"):
        reader.feed(b"x" * size)


def llama(**fields: object) -> bytes:
    return json.dumps({"index": 0, "tokens_evaluated": 2, **fields}).encode()


def test_a_character_of_several_tokens_from_llama_server() -> None:
    """Of its ids only the last is sent; a tokenizer finds the others."""
    event = llama(content="漢", tokens=[112], tokens_predicted=3)
    alone = LlamaServerAnswers(PROMPT).read(event)
    assert alone == [LLMEngineOutput([112], text="漢")]
    helped = LlamaServerAnswers(PROMPT, lambda text: [*text.encode()])
    assert helped.read(event) == [LLMEngineOutput([0xE6, 0xBC, 0xA2], text="漢")]
    event = llama(content="x", tokens=[7], tokens_predicted=4)
    assert helped.read(event) == [LLMEngineOutput([7], text="x")]


def test_log_probs_come_without_text() -> None:
    """A frontend would drop them beside it, and makes the text of the ids."""
    entry = {"id": 7, "token": "x", "bytes": [120], "logprob": -0.5}
    event = llama(content="x", tokens=[7], tokens_predicted=1, completion_probabilities=[entry])
    (chunk,) = LlamaServerAnswers(PROMPT).read(event)
    assert chunk == LLMEngineOutput([7], log_probs=[-0.5])


@pytest.mark.parametrize(
    "logprobs",
    [{"content": [{"token": "x", "logprob": -0.5}]}, {"tokens": ["x"], "token_logprobs": [-0.5]}],
    ids=["chat", "completion"],
)
def test_log_probs_without_those_of_other_tokens(logprobs: dict[str, object]) -> None:
    """A chat has another form for them, and text beside the ids, which are the server's."""
    event = choice(7, delta={"content": "x"}, logprobs=logprobs)
    answers = OpenAIAnswers(PROMPT, lambda text: [*text.encode()])
    (chunk,) = answers.read(json.dumps(event).encode())
    assert chunk == LLMEngineOutput([7], text="x", log_probs=[-0.5])


@pytest.mark.rows("E3")
@pytest.mark.parametrize(
    ("end", "reason", "word"),
    [
        ({"stop_type": "limit"}, FinishReason.LENGTH, None),
        ({"stop_type": "eos", "stopping_word": ""}, FinishReason.STOP, None),
        ({"stop_type": "word", "stopping_word": "END"}, FinishReason.STOP, "END"),
    ],
)
def test_the_end_of_an_answer_of_llama_server(
    end: dict[str, str], reason: FinishReason, word: str | None
) -> None:
    """With its reason and the server's counts."""
    request = PreprocessedRequest(token_ids=[1, 2], sampling_options=SamplingOptions(n=2))
    event = llama(index=1, tokens_predicted=3, stop=True, timings={"cache_n": 1}, **end)
    (chunk,) = LlamaServerAnswers(request).read(event)
    counts = usage(2, 3)
    counts.prompt_tokens_details = PromptTokensDetails(cached_tokens=1)
    assert (chunk.index, chunk.finish_reason, chunk.stop_reason) == (1, reason, word)
    assert chunk.completion_usage == counts


@pytest.mark.rows("E3")
@pytest.mark.parametrize("index", [0, 1])
def test_an_event_of_no_open_answer_is_skipped(index: int) -> None:
    """The answer has ended, or was not requested."""
    answers = OpenAIAnswers(PROMPT)
    answers.read(json.dumps(choice(5, finish_reason="stop")).encode())
    assert answers.read(json.dumps(choice(6, index=index)).encode()) == []
    answers = LlamaServerAnswers(PROMPT)
    answers.read(llama(content="x", tokens=[7], tokens_predicted=1, stop=True))
    assert answers.read(llama(content="y", tokens=[8], tokens_predicted=2, index=index)) == []


def test_log_probs_are_omitted_where_tokens_are_missing() -> None:
    """There is one for each token, or none."""
    request = PreprocessedRequest(token_ids=[1, 2], output_options=OutputOptions(logprobs=1))
    entry: dict[str, object] = {"id": 112, "token": "漢", "bytes": [230], "logprob": -0.5}
    entry["top_logprobs"] = [dict(entry)]
    event = llama(content="漢", tokens=[112], tokens_predicted=3, completion_probabilities=[entry])
    (chunk,) = LlamaServerAnswers(request).read(event)
    top = TopLogprob(rank=1, token_id=112, token="漢", logprob=-0.5, bytes=[230])
    assert (chunk.text, chunk.log_probs, chunk.top_logprobs) == ("漢", [-0.5], [[top]])
    (chunk,) = LlamaServerAnswers(request, lambda text: [*text.encode()]).read(event)
    assert (chunk.log_probs, chunk.top_logprobs) == (None, None)


@pytest.mark.rows("E4")
def test_a_stopped_request_has_a_terminal_for_each_answer() -> None:
    """Those that were complete have theirs already."""
    request = PreprocessedRequest(token_ids=[1, 2], sampling_options=SamplingOptions(n=3))
    answers = OpenAIAnswers(request)
    answers.read(json.dumps(choice(5, index=1, finish_reason="stop")).encode())
    answers.read(json.dumps(choice(5, 6, index=2)).encode())
    left = answers.end(is_stopped=True)
    assert [(chunk.index, str(chunk.finish_reason)) for chunk in left] == [
        (0, "cancelled"),
        (2, "cancelled"),
    ]
    assert [chunk.completion_usage for chunk in left] == [usage(2, 0), usage(2, 2)]


@pytest.mark.rows("E4", "F1")
def test_an_event_with_text_without_ids_counts_as_a_token() -> None:
    """Of an answer that was stopped, for which the server sends no usage."""
    answers = OpenAIAnswers(PROMPT)
    for text in ("a", "b", ""):
        answers.read(json.dumps({"choices": [{"index": 0, "text": text}]}).encode())
    assert answers.end(is_stopped=True) == [LLMEngineOutput.cancelled().with_usage(usage(2, 2))]
