"""Prefill and decode in processes of their own, behind a frontend of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.rx_backend.worker._processes import (
    ROOT,
    START_S,
    TRACE,
    Served,
    ask,
    counted,
    frontend,
    serve,
    until,
    until_reported,
    warm_up,
    words,
)
from tests.rx_backend.worker.engines import BEAT_BEFORE, BOOTSTRAP, FIRST, WAIT_BEFORE

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

ENGINE = "tests.rx_backend.worker.engines:PeerEngine"


@dataclass
class Pair:
    """A prefill worker, a decode worker, and a client of the frontend before them."""

    prefill: Served
    decode: Served
    client: OpenAI
    release: Path

    def answer(self, letter: str, tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Have a request answered whole; give it as prefill and as decode had it."""
        workers = (self.prefill, self.decode)
        before = sum(len(worker.told("span")) for worker in workers)
        assert list(words(ask(self.client, letter, tokens))) == counted(tokens)
        until_reported(before + len(workers), *workers)
        return self.prefill.told("request")[-1], self.decode.told("request")[-1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    """Serve one pair for the tests of this file."""
    folder = tmp_path_factory.mktemp("pair")
    release = folder / "release"
    release.mkdir()
    environ = {"RELEASE": str(release), "DYN_LOGGING_JSONL": "true"}
    flags = ("--grace-s", "0", "--pipeline", "tests.rx_backend.worker.engines:draining_beats")
    with (
        serve(folder, ENGINE, *flags, "--mode", "prefill", cwd=ROOT, **environ) as prefill,
        serve(folder, ENGINE, *flags, "--mode", "decode", cwd=ROOT, **environ) as decode,
        frontend(folder, **environ) as front,
        front.client() as client,
    ):
        prefill.line("serving", START_S)
        decode.line("serving", START_S)
        warm_up(client, front.port, prefill, decode, stages=2)
        yield Pair(prefill, decode, client, release)


def test_decode_continues_from_the_prefill_result(pair: Pair) -> None:
    """The payload arrives as it was given, and the client gets every token once, the first too."""
    asked, got = pair.answer("c", 20)
    handed = pair.prefill.told("handed")[-1]
    assert handed == {"next": FIRST}
    assert got["prefill_result"] == {"disaggregated_params": handed}
    assert got["token_ids"] == asked["token_ids"]
    assert asked["stop_conditions"]["max_tokens"] == 1
    assert got["stop_conditions"]["max_tokens"] == 20


@pytest.mark.rows("T1", "T3", "T4", "P1", "P2")
def test_the_decode_span_links_to_the_prefill_span(pair: Pair) -> None:
    """Both are in the client's trace, each with its role; decode names and links the other."""
    asked, _ = pair.answer("c", 5)
    prefill, decode = (worker.told("span")[-1] for worker in (pair.prefill, pair.decode))
    identity = {name: prefill[name] for name in ("trace_id", "span_id")}
    assert identity == asked["span"]
    assert decode["links"] == [identity]
    assert decode["attributes"]["migration_trace_id"] == prefill["trace_id"]
    assert decode["attributes"]["migration_span_id"] == prefill["span_id"]
    assert prefill["trace_id"] == decode["trace_id"] == TRACE
    assert prefill["links"] == []
    roles = [span["attributes"]["disagg_role"] for span in (prefill, decode)]
    assert roles == ["prefill", "decode"]


def test_bootstrap_info_is_handed_over_too(pair: Pair) -> None:
    """Engines that transfer while both work get the place, with an id that fits our types."""
    _, got = pair.answer(BOOTSTRAP, 4)
    place = got["bootstrap_info"]
    assert len(place.pop("handoff_id")) == len("00000000-0000-0000-0000-000000000000")
    assert place == pair.prefill.told("handed")[-1]
    assert "prefill_result" not in got


def leave_early(pair: Pair, letter: str) -> None:
    """
    Disconnect while decode waits for its first token; continue when its engine knows of it.

    The runtime tells the worker nothing of a client that leaves before the frontend has the
    stream's beginning, so one that left too early is let go on, and another asks.
    """
    for _ in range(_TRIES):
        pair.decode.seen.clear()
        prefilled = len(pair.prefill.told("span"))
        stream = ask(pair.client, letter, 20)
        pair.decode.line("waiting")
        stream.close()
        until_reported(prefilled + 1, pair.prefill)
        with suppress(AssertionError):
            pair.decode.line("stopped", _HEARD_S)
            return
        (pair.release / letter).touch()
        until_reported(1, pair.decode)
        (pair.release / letter).unlink()
    raise AssertionError("no client that left was heard of")


_TRIES, _HEARD_S = 5, 3.0


@pytest.mark.rows("A2", "A4", "A5")
def test_an_early_disconnect_is_one_abort_after_the_first_token(pair: Pair) -> None:
    """While the transfer is under way there is none, then exactly one."""
    leave_early(pair, WAIT_BEFORE)
    assert pair.decode.count("abort") == 0
    (pair.release / WAIT_BEFORE).touch()
    (span,) = until(lambda: pair.decode.told("span"), pair.decode)
    until(lambda: pair.decode.count("abort"), pair.decode)
    events = [line.strip() for line in pair.decode.seen]
    assert events.index("first token") < events.index("abort")
    assert pair.decode.count("abort") == 1
    assert span["attributes"]["cancelled"] is True
    assert pair.prefill.count("abort") == 0


@pytest.mark.rows("A2", "A4")
def test_a_drained_stream_reaches_its_first_token(pair: Pair) -> None:
    """With the draining pipeline this holds for an engine too that sends empty chunks before."""
    leave_early(pair, BEAT_BEFORE)
    until_reported(1, pair.decode)
    assert pair.decode.count("abort") == pair.decode.count("first token") == 0
    (pair.release / BEAT_BEFORE).touch()
    pair.decode.line("first token")
    pair.decode.line("abort")
    # One that is answered later has nothing of it left behind.
    pair.answer("c", 3)
    assert pair.decode.count("abort") == 1
