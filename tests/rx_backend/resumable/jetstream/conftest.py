"""Every test of this folder gets a NATS server of its own on request."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.proxy import Proxy, proxy
from tests.rx_backend.resumable.jetstream._nats import NatsServer, nats_server


@pytest.fixture
def nats(tmp_path: Path) -> Generator[NatsServer]:
    """A server with JetStream, which stores in files."""
    with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
def between(nats: NatsServer) -> Generator[Proxy]:
    """Stand between a process and the server."""
    with proxy(nats.port, "nats") as found:
        yield found
