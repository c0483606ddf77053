"""A worker is lost in mid-stream, and its requests continue elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, OpenAI

from tests.rx_backend.worker._processes import (
    START_S,
    Served,
    ask,
    counted,
    frontend,
    serve,
    until,
    warm_up,
    words,
)
from tests.rx_backend.worker.engines import FIRST, MADE_BEFORE_THE_WAIT, WAIT_INSIDE

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

ENGINE = "tests.rx_backend.worker.engines:PeerEngine"
TOKENS, BEFORE = 12, MADE_BEFORE_THE_WAIT


@contextmanager
def serving(
    folder: Path,
    modes: list[str],
    *,
    engine: str = ENGINE,
    limit: str | None = None,
    drain_s: float = 30,
) -> Generator[tuple[OpenAI, list[Served]]]:
    """Serve workers of these modes behind a frontend; each has answered once."""
    (folder / "release").mkdir()
    flags = ("--grace-s", "0", "--drain-s", str(drain_s))
    limits = () if limit is None else ("--migration-limit", limit)
    with ExitStack() as stack:
        enter = stack.enter_context
        release = str(folder / "release")
        workers = [
            enter(serve(folder, engine, "--mode", mode, *flags, RELEASE=release)) for mode in modes
        ]
        front = enter(frontend(folder, *limits))
        for worker in workers:
            worker.line("serving", START_S)
        client = enter(front.client())
        warm_up(client, front.port, *workers, stages=len({*modes}))
        for worker in workers:
            worker.seen.clear()
        yield client, workers


def until_half_way(client: OpenAI, workers: list[Served]) -> tuple[Iterator[str], Served, Served]:
    """Stream an answer up to where its worker waits; give the rest, that worker and the other."""
    answer = words(ask(client, WAIT_INSIDE, TOKENS))
    assert list(islice(answer, BEFORE)) == counted(TOKENS)[:BEFORE]
    until(lambda: sum(worker.count("waiting") for worker in workers), *workers)
    lost, other = sorted(workers, key=lambda worker: worker.count("waiting"), reverse=True)
    assert other.count("waiting") == 0
    return answer, lost, other


def release(folder: Path) -> None:
    (folder / "release" / WAIT_INSIDE).touch()


def continues(request: dict[str, Any], since: dict[str, Any]) -> None:
    """Check that a request has all that was made of the earlier one, and wants the rest."""
    assert request["token_ids"] == [*since["token_ids"], *range(FIRST, FIRST + BEFORE)]
    assert request["stop_conditions"]["max_tokens"] == TOKENS - BEFORE


@pytest.mark.rows("T1", "T3")
def test_a_request_survives_its_worker(tmp_path: Path) -> None:
    """The other one continues from the tokens made so far: none is lost, none comes twice."""
    with serving(tmp_path, ["agg", "agg"]) as (client, workers):
        answer, lost, other = until_half_way(client, workers)
        lost.signal(signal.SIGKILL)
        until(lambda: other.count("waiting"), other)
        release(tmp_path)
        assert list(answer) == counted(TOKENS)[BEFORE:]
        (before,), (after,) = lost.told("request"), other.told("request")
        continues(after, before)
        assert after["migration_link"] == before["span"]
        (span,) = until(lambda: other.told("span"), other)
        assert span["links"] == [before["span"]]
        assert span["attributes"]["migration_trace_id"] == before["span"]["trace_id"]
        assert span["attributes"]["migration_span_id"] == before["span"]["span_id"]
        assert span["attributes"]["output_tokens"] == TOKENS - BEFORE


@pytest.mark.rows("E7")
def test_a_worker_with_a_lost_engine_has_its_requests_migrated(tmp_path: Path) -> None:
    """It is out of discovery before they continue elsewhere, and ends with exit code 1."""
    with serving(tmp_path, ["agg", "agg"], engine="ChildEngine") as (client, workers):
        answer, lost, other = until_half_way(client, workers)
        assert len(listed(tmp_path)) == 2
        (child,) = lost.told("child")
        os.kill(child["pid"], signal.SIGKILL)
        until(lambda: other.count("waiting"), other)
        assert len(listed(tmp_path)) == 1
        release(tmp_path)
        assert list(answer) == counted(TOKENS)[BEFORE:]
        continues(other.told("request")[0], lost.told("request")[0])
        assert lost.ended() == 1
        told = "Disconnected: the engine is lost: its child process ended with -9"
        assert any(told in line for line in lost.seen)
        assert lost.count("cleanup") == 1
        assert list(words(ask(client, "c", 2))) == counted(2)


def listed(folder: Path) -> set[str]:
    """The workers in file discovery; the cards of their models stay a little longer."""
    return {path.name for path in (folder / "discovery").rglob("instances/*")}


def test_a_worker_without_drain_time_has_its_requests_migrated(tmp_path: Path) -> None:
    """What is left at the end of a graceful shutdown is stopped here, and continues elsewhere."""
    with serving(tmp_path, ["agg", "agg"], drain_s=0.1) as (client, workers):
        answer, leaving, other = until_half_way(client, workers)
        leaving.signal()
        until(lambda: other.count("waiting"), other)
        release(tmp_path)
        assert list(answer) == counted(TOKENS)[BEFORE:]
        continues(other.told("request")[0], leaving.told("request")[0])
        assert leaving.ended() == 0
        assert leaving.count("abort") == 1


@pytest.mark.rows("T1", "T4")
def test_a_lost_decode_worker_means_prefill_again(tmp_path: Path) -> None:
    """Prefill gets the tokens made so far too, and the spans are linked in the order of work."""
    with serving(tmp_path, ["decode", "decode", "prefill"]) as (client, workers):
        prefill = workers.pop()
        answer, lost, other = until_half_way(client, workers)
        lost.signal(signal.SIGKILL)
        until(lambda: other.count("waiting"), other)
        release(tmp_path)
        assert list(answer) == counted(TOKENS)[BEFORE:]
        until(lambda: len(prefill.told("request")) > 1, prefill)
        first, again = prefill.told("request")
        continues(other.told("request")[0], first)
        assert again["token_ids"] == other.told("request")[0]["token_ids"]
        assert again["migration_link"] == lost.told("request")[0]["span"]
        assert other.told("request")[0]["migration_link"] == again["span"]


def test_without_migration_the_client_gets_an_error(tmp_path: Path) -> None:
    """A frontend that may not move a request ends its stream with an error, after the tokens."""
    with serving(tmp_path, ["agg", "agg"], limit="0") as (client, workers):
        answer, lost, other = until_half_way(client, workers)
        lost.signal(signal.SIGKILL)
        with pytest.raises(APIError):
            next(answer)
        assert other.told("request") == []
