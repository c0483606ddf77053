"""The whole path: the official client, the OpenAI frontend, the worker, the engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from functools import partial

import pytest
from openai import APIError, BadRequestError, OpenAI

from tests.rx_backend.worker._processes import START_S, Served, serve
from tests.rx_backend.worker.engines import FAIL_FIRST, FAIL_LATER, MODEL, SOCKETS

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """Serve the counting engine with its frontend, for all tests of this file."""
    folder = tmp_path_factory.mktemp("chat")
    with serve(folder, "CountingEngine", "--frontend", "--grace-s", "0") as served:
        served.line("curl -N", START_S)
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[OpenAI]:
    with served.client() as client:
        yield client


def test_chat_streams_tokens_in_order(client: OpenAI) -> None:
    """The client gets every token once, in order, then the finish reason, then the usage."""
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "count"}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text.split() == [str(number) for number in range(40)]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    prompt = len("user: count\nassistant: ")
    assert chunks[-1].usage.completion_tokens == 40
    assert chunks[-1].usage.prompt_tokens == prompt


def test_the_model_is_listed_with_its_context(client: OpenAI) -> None:
    """What the engine's config says reaches the frontend's list of models."""
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert (model.model_extra or {})["context_window"] == 2048


def test_a_worker_takes_requests_without_delay(served: Served, client: OpenAI) -> None:
    """All that the process listens at has TCP_NODELAY, but for the frontend's port."""
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": SOCKETS}])
    served.line("at once True")
    delayed = [line for line in served.seen if "at once False" in line]
    assert all(f"port {served.port} " in line for line in delayed)


@pytest.mark.parametrize(
    ("letter", "code", "message", "before"),
    [
        (FAIL_FIRST, "400", "no such prompt", ""),
        (FAIL_LATER, "500", "Internal server error", " 0"),
    ],
)
def test_an_engines_error_reaches_the_client(
    client: OpenAI, letter: str, code: str, message: str, before: str
) -> None:
    """The kind of an engine's error decides what API error the client gets, after the tokens."""
    texts: list[str] = []

    def ask() -> None:
        for chunk in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": letter}], stream=True
        ):
            texts.extend(choice.delta.content or "" for choice in chunk.choices)

    with pytest.raises(APIError, match=message) as raised:
        ask()
    assert raised.value.code == code
    assert "".join(texts) == before


def test_a_prompt_longer_than_the_context_is_the_clients_error(client: OpenAI) -> None:
    """The status is 400, and the message has both numbers."""
    with pytest.raises(BadRequestError, match=r"prompt has 3\d\d\d tokens, .* 2048"):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "c" * 3000}]
        )


@pytest.mark.rows("E3", "S2", "P11")
@pytest.mark.parametrize("answers", [1, 2, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_is_complete(client: OpenAI, answers: int, *, stream: bool) -> None:
    """Each has all its tokens and an end of its own, though the shorter ones end first."""
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, str | None] = {}
    ask = partial(
        client.chat.completions.create,
        model=MODEL,
        messages=[{"role": "user", "content": "count"}],
        max_tokens=4,
        n=answers,
    )
    if stream:
        for choice in (choice for chunk in ask(stream=True) for choice in chunk.choices):
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    else:
        for choice in ask(stream=False).choices:
            texts[choice.index] = choice.message.content or ""
            ends[choice.index] = choice.finish_reason
    assert ends == dict.fromkeys(range(answers), "length")
    numbers = {index: [int(word) for word in text.split()] for index, text in texts.items()}
    assert numbers == {index: list(range(4 + index)) for index in range(answers)}
