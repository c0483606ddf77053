"""A frontend in a process of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rx_backend.worker._pairs import ask, counted, warm_up, words
from tests.rx_backend.worker._processes import START_S, STEP_S, frontend, serve, until
from tests.rx_backend.worker.peers import WAIT_INSIDE

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


def test_it_ends_when_its_streams_have(tmp_path: Path) -> None:
    """A signal cuts no answer off; the exit code is 0, and the worker stays."""
    engine = "tests.rx_backend.worker.peers:PeerEngine"
    with (
        serve(tmp_path, engine, RELEASE=str(tmp_path)) as worker,
        frontend(tmp_path) as front,
        front.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        worker.line("serving", START_S)
        warm_up(client, front.port, worker)
        answer = pool.submit(lambda: list(words(ask(client, WAIT_INSIDE, 8))))
        until(lambda: worker.count("waiting"), worker)
        front.signal()
        assert front.process.poll() is None
        (tmp_path / WAIT_INSIDE).touch()
        assert answer.result(STEP_S) == counted(8)
        assert front.ended() == 0
        assert worker.process.poll() is None


def test_a_port_in_use_is_told_at_once(tmp_path: Path) -> None:
    """The second frontend on a port fails, and does not take the first one for itself."""
    with (
        frontend(tmp_path) as first,
        pytest.raises(AssertionError, match=f"port {first.port} already in use"),
        frontend(tmp_path, "--http-port", str(first.port)),
    ):
        pass
