"""
Processes that start at once: forks of a process that has imported what they need.

The tests start hundreds of processes, and to import all that the command needs takes each of them a
second of processor time. A fork runs a module's `main`, and ends as any process does.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

__all__ = ("ROOT", "Fork", "fork", "run")

ROOT = Path(__file__).parents[1]

_RUN_S = 30.0


class Fork:
    """A process, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self, reply: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self._reply = reply
        self.stdout, self.stderr = stdout, stderr
        self.pid = _number(reply)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        if self.returncode is None:
            self._reply.settimeout(timeout)
            try:
                self.returncode = _number(self._reply)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0) from None
            self._reply.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            # Its end may have been seen, and not told yet.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fork(
    imported: Sequence[str],
    arguments: Sequence[str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Fork:
    """
    Run a module's `main` in a fork of a process with the modules *imported*.

    Args:
        imported: The names of modules; the process is kept for all calls with the same names.
        arguments: The module's name, and what follows in ``sys.argv``.
        stdout: A file descriptor, which the caller closes; for None a pipe is there to be read.
        stderr: The same.
        cwd: The working directory.
        env: The environment, this process's for None.
    """
    ours, theirs = socket.socketpair()
    job = json.dumps([str(cwd), dict(os.environ if env is None else env), *arguments])
    pipes = [os.pipe() if file is None else None for file in (stdout, stderr)]
    written = [
        pipe[1] if pipe else file for pipe, file in zip(pipes, (stdout, stderr), strict=True)
    ]
    with theirs:
        files = [*filter(None, written), theirs.fileno()]
        socket.send_fds(_server(tuple(imported)), [b"."], files)
    ours.sendall(f"{job}\n".encode())
    for pipe in filter(None, pipes):
        os.close(pipe[1])
    out, err = (os.fdopen(pipe[0]) if pipe else None for pipe in pipes)
    return Fork(ours, out, err)


def run(
    imported: Sequence[str], arguments: Sequence[str], *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module's `main` as `fork` does, to its end."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = fork(imported, arguments, stdout=stdout.fileno(), stderr=stderr.fileno(), env=env)
        try:
            code = process.wait(_RUN_S)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess([*arguments], code, stdout.read(), stderr.read())


@cache
def _server(imported: tuple[str, ...]) -> socket.socket:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", str(number), *imported],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        pass_fds=[number],
        # What a developer has set for these must not decide while modules are imported.
        env={name: text for name, text in os.environ.items() if not name.startswith("OTEL_")},
    )
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


def _serve(jobs: socket.socket, imported: Sequence[str]) -> None:
    """Fork for each job, until nobody sends any more."""
    for name in imported:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What watches over a process is a fork too, for which nobody waits.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        more, files, *_ = socket.recv_fds(jobs, 1, 3)
        if not more:
            return
        if not os.fork():
            jobs.close()
            stdout, stderr, reply = files
            _watch(stdout, stderr, socket.socket(fileno=reply))
            return
        for file in files:
            os.close(file)


def _watch(stdout: int, stderr: int, reply: socket.socket) -> None:
    """Fork once more; tell the process's id, and its exit code when it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job = json.loads(reply.makefile("rb").readline())
    process = os.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    if process:
        _tell(reply, process)
        _, status = os.waitpid(process, 0)
        _tell(reply, os.waitstatus_to_exitcode(status))
        os._exit(0)
    reply.close()
    _run(*job)


def _tell(reply: socket.socket, number: int) -> None:
    reply.sendall(number.to_bytes(8, "big", signed=True))


def _number(reply: socket.socket) -> int:
    told = reply.recv(8)
    assert len(told) == 8, "what watches over the process is gone"
    return int.from_bytes(told, "big", signed=True)


def _run(cwd: str, environ: dict[str, str], module: str, *arguments: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None
    sys.path[:1] = [cwd, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
