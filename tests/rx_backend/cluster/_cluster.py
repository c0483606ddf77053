"""Real etcd and NATS on loopback, which are ended on every way out."""

from __future__ import annotations

import json
import signal
import subprocess
from base64 import b64encode
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.rx_backend.worker._processes import START_S, STEP_S, Served, free_port
from tools import cluster as programs

# etcd of some versions wants to be asked on such machines. The others are not impressed.
_ENVIRON = {"ETCD_UNSUPPORTED_ARCH": "arm64"}


class Cluster:
    """One etcd and one NATS, started when they are first needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._started: dict[str, tuple[list[str], int, str]] = {}

    @cached_property
    def etcd(self) -> Served:
        """The process of etcd, which listens."""
        peers = f"http://127.0.0.1:{free_port()}"
        port = free_port()
        clients = f"http://127.0.0.1:{port}"
        flags = {
            "data-dir": str(self._folder / "etcd"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
            # It is alone, and need not wait for others.
            "heartbeat-interval": "10",
            "election-timeout": "100",
        }
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        return self._start("etcd", arguments, port, "ready to serve client requests")

    @cached_property
    def nats(self) -> Served:
        """The process of NATS, which listens."""
        port = free_port()
        arguments = ["--addr", "127.0.0.1", "--port", str(port)]
        return self._start("nats-server", arguments, port, "Server is ready")

    def environ(self, request_plane: str) -> dict[str, str]:
        """The variables by which workers join."""
        joined = {
            "DYN_DISCOVERY_BACKEND": "etcd",
            "DYN_REQUEST_PLANE": request_plane,
            "ETCD_ENDPOINTS": f"http://127.0.0.1:{self.etcd.port}",
        }
        if request_plane == "nats":
            joined["NATS_SERVER"] = f"nats://127.0.0.1:{self.nats.port}"
        return joined

    @contextmanager
    def departures(self) -> Generator[Iterator[int]]:
        """Watch the workers in etcd; give how many have left each time that some do."""
        every = {
            "key": b64encode(b"v1/instances/").decode(),
            "range_end": b64encode(b"v1/instances0").decode(),
            "filters": ["NOPUT"],
        }
        with self._ask("watch", create_request=every) as answers:
            told: Iterator[Any] = (json.loads(line)["result"] for line in answers)
            assert next(told)["created"]
            yield (len(one["events"]) for one in told)

    def revoke_leases(self) -> None:
        """Take away what keeps workers in etcd, as if they had not been heard of for long."""
        with self._ask("lease/leases") as answer:
            leases = json.load(answer)["leases"]
        for lease in leases:
            self._ask("lease/revoke", ID=lease["ID"]).close()

    def _ask(self, what: str, **body: Any) -> Any:
        url = f"http://127.0.0.1:{self.etcd.port}/v3/{what}"
        return urlopen(Request(url, json.dumps(body).encode()), timeout=STEP_S)

    def restart(self, name: str) -> None:
        """Kill etcd or NATS, and start it again with its data and on its port."""
        attribute, program = {"etcd": ("etcd", "etcd"), "nats": ("nats", "nats-server")}[name]
        server: Served = getattr(self, attribute)
        server.signal(signal.SIGKILL)
        server.ended()
        vars(self)[attribute] = self._start(program, *self._started[program])

    def _start(self, name: str, arguments: list[str], port: int, ready: str) -> Served:
        self._started[name] = arguments, port, ready
        process = subprocess.Popen(
            [programs.find(name), *arguments],
            env=_ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server = Served(process, port)

        def end() -> None:
            server.signal(signal.SIGKILL)
            server.ended()

        self._stack.callback(end)
        server.line(ready, START_S)
        return server


class Clusters:
    """A cluster for each folder."""

    def __init__(self, stack: ExitStack, request_plane: str) -> None:
        self._stack = stack
        self._plane = request_plane
        self._known: dict[Path, Cluster] = {}

    def __getitem__(self, folder: Path) -> Cluster:
        if folder not in self._known:
            self._known[folder] = Cluster(folder, self._stack)
        return self._known[folder]

    def environ(self, folder: Path) -> dict[str, str]:
        """The variables by which workers join the folder's cluster."""
        return self[folder].environ(self._plane)
