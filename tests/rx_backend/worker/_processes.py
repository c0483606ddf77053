"""Workers and frontends as processes of their own, which are ended on every way out; their clients."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from openai import APIStatusError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from rx_backend.worker.frontend import until_listed
from tests.forks import ROOT, Fork, fork
from tests.rx_backend.worker.engines import FIRST, PEER_MODEL

START_S, STEP_S = 20.0, 15.0

_OVER = ""
_IMPORTED = ("rx_backend.cli", "rx_backend.worker.serve", "tests.rx_backend.worker.engines")
_NOT_OURS = ("DYN_", "ETCD_", "NATS_", "OTEL_", "XDG_")

T = TypeVar("T")


class Served:
    """A running `rx-backend`, its lines as they come, and a client of its frontend."""

    def __init__(self, process: subprocess.Popen[str] | Fork, port: int) -> None:
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

    def ended(self, within_s: float = STEP_S) -> int:
        """Wait for the end; give the exit code."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError("still running:\n" + "".join(self.seen)) from None
        for reader in self._readers:
            reader.join(STEP_S)
        return code

    def count(self, line: str) -> int:
        """How many lines so far are *line*; all of them once the process has ended."""
        return sum(seen.strip() == line for seen in self.seen)

    def told(self, what: str) -> list[dict[str, Any]]:
        """What the process has told so far in lines of *what* and JSON."""
        found = (line.partition(" ") for line in list(self.seen))
        return [json.loads(text) for start, _, text in found if start == what]

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
                with _news:
                    self.seen.append(line)
                    _news.notify_all()
                self._lines.put(line)
        self._lines.put(_OVER)


_news = threading.Condition()


def until(condition: Callable[[], T], *processes: Served) -> T:
    """Wait until what the processes have said makes *condition* true, and give what it gives."""
    with _news:
        found = _news.wait_for(condition, STEP_S)
    assert found, "\n".join("".join(process.seen) for process in processes)
    return found


def _by_files(folder: Path) -> dict[str, str]:
    return {"DYN_FILE_KV": str(folder / "discovery")}


meet: Callable[[Path], dict[str, str]] = _by_files
"""The variables by which the processes of a folder find each other; tests on a cluster set it."""


@contextmanager
def serve(
    folder: Path, engine: str, *flags: str, cwd: Path = ROOT, **environ: Any
) -> Generator[Served]:
    """
    Run `rx-backend serve`, with discovery in *folder*.

    The engine is one of these tests, or one in the working directory where it is `module:Engine`.
    A file for `stdout` or `stderr` takes the place of a pipe that is read.
    """
    target = engine if ":" in engine else f"tests.rx_backend.worker.engines:{engine}"
    with _running(folder, ["serve", target, *flags], cwd, environ) as served:
        yield served


@contextmanager
def dynamo(folder: Path, *arguments: str, **environ: Any) -> Generator[Served]:
    """Run `rx-backend dynamo`, with discovery in *folder*."""
    environ.setdefault("DYN_DISCOVERY_BACKEND", "file")
    with _running(folder, ["dynamo", *arguments], ROOT, environ) as served:
        yield served


@contextmanager
def frontend(folder: Path, *flags: str, **environ: Any) -> Generator[Served]:
    """Run `rx-backend frontend` for the workers in *folder*; it listens."""
    with _running(folder, ["frontend", *flags], ROOT, environ) as served:
        served.line("frontend on http", START_S)
        yield served


@contextmanager
def _running(
    folder: Path, arguments: Sequence[str], cwd: Path, environ: dict[str, Any]
) -> Generator[Served]:
    folder.mkdir(exist_ok=True)
    port = int(environ.setdefault("DYN_HTTP_PORT", str(free_port())))
    stdout, stderr = environ.pop("stdout", None), environ.pop("stderr", None)
    process = fork(
        _IMPORTED,
        ["rx_backend_cli", *arguments],
        cwd=cwd,
        stdout=stdout and stdout.fileno(),
        stderr=stderr and stderr.fileno(),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)},
            **meet(folder),
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "HOME": str(folder),
            "NO_COLOR": "1",
            "TMPDIR": str(folder),
            **environ,
        },
    )
    served = Served(process, port)
    try:
        yield served
    finally:
        process.kill()
        served.ended()


_CLAIMS: deque[int] = deque()


def free_port(low: int = 20_000, high: int = 32_768) -> int:
    """
    Return a port that nobody uses, below those that the system assigns (and within an i16).

    Its server binds it seconds later, so the UDP port of the same number is held meanwhile: other
    test processes, and later calls, then choose another.
    """
    for port in random.sample(range(low, high), 100):
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with suppress(OSError), socket.socket() as probe:
            claim.bind(("127.0.0.1", port))
            probe.bind(("127.0.0.1", port))
            _CLAIMS.append(claim.detach())
            if len(_CLAIMS) > 50:
                os.close(_CLAIMS.popleft())
            return port
        claim.close()
    raise AssertionError("no free port")


TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def ask(client: OpenAI, letter: str, tokens: int) -> Stream[ChatCompletionChunk]:
    """Start to stream an answer."""
    return client.chat.completions.create(
        model=PEER_MODEL,
        messages=[{"role": "user", "content": letter}],
        max_tokens=tokens,
        stream=True,
        extra_headers={"traceparent": TRACEPARENT},
    )


def words(chunks: Iterator[ChatCompletionChunk]) -> Iterator[str]:
    """Give what an answer says, number by number, and its finish reason at the end."""
    for chunk in chunks:
        for choice in chunk.choices:
            yield from (choice.delta.content or "").split()
            if choice.finish_reason is not None:
                yield choice.finish_reason


def counted(tokens: int) -> list[str]:
    """What a whole answer says."""
    return [*map(str, range(FIRST, FIRST + tokens)), "length"]


def warm_up(client: OpenAI, port: int, *workers: Served, stages: int = 1) -> None:
    """Ask until each of the workers was asked something, and has told all that it had to."""
    asyncio.run(until_listed("127.0.0.1", port, PEER_MODEL))
    ends, answers = time.monotonic() + START_S, 0
    while not all(worker.told("request") for worker in workers):
        assert time.monotonic() < ends, "\n".join("".join(worker.seen) for worker in workers)
        # A frontend lists a model a moment before it knows where the workers are.
        with suppress(APIStatusError):
            assert list(words(ask(client, "c", 2))) == counted(2)
            answers += 1
    until_reported(answers * stages, *workers)


def until_reported(spans: int, *workers: Served) -> None:
    """
    Wait until the workers have told so many spans in all.

    A client has its answer before its request's span ends, and before the line of either is read.
    """
    until(lambda: sum(len(worker.told("span")) for worker in workers) >= spans, *workers)
