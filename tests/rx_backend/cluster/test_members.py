"""Workers that come, go, die and are given up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from openai import APIError, OpenAI

from tests.rx_backend.cluster._cluster import Clusters
from tests.rx_backend.worker._processes import (
    ROOT,
    START_S,
    STEP_S,
    Served,
    ask,
    counted,
    frontend,
    serve,
    until,
    warm_up,
    words,
)
from tests.rx_backend.worker.engines import MADE_BEFORE_THE_WAIT, MODEL, WAIT, WAIT_INSIDE

pytestmark = [pytest.mark.cluster("nats"), pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

CLIENTS, TOKENS = 6, 20


@contextmanager
def serving_two(folder: Path, **environ: str) -> Generator[tuple[OpenAI, Served, Served]]:
    """Serve two workers of one model behind a frontend."""
    engine = "tests.rx_backend.worker.engines:PeerEngine"
    environ = {"RELEASE": str(folder), **environ}
    with ExitStack() as stack:
        enter = stack.enter_context
        one, other = (
            enter(serve(folder, engine, "--grace-s", "0", cwd=ROOT, **environ)) for _ in range(2)
        )
        front = enter(frontend(folder, **environ))
        for worker in (one, other):
            worker.line("etcd discovery", START_S)
        client = enter(front.client())
        warm_up(client, front.port, one, other)
        yield client, one, other


def answer(client: OpenAI, letter: str = "c", begun: Callable[[], object] = list) -> list[str]:
    """Read a whole answer; tell when its first token has come."""
    found: list[str] = []
    for word in words(ask(client, letter, TOKENS)):
        found.append(word)
        begun()
    return found


def test_two_workers_share_the_load_and_one_leaves(tmp_path: Path) -> None:
    """Those in flight end where they are, and those that come then are answered by the other."""
    with (
        serving_two(tmp_path) as (client, leaving, other),
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        # A frontend that has nothing of an answer yet gives up on a worker that it no longer sees.
        made = threading.Semaphore(0)
        running = [pool.submit(answer, client, WAIT_INSIDE, made.release) for _ in range(CLIENTS)]
        for _ in range(CLIENTS * MADE_BEFORE_THE_WAIT):
            assert made.acquire(timeout=STEP_S)
        workers = (leaving, other)
        until(lambda: sum(worker.count("waiting") for worker in workers) == CLIENTS, *workers)
        assert [worker.count("waiting") for worker in workers] == [CLIENTS // 2] * 2
        leaving.signal()
        for _ in range(CLIENTS):
            assert answer(client) == counted(TOKENS)
        assert not any(request.done() for request in running)
        (tmp_path / WAIT_INSIDE).touch()
        assert [request.result(STEP_S) for request in running] == [counted(TOKENS)] * CLIENTS
        assert leaving.ended() == 0
        assert [worker.count("waiting") for worker in workers] == [CLIENTS // 2] * 2


def test_a_dead_worker_is_removed(tmp_path: Path, clusters: Clusters) -> None:
    """Requests are answered by the one that is left, and etcd drops the dead one by itself."""
    # How soon a frontend gives up on a silent worker, and etcd too.
    short = {"DYN_NATS_REQUEST_TIMEOUT_SECS": "1", "ETCD_LEASE_TTL": "3"}
    with (
        serving_two(tmp_path, **short) as (client, dying, _),
        clusters[tmp_path].departures() as departures,
    ):
        dying.signal(signal.SIGKILL)
        for _ in range(CLIENTS):
            assert answer(client) == counted(TOKENS)
        assert next(departures) == 1


def test_a_lost_lease_ends_the_worker(tmp_path: Path, clusters: Clusters) -> None:
    """
    A request in flight is stopped after its time, then cleaned up.

    The kind is logged, and the exit code is 1.
    """
    flags = ("--frontend", "--drain-s", "0.1")
    release = str(tmp_path / "never")
    with (
        serve(tmp_path, "CountingEngine", *flags, RELEASE=release, ETCD_LEASE_TTL="3") as served,
        served.client() as client,
    ):
        served.line("curl -N", START_S)
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": WAIT}], stream=True
        )
        next(chunk for chunk in answer if chunk.choices[0].delta.content)
        clusters[tmp_path].revoke_leases()
        with pytest.raises(APIError, match="unavailable"):
            list(answer)
        assert "BackendDisconnected" in served.line("rx-backend: error:")
        assert served.ended() == 1
        calls = [line.strip() for line in served.seen if line in {"abort\n", "cleanup\n"}]
        assert calls == ["abort", "cleanup"]
