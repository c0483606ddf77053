"""Clients of an engine that is silent: what a deadline costs, and what keeps a connection alive."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.rx_backend.worker._processes import ROOT, START_S, Served, serve, until
from tests.rx_backend.worker.silent import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

ENGINE = "tests.rx_backend.worker.silent:SilentEngine"
MIGRATION_LIMIT = 3


@contextmanager
def serving(folder: Path, **environ: str) -> Generator[tuple[Served, OpenAI]]:
    flags = ("--pipeline", "tests.rx_backend.worker.silent:by_question", "--grace-s", "0")
    with (
        serve(folder, ENGINE, *flags, "--frontend", cwd=ROOT, **environ) as served,
        served.client() as client,
    ):
        served.line("curl -N", START_S)
        yield served, client


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Served, OpenAI]]:
    """Serve an engine that stays silent, for the deadlines."""
    with serving(tmp_path_factory.mktemp("silent")) as found:
        yield found


@pytest.fixture(scope="module")
def kept_alive(tmp_path_factory: pytest.TempPathFactory) -> Generator[OpenAI]:
    """Serve one that is silent for a while, behind a frontend that sends keep-alives."""
    environ = {"DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS": "50", "SILENCE_S": "0.6"}
    with serving(tmp_path_factory.mktemp("alive"), **environ) as (_, client):
        yield client


def messages(pipeline: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": pipeline}]


def ask(client: OpenAI, pipeline: str, tokens: int) -> str:
    """Read a whole answer as a stream."""
    chunks = client.chat.completions.create(
        model=MODEL, messages=messages(pipeline), max_tokens=tokens, stream=True
    )
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def ask_at_once(client: OpenAI, pipeline: str, tokens: int) -> str:
    """Get a whole answer in one piece."""
    answer = client.chat.completions.create(
        model=MODEL, messages=messages(pipeline), max_tokens=tokens
    )
    return answer.choices[0].message.content or ""


def status(error: APIError) -> str:
    return str(getattr(error, "status_code", None) or error.code)


@pytest.mark.parametrize(
    ("pipeline", "tokens", "calls"),
    [
        pytest.param("first_token", 2, 1, id="first-token"),
        pytest.param("idle", 5, 1, id="idle"),
        pytest.param("total", 2, 1, id="total-before-a-token"),
        pytest.param("total", 5, 1, id="total-after-tokens"),
        pytest.param("retried", 2, 1 + MIGRATION_LIMIT, id="retry"),
    ],
)
def test_an_expired_deadline_is_not_retried(
    silent: tuple[Served, OpenAI], pipeline: str, tokens: int, calls: int
) -> None:
    """The client gets a 504; no other run is tried unless it was asked for, and the worker stays."""
    served, client = silent
    before = served.count("called")
    for asked, how in enumerate((ask, ask_at_once), start=1):
        with pytest.raises(APIError) as caught:
            how(client, pipeline, tokens)
        assert status(caught.value) == "504"
        expected = before + asked * calls
        until(lambda expected=expected: served.count("called") >= expected, served)
        assert served.count("called") == expected


def lines_of(client: OpenAI, pipeline: str) -> list[str]:
    """Read an answer as the lines that come over HTTP, keep-alives included."""
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=messages(pipeline), max_tokens=4, stream=True
    ) as reply:
        return [line for line in reply.iter_lines() if line]


def chunks_in(lines: list[str]) -> int:
    data = (line.removeprefix("data: ") for line in lines if line.startswith("data: {"))
    return sum(bool(json.loads(line)["choices"]) for line in data)


def test_the_frontend_keeps_a_connection_alive(kept_alive: OpenAI) -> None:
    """By its own interval there are lines while the engine is silent; the client reads over them."""
    assert sum(line.startswith(":") for line in lines_of(kept_alive, "standard")) >= 3
    assert ask(kept_alive, "standard", 4).split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("pipeline", "arrives", "is_read"),
    [("comment", False, True), ("event", True, False), ("empty", False, True)],
)
def test_heartbeats_are_invisible_to_the_frontends_clients(
    kept_alive: OpenAI, pipeline: str, arrives: bool, is_read: bool
) -> None:
    """
    What the docstring of `heartbeat` says of Dynamo's frontend.

    A comment is dropped, one with an event's name breaks the official client, and chunks without
    content are dropped once a token came. A runtime that does better fails this test.
    """
    lines = lines_of(kept_alive, pipeline)
    assert (": ping" in lines) == arrives
    assert chunks_in(lines) == 5
    try:
        said = ask(kept_alive, pipeline, 4).split()
    except json.JSONDecodeError:
        said = None
    assert (said == ["0", "1", "2", "3"]) == is_read
