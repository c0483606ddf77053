"""How a worker ends, seen from outside: signals, exit codes, and what its clients get."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from openai import APIError, OpenAI

from tests.rx_backend.worker import silent
from tests.rx_backend.worker._processes import START_S, STEP_S, Served, serve
from tests.rx_backend.worker.engines import MODEL, WAIT

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

CLIENTS, TOKENS = 4, 25


def ask(
    client: OpenAI,
    first: threading.Event | None = None,
    *,
    letter: str = WAIT,
    model: str = MODEL,
) -> str:
    """Stream one answer; give its text and its finish reason."""
    text = ""
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": letter}],
        max_tokens=TOKENS,
        stream=True,
    ):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if first is not None:
            first.set()
        if choice.finish_reason:
            text += f" {choice.finish_reason}"
    return text


def start(
    pool: ThreadPoolExecutor, client: OpenAI, number: int, *, model: str = MODEL
) -> list[Future[str]]:
    """Start so many requests, each of which has its first token and then waits."""
    running: list[Future[str]] = []
    for _ in range(number):
        first = threading.Event()
        request = pool.submit(ask, client.with_options(max_retries=5), first, model=model)
        # One that fails sooner is over too.
        request.add_done_callback(lambda _, first=first: first.set())
        assert first.wait(STEP_S)
        assert not request.done(), request.exception()
        running.append(request)
    return running


def one_of_each(served: Served) -> bool:
    return served.count("drain") == served.count("cleanup") == 1


def test_a_signal_loses_no_request(tmp_path: Path) -> None:
    """Requests in flight end with all their tokens, new ones are refused, the exit code is 0."""
    release = tmp_path / "release"
    flags = ("--frontend", "--grace-s", "0", "--drain-s", str(STEP_S))
    with (
        serve(tmp_path, "CountingEngine", *flags, RELEASE=str(release)) as served,
        served.client() as client,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        served.line("curl -N", START_S)
        running = start(pool, client, CLIENTS)
        served.signal(signal.SIGINT)
        served.line("refuses new requests")
        with pytest.raises(APIError):
            ask(client, letter="c")
        assert not any(request.done() for request in running)
        release.touch()
        expected = " ".join(["", *map(str, range(TOKENS)), "length"])
        assert [request.result(STEP_S) for request in running] == [expected] * CLIENTS
        assert served.ended() == 0
        assert one_of_each(served)
        assert served.count("abort") == 0


def test_a_forced_shutdown(tmp_path: Path) -> None:
    """
    An engine that ignores the stop has seconds; one that holds a thread ends the process.

    A start that blocks is interrupted after some seconds, and cleaned up; one that can't be
    interrupted ends the process.
    """
    flags = ("--frontend", "--grace-s", "0", "--drain-s", "600")
    codes = {"SilentEngine": 0, "StuckEngine": 1}
    with ExitStack() as stack:
        enter = stack.enter_context
        interrupted = enter(serve(tmp_path / "interrupted", "BlockingEngine"))
        forced = enter(serve(tmp_path / "forced", "BlockingEngine"))
        deaf = enter(serve(tmp_path / "deaf", "BlockingEngine", SWALLOWS="1"))
        for blocked in (interrupted, forced, deaf):
            blocked.line("blocks", START_S)
            # One signal is enough, as orchestrators send it.
            blocked.signal()
        forced.signal(signal.SIGINT)
        pool = enter(ThreadPoolExecutor(len(codes)))
        workers: list[tuple[Served, Future[str]]] = []
        for engine in codes:
            target = f"tests.rx_backend.worker.silent:{engine}"
            served = enter(serve(tmp_path / engine, target, *flags, SILENCE_S="600"))
            served.line("curl -N", START_S)
            (request,) = start(pool, enter(served.client()), 1, model=silent.MODEL)
            served.signal()
            served.line("refuses new requests")
            served.signal()
            workers.append((served, request))
        for blocked in (interrupted, forced):
            assert blocked.ended(2 * START_S) == 0
            assert blocked.count("cleanup") == 1
        assert deaf.ended(2 * START_S) == 1
        deaf.line("error: the engine's start blocks the event loop")
        for (served, request), code in zip(workers, codes.values(), strict=True):
            with pytest.raises(APIError):
                request.result(STEP_S)
            assert served.ended(2 * START_S) == code
            assert not any("Traceback" in line for line in served.seen)
        workers[-1][0].line("rx-backend: error: the shutdown did not end within 10 s")
