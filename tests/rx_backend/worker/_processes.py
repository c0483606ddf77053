"""Workers as processes of their own, which are ended on every way out."""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from openai import OpenAI

START_S, STEP_S = 20.0, 15.0

ROOT = Path(__file__).parents[3]

_OVER = ""


class Served:
    """A running `rx-backend serve`, its lines as they come, and a client of its frontend."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        pipes = filter(None, (process.stdout, process.stderr))
        self._readers = [threading.Thread(target=self._read, args=[pipe]) for pipe in pipes]
        self._open = len(self._readers)
        for reader in self._readers:
            reader.start()

    def line(self, part: str, within_s: float = STEP_S) -> str:
        """Wait for a line with *part* in it."""
        ends = time.monotonic() + within_s
        while self._open:
            try:
                line = self._lines.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                break
            if part in line:
                return line
            self._open -= line == _OVER
        raise AssertionError(f"no line with {part!r} in:\n" + "".join(self.seen))

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end; give the exit code."""
        code = self.process.wait(STEP_S)
        for reader in self._readers:
            reader.join(STEP_S)
        return code

    def count(self, line: str) -> int:
        """How many lines so far are *line*; all of them once the process has ended."""
        return sum(seen.strip() == line for seen in self.seen)

    @contextmanager
    def client(self) -> Generator[OpenAI]:
        with OpenAI(
            api_key="none",
            base_url=f"http://127.0.0.1:{self.port}/v1",
            max_retries=0,
            timeout=STEP_S,
        ) as client:
            yield client

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self.seen.append(line)
                self._lines.put(line)
        self._lines.put(_OVER)


@contextmanager
def serve(
    folder: Path, engine: str, *flags: str, cwd: Path = ROOT, **environ: str
) -> Generator[Served]:
    """
    Run `rx-backend serve`, with discovery in *folder*.

    The engine is one of these tests, or one in the working directory where it is `module:Engine`.
    """
    port = free_port()
    command = [sys.executable, "-m", "rx_backend.cli", "serve"]
    target = engine if ":" in engine else f"tests.rx_backend.worker.engines:{engine}"
    command += [target, "--http-port", str(port), *flags]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("DYN_")},
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "HOME": str(folder),
            "NO_COLOR": "1",
            **environ,
        },
    )
    served = Served(process, port)
    try:
        yield served
    finally:
        process.kill()
        served.ended()


def free_port(low: int = 20_000, high: int = 32_768) -> int:
    """A port that nobody uses, below those that the system gives out (and within an i16)."""
    for port in random.sample(range(low, high), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
