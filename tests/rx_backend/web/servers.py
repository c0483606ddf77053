"""Servers of ASGI applications, each a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.forks import ROOT, Fork, fork
from tests.rx_backend.worker._processes import free_port

__all__ = ("COMMANDS", "ROOT", "Server", "running")

SERVICE = "tests.rx_backend.web.service:app"

COMMANDS: Mapping[str, Callable[[str, int, str], list[str]]] = {
    "uvicorn": lambda app, port, grace: [
        *("uvicorn", app, "--port", str(port), "--log-level", "warning"),
        *("--timeout-graceful-shutdown", grace),
    ],
    "hypercorn": lambda app, port, grace: [
        *("hypercorn.__main__", app, "--bind", f"127.0.0.1:{port}", "--graceful-timeout", grace),
    ],
    "granian": lambda app, port, grace: [
        *("granian", app, "--interface", "asgi", "--port", str(port), "--no-log"),
        *("--workers-kill-timeout", grace),
    ],
}

_IMPORTED = (
    *("uvicorn", "hypercorn.__main__", "rx_backend.web", "rx_backend.engines.openai"),
    *("rx_backend.resumable.jetstream", "tests.rx_backend.resumable.jetstream._answers"),
)


@dataclass
class Server:
    """A server that runs."""

    name: str
    url: str
    process: subprocess.Popen[bytes] | Fork


@contextmanager
def running(
    name: str,
    app: str = SERVICE,
    *,
    grace_s: int = 1,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    starts_s: float = 25.0,
) -> Generator[Server]:
    """Run a server until the block ends; what it writes is lost."""
    port = free_port()
    process = _start(COMMANDS[name](app, port, str(grace_s)), cwd, env)
    try:
        _wait_until_it_listens(process, port, starts_s)
        yield Server(name, f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(
    command: list[str], cwd: Path, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes] | Fork:
    with Path(os.devnull).open("wb") as quiet:
        if command[0] == "granian":
            # It starts processes of its own.
            command = [sys.executable, "-m", *command]
            return subprocess.Popen(command, cwd=cwd, env=env, stdout=quiet, stderr=quiet)
        nowhere = quiet.fileno()
        return fork(_IMPORTED, command, cwd=cwd, env=env, stdout=nowhere, stderr=nowhere)


def _wait_until_it_listens(
    process: subprocess.Popen[bytes] | Fork, port: int, starts_s: float
) -> None:
    ends = time.monotonic() + starts_s
    while True:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < ends, "the server does not listen"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
