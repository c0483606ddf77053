"""The runtime's health check, which asks the engine itself."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.rx_backend.worker._processes import START_S, STEP_S, free_port, serve
from tests.rx_backend.worker.engines import FAIL_FIRST, FAIL_LATER

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


def health(port: int) -> tuple[int, str]:
    """Ask the runtime's own server how the worker's endpoint is; its status and what it says."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=STEP_S) as answer:
            return answer.status, json.load(answer)["status"]
    except HTTPError as error:
        with error:
            return error.code, json.load(error)["status"]


@pytest.mark.rows("H2")
@pytest.mark.parametrize(
    ("letter", "expected"),
    [("c", (200, "ready")), (FAIL_FIRST, (503, "notready")), (FAIL_LATER, (503, "notready"))],
)
def test_the_probe_decides_on_the_health(
    tmp_path: Path, letter: str, expected: tuple[int, str]
) -> None:
    """A probe that fails makes the worker unhealthy, also when its first token came."""
    port = free_port()
    with serve(
        tmp_path,
        "CountingEngine",
        PROBE=letter,
        DYN_SYSTEM_PORT=str(port),
        DYN_HEALTH_CHECK_ENABLED="true",
        DYN_CANARY_WAIT_TIME="1",
        DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS='["generate"]',
    ) as served:
        served.line("serving", START_S)
        served.line(f"probed {letter}")
        # By the time of the second probe the first has been judged.
        served.line(f"probed {letter}")
        assert health(port) == expected
