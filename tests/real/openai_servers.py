"""Real servers with OpenAI's API, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.error import URLError

from tests.real.tiny_model import RealModel

__all__ = ("RealServer", "llama_server", "vllm_server")

_START_S = 150
# One thread: on a machine with few cores more of them wait for each other.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
}


@dataclass(frozen=True)
class RealServer:
    """Where it is, and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it and its children, without a chance to say goodbye."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def llama_server(model: RealModel) -> Generator[RealServer]:
    """Run a llama-server, with four slots of the model's context, until the block ends."""
    port = _free_port()
    with _running(port, "tests.real.llama_server", str(model.gguf), str(port)) as server:
        yield server


@contextmanager
def vllm_server(model: RealModel) -> Generator[RealServer]:
    """Run a vLLM on the CPU until the block ends."""
    port = _free_port()
    options = {
        "--model": str(model.folder),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-model-len": str(model.context_length),
        "--dtype": "float32",
    }
    words = [word for option in options.items() for word in option]
    module = "vllm.entrypoints.openai.api_server"
    with _running(port, module, *words, "--enforce-eager") as server:
        yield server


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def _running(port: int, module: str, *arguments: str) -> Generator[RealServer]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **_ENVIRONMENT},
    )
    server = RealServer(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        server.kill()


def _wait_until_healthy(server: RealServer) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError("the server did not start")
