"""What a worker writes into discovery, where routers and frontends read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rx_backend.worker._processes import START_S, serve
from tests.rx_backend.worker.engines import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


def entry(folder: Path, bucket: str) -> dict[str, Any]:
    """Read the only entry of a bucket of file discovery."""
    (file,) = (folder / "discovery" / "v1" / bucket).iterdir()
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("mode", "component", "worker_type", "needs"),
    [
        ("agg", "backend", "aggregated", []),
        ("prefill", "prefill", "prefill", [["decode"]]),
        ("decode", "backend", "decode", [["prefill"]]),
    ],
)
def test_the_role_and_the_sizes_are_registered(
    tmp_path: Path, mode: str, component: str, worker_type: str, needs: list[list[str]]
) -> None:
    """The card has the engine's sizes and what the role needs; it is gone when the worker is."""
    with serve(
        tmp_path, "CountingEngine", "--mode", mode, "--namespace", "here", "--grace-s", "0"
    ) as served:
        served.line("serving", START_S)
        found = entry(tmp_path, "instances")
        assert (found["namespace"], found["component"]) == ("here", component)
        card = entry(tmp_path, "mdc")["card_json"]
        assert card["display_name"] == MODEL
        assert card["worker_type"] == worker_type
        assert card.get("needs", []) == needs
        assert card["kv_cache_block_size"] == 32
        assert card["context_length"] == 2048
        assert card["runtime_config"]["total_kv_blocks"] == 640
        served.signal()
        assert served.ended() == 0
        for bucket in ("instances", "mdc"):
            assert list((tmp_path / "discovery" / "v1" / bucket).iterdir()) == []
