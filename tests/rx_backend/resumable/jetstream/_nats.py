"""Real NATS servers with JetStream on loopback, which can be killed and started again."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.rx_backend.worker._processes import START_S, free_port
from tools.cluster import find

__all__ = ("NatsServer", "nats_server")

NO_CONFIG: Mapping[str, str] = MappingProxyType({})


class NatsServer:
    """The process of one server, its port and its files."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self, config: Mapping[str, str] = NO_CONFIG, *, jetstream: bool = True) -> None:
        """Start it, on its port, with its files and this configuration; wait until it listens."""
        file = self._folder / "nats.conf"
        file.write_text("\n".join(f"{name}: {value}" for name, value in config.items()))
        flags = ["-a", "127.0.0.1", "-p", str(self.port)]
        if jetstream:
            flags += ["-js", "-sd", str(self._folder)]
        self._process = subprocess.Popen(
            [find("nats-server"), "-c", str(file), *flags],
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
def nats_server(
    folder: Path, config: Mapping[str, str] = NO_CONFIG, *, jetstream: bool = True
) -> Generator[NatsServer]:
    """Run a server with its files in *folder*."""
    server = NatsServer(folder)
    server.start(config, jetstream=jetstream)
    try:
        yield server
    finally:
        server.kill()
