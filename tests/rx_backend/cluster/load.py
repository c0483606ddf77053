"""
A cluster under load while its parts are frozen, killed and restarted, and its disk is full.

Two workers of one model, a frontend, etcd and NATS, all on loopback. Clients come and go the whole
time; whatever happens, one that stays must get each token once. At the end nothing is left in a
worker, and its memory has not grown. Run the long form with
``python -m tests.rx_backend.cluster.load --seconds 600``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rx_backend.worker.frontend import until_listed
from tests.rx_backend.cluster._cluster import Cluster
from tests.rx_backend.cluster.load_clients import Clients
from tests.rx_backend.cluster.load_engine import MODEL
from tests.rx_backend.worker._processes import ROOT, START_S, free_port
from tests.rx_backend.worker.engines import say

FREEZE_S = 12.0
FULL_DISK_S = 4.0
ENDS_S = 40.0
IDLE_S = 10.0
GROWTH_MIB = 4.0

_ENGINE = "tests.rx_backend.cluster.load_engine:LoadEngine"
_PIPELINE = "tests.rx_backend.cluster.load_engine:recorded"


@dataclass
class Report:
    """What came of a run; *faults* is empty where everything held."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    faults: list[str] = field(default_factory=list[str])
    memory_mib: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])


class Process:
    """A worker or frontend with its output in a file, started again when it has ended."""

    def __init__(
        self, name: str, folder: Path, arguments: Sequence[str], env: dict[str, str]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._env = env
        self.ends: list[int] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "rx_backend_cli", *self._arguments],
                cwd=ROOT,
                env=self._env,
                stdout=log,
                stderr=log,
            )

    def keep_running(self) -> None:
        code = self.process.poll()
        if code is not None:
            self.ends.append(code)
            self.process = self._start()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def memory_mib(self) -> float:
        """Resident memory without what other processes share."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="utf-8")
        found = re.findall(r"Private_\w+: +(\d+) kB", text)
        return sum(map(int, found)) / 1024

    def limit_files(self, size: int) -> None:
        """Have every write to a file fail beyond *size* bytes, as on a full disk."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def end(self) -> int:
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Load:
    """
    One run.

    Args:
        folder: For logs, recordings and the servers' data.
        seconds: How long the clients come and go.
        say: Called with a line for each thing that happens.
    """

    def __init__(self, folder: Path, seconds: float, say: Callable[[str], object]) -> None:
        self._folder = folder
        self._seconds = seconds
        self._say = say
        self._report = Report()
        self._begun = time.monotonic()

    async def run(self, cluster: Cluster) -> Report:
        recordings = self._folder / "recordings"
        recordings.mkdir()
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DYN_")},
            **cluster.environ("nats"),
            "DYN_LOG": "error",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "HOME": str(self._folder),
            "LOAD_RECORDINGS": f"{recordings}/",
            # For a backtrace in its log the runtime keeps 50 MB of debug information.
            "RUST_BACKTRACE": "0",
            "TMPDIR": str(self._folder),
        }
        port = free_port()
        serve = ["serve", _ENGINE, "--pipeline", _PIPELINE, "--grace-s", "1"]
        with ExitStack() as stack:
            self._workers = [
                Process(name, self._folder, serve, environ) for name in ("one", "other")
            ]
            self._front = Process(
                "frontend", self._folder, ["frontend", "--http-port", str(port)], environ
            )
            for process in (*self._workers, self._front):
                stack.callback(process.kill)
            async with asyncio.timeout(START_S):
                await until_listed("127.0.0.1", port, MODEL)
            clients = Clients(port)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(clients.run(staying=24, leaving=40, slow=6, deaf=2))
                watch = tasks.create_task(self._watch())
                await self._play(cluster)
                clients.stop()
                watch.cancel()
            self._report.counts = {**clients.counts}
            self._report.faults += clients.faults
            self._end_workers()
            self._judge_memory()
        return self._report

    async def _play(self, cluster: Cluster) -> None:
        """Do everything once a round, and as many rounds as there is time for."""
        while True:
            await self._round(cluster)
            if time.monotonic() - self._begun + 60 > self._seconds:
                break
        await asyncio.sleep(max(0.0, self._begun + self._seconds - time.monotonic()))

    async def _round(self, cluster: Cluster) -> None:
        one, other = self._workers
        await asyncio.sleep(3)
        self._tell("kill -9 of a worker")
        other.signal(signal.SIGKILL)
        await asyncio.sleep(6)
        self._tell("full disk under log and recordings")
        for worker in self._workers:
            worker.limit_files(0)
        await asyncio.sleep(FULL_DISK_S)
        for worker in self._workers:
            worker.limit_files(resource.RLIM_INFINITY)
        for frozen in ([one], [one, self._front]):
            self._tell("SIGSTOP of " + " and ".join(process.name for process in frozen))
            for process in frozen:
                process.signal(signal.SIGSTOP)
            await asyncio.sleep(FREEZE_S)
            for process in frozen:
                process.signal(signal.SIGCONT)
            await asyncio.sleep(4)
        self._tell("restart of NATS")
        await asyncio.to_thread(cluster.restart, "nats")
        await asyncio.sleep(4)
        self._tell("restart of etcd")
        await asyncio.to_thread(cluster.restart, "etcd")
        await asyncio.sleep(4)

    async def _watch(self) -> None:
        """Start again what has ended, and note how much memory a worker has."""
        while True:
            for process in (*self._workers, self._front):
                process.keep_running()
            with suppress(OSError):
                since = time.monotonic() - self._begun
                self._report.memory_mib.append((since, self._workers[0].memory_mib()))
            await asyncio.sleep(0.5)

    def _end_workers(self) -> None:
        for worker in self._workers:
            code = worker.end()
            if code:
                self._report.faults.append(f"worker {worker.name} ended with {code}")
            log = worker.log.read_text(encoding="utf-8", errors="replace")
            left = re.findall(r"^left streams=0 tasks=0 idle_s=(\S+)$", log, re.MULTILINE)
            if not left or float(left[-1]) > IDLE_S:
                said = re.findall(r"^left .*$", log, re.MULTILINE)
                self._report.faults.append(f"worker {worker.name} at its end: {said[-1:]}")
            self._tell(f"{worker.name} ended with {code}, earlier ones with {worker.ends}")

    def _judge_memory(self) -> None:
        """Compare the worker that was never killed with itself, once all its caches are filled."""
        since = 0.4 * self._seconds
        memory = [mib for at, mib in self._report.memory_mib if at > since]
        half = len(memory) // 2
        before, after = (median(part) for part in (memory[:half], memory[half:]))
        if after > before + GROWTH_MIB:
            self._report.faults.append(f"memory grew from {before:.1f} to {after:.1f} MiB")

    def _tell(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._begun:6.1f} s  {what}")


def main() -> int:
    """Run for as long as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.rx_backend.cluster.load")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, help="keep logs and recordings here")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        cluster = Cluster(folder, stack)
        report = asyncio.run(Load(folder, options.seconds, say).run(cluster))
    for since, memory in report.memory_mib[:: max(1, len(report.memory_mib) // 20)]:
        say(f"{since:6.1f} s  {memory:.1f} MiB")
    for line in (str(report.counts), *report.faults[:20], f"faults: {len(report.faults)}"):
        say(line)
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
