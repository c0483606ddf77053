"""The FastAPI service in ``examples`` on Ray Serve, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.rx_backend.web.servers import ROOT
from tests.rx_backend.worker._processes import free_port

pytestmark = [pytest.mark.needs("ray", "fastapi", "jinja2", "openai"), pytest.mark.timeout(300)]

START_S = 240.0
ASKED: Any = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 8}
SERVE = """
import sys

import ray
import ray_serve_service
from ray import serve

ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={"port": int(sys.argv[1])})
serve.run(ray_serve_service.service, blocking=True)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    port = free_port()
    folder = tmp_path_factory.mktemp("ray")
    environment = {
        **os.environ,
        "HOME": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # On a machine with much else to do its processes start slowly, and would be replaced.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
        "TOKEN_INTERVAL_MS": "5",
    }
    log = folder / "log"
    with (
        log.open("wb") as written,
        subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port)],
            cwd=folder,
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            found = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(process, found, log)
            yield found
        finally:
            process.terminate()


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        try:
            if httpx.get(f"{url}/v1/models").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


def test_a_chat(url: str) -> None:
    """Streamed to the official client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(model="sample", **ASKED, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " 0 1 2 3 4 5 6 7"


def test_a_resumed_chat(url: str) -> None:
    """A client that has left gets the rest of its answer."""
    path, asked = f"{url}/v1/chat/completions", {**ASKED, "stream": True}
    with httpx.stream("POST", path, json=asked) as response:
        last = next(line[4:] for line in response.iter_lines() if line.startswith("id: "))
    rest = httpx.post(path, json=asked, headers={"last-event-id": last}).text
    assert '"content":" 0' not in rest
    assert '7"' in rest
