"""A llama-server in a process of its own: ``python -m tests.real.llama_server MODEL.gguf PORT``."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

__all__ = ("SLOTS", "LlamaServer", "llama_server")

SLOTS = 4
_CONTEXT_LENGTH = 2048
_START_S = 60


@dataclass(frozen=True)
class LlamaServer:
    """Where it is, and its process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def llama_server(model: Path) -> Generator[LlamaServer]:
    """Run a llama-server with a GGUF on a free port, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), str(port)]
    server = LlamaServer(
        f"http://127.0.0.1:{port}",
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
    )
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _wait_until_healthy(server: LlamaServer) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError("llama-server did not start")


def _serve(model: str, port: int) -> None:
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = SLOTS * _CONTEXT_LENGTH
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.warmup = False
    server = xllamacpp.Server(params)
    signal.pause()
    del server


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
