"""Clients of an engine that is silent: what a deadline costs, and what keeps a connection alive."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.rx_backend.worker._processes import ROOT, START_S, Served, serve
from tests.rx_backend.worker.silent import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

ENGINE = "tests.rx_backend.worker.silent:SilentEngine"
MIGRATION_LIMIT = 3
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@contextmanager
def serving(
    folder: Path, pipeline: str, environ: dict[str, str]
) -> Generator[tuple[Served, OpenAI]]:
    flags = ("--pipeline", f"tests.rx_backend.worker.silent:{pipeline}")
    with (
        serve(
            folder, ENGINE, *flags, "--frontend", "--grace-s", "0", cwd=ROOT, **environ
        ) as served,
        served.client() as client,
    ):
        served.line("curl -N", START_S)
        yield served, client


def ask(client: OpenAI, tokens: int) -> str:
    """Read a whole answer as a stream."""
    chunks = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=tokens, stream=True
    )
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def ask_at_once(client: OpenAI, tokens: int) -> str:
    """Get a whole answer in one piece."""
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=tokens)
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
def test_a_passed_deadline_costs_one_run_of_the_engine(
    tmp_path: Path, pipeline: str, tokens: int, calls: int
) -> None:
    """The client gets a 504; no other run is tried unless it was asked for, and the worker stays."""
    with serving(tmp_path, pipeline, {}) as (served, client):
        for asked, how in enumerate((ask, ask_at_once), start=1):
            with pytest.raises(APIError) as caught:
                how(client, tokens)
            assert status(caught.value) == "504"
            assert served.count("called") == asked * calls


def lines_of(client: OpenAI) -> list[str]:
    """Read an answer as the lines that come over HTTP, keep-alives included."""
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=QUESTION, max_tokens=4, stream=True
    ) as reply:
        return [line for line in reply.iter_lines() if line]


def chunks_in(lines: list[str]) -> int:
    data = (line.removeprefix("data: ") for line in lines if line.startswith("data: {"))
    return sum(bool(json.loads(line)["choices"]) for line in data)


def test_the_frontend_keeps_a_connection_alive(tmp_path: Path) -> None:
    """By its own interval there are lines while the engine is silent; the client reads over them."""
    environ = {"DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS": "50", "SILENCE_S": "0.6"}
    with serving(tmp_path, "standard", environ) as (_, client):
        assert sum(line.startswith(":") for line in lines_of(client)) >= 3
        assert ask(client, 4).split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("pipeline", "arrives", "is_read"),
    [("comment", False, True), ("event", True, False), ("empty", False, True)],
)
def test_what_a_heartbeat_is_to_the_frontends_clients(
    tmp_path: Path, pipeline: str, arrives: bool, is_read: bool
) -> None:
    """
    What the docstring of `heartbeat` says of Dynamo's frontend.

    A comment is dropped, one with an event's name breaks the official client, and chunks without
    content are dropped once a token came. A runtime that does better fails this test.
    """
    with serving(tmp_path, pipeline, {"SILENCE_S": "0.6"}) as (_, client):
        lines = lines_of(client)
        assert (": ping" in lines) == arrives
        assert chunks_in(lines) == 5
        try:
            said = ask(client, 4).split()
        except json.JSONDecodeError:
            said = None
        assert (said == ["0", "1", "2", "3"]) == is_read
