"""A real NATS server with JetStream on loopback, which can be killed and started again."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.rx_backend.worker._processes import START_S, free_port
from tools.cluster import find

__all__ = ("NatsServer", "nats_server")


class NatsServer:
    """The process of one server, its port and its files."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self, *, jetstream: bool = True, **limits: str) -> None:
        """Start it, on its port and with its files, and wait until it listens."""
        config = self._folder / "nats.conf"
        config.write_text("\n".join(f"{name}: {value}" for name, value in limits.items()))
        flags = ["-a", "127.0.0.1", "-p", str(self.port)]
        if jetstream:
            flags += ["-js", "-sd", str(self._folder)]
        self._process = subprocess.Popen(
            [find("nats-server"), "-c", str(config), *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self._process.poll() is None, "nats-server has ended"
                assert time.monotonic() < ends, "nats-server does not listen"
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@contextmanager
def nats_server(folder: Path, *, jetstream: bool = True, **limits: str) -> Generator[NatsServer]:
    """Run a server with its files in *folder*."""
    server = NatsServer(folder)
    server.start(jetstream=jetstream, **limits)
    try:
        yield server
    finally:
        server.kill()
