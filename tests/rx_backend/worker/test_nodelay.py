"""No first token waits for a delayed acknowledgement."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from rx_backend.worker.frontend import until_listed
from rx_backend.worker.nodelay import accept_without_delay
from tests.rx_backend.worker._processes import START_S, frontend, serve
from tests.rx_backend.worker.engines import MODEL

# The runtime is for Linux only, and so is this.
pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


def sends_at_once(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_a_server_accepts_sends_at_once(host: str) -> None:
    """A connection that comes later has the option; one that is there already keeps what it has."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)), server.accept()[0] as before:
            assert not sends_at_once(before)
            accept_without_delay()
            with socket.create_connection((host, port)), server.accept()[0] as after:
                assert sends_at_once(after)
            assert not sends_at_once(before)


def test_nothing_is_left_open() -> None:
    """Files and sockets of all kinds are left as they are, and no duplicate of one stays."""
    own = Path("/proc/self/fd")
    with socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX):
        before = sorted(own.iterdir())
        accept_without_delay()
        assert sorted(own.iterdir()) == before


def test_a_worker_takes_requests_without_delay(tmp_path: Path) -> None:
    """The runtime's own server has the option by the time of the first request."""
    with (
        serve(tmp_path, "ListeningEngine") as served,
        frontend(tmp_path) as front,
        front.client() as client,
    ):
        served.line("serving", START_S)
        asyncio.run(until_listed("127.0.0.1", front.port, MODEL))
        client.with_options(max_retries=9).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "count"}]
        )
        assert served.count("at once True") > 0
        assert served.count("at once False") == 0
