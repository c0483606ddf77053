"""Every test of this folder runs on etcd, and on the request plane that its marker names."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import pytest

from tests.rx_backend.cluster._cluster import Clusters
from tests.rx_backend.worker import _processes


@pytest.fixture(scope="module", autouse=True)
def clusters(request: pytest.FixtureRequest) -> Generator[Clusters]:
    """Let workers meet in a cluster, where they would otherwise in files of the same folder."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        clusters = Clusters(stack, *request.node.get_closest_marker("cluster").args)
        patch.setattr(_processes, "meet", clusters.environ)
        yield clusters
