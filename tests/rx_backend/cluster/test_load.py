"""The one-minute form of the load on a cluster."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rx_backend.cluster._cluster import Cluster
from tests.rx_backend.cluster.load import Load

pytestmark = [pytest.mark.cluster("nats"), pytest.mark.needs("dynamo"), pytest.mark.timeout(240)]

SECONDS = 60.0


def test_remaining_clients_get_each_token_once(tmp_path: Path) -> None:
    """Whatever is frozen, killed, restarted or full meanwhile; and nothing is left in a worker."""
    with ExitStack() as stack:
        load = Load(tmp_path, SECONDS, print)
        report = asyncio.run(load.run(Cluster(tmp_path, stack)))
    assert report.faults == []
    assert report.counts["left"] >= 500
    assert report.counts["stayed"] >= 50
    assert report.counts["slow"] >= 5
