"""What a worker sets in its process, what it writes on disk, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rx_backend.errors import CannotConnect
from rx_backend.worker import DynamoRuntime, Shutdown
from rx_backend.worker.dynamo_runtime import make_private_folder
from rx_backend.worker.model_files import has_model_files, shared_model_folder, write_model_files
from rx_backend.worker.nodelay import accept_without_delay
from rx_backend.worker.process import frozen_heap, max_switch_interval, run_on_fast_loop
from rx_backend.worker.shutdown import signals_to


def test_process_settings_are_restored() -> None:
    """The switch interval is shortened, never lengthened; frozen objects are collectable again."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    with max_switch_interval(0.0002), frozen_heap():
        assert sys.getswitchinterval() < 0.0003
        with max_switch_interval(0.001):
            assert sys.getswitchinterval() < 0.0003
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() != thresholds
    assert (sys.getswitchinterval(), gc.get_threshold()) == (interval, thresholds)
    assert gc.get_freeze_count() == 0


def test_uvloop_runs_where_it_is_installed() -> None:
    """Dynamo's own workers run on it, and the runtime brings it along."""
    seen: list[str] = []

    async def main() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)

    run_on_fast_loop(main())
    assert (seen == ["uvloop"]) == (find_spec("uvloop") is not None)


@pytest.mark.parametrize("run", [asyncio.run, run_on_fast_loop])
def test_a_worker_shares_signals_with_its_engine(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Its own stay its own, whatever the engine's start installs; others reach the event loop."""

    async def main() -> None:
        loop, shutdown = asyncio.get_running_loop(), Shutdown()
        early, late = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, early.set)
        with signals_to(shutdown) as take_back:
            signal.raise_signal(signal.SIGUSR1)
            await early.wait()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                loop.add_signal_handler(number, late.set)
            take_back()
            signal.raise_signal(signal.SIGTERM)
            await shutdown.requested
            assert not late.is_set()
            signal.raise_signal(signal.SIGINT)
            await shutdown.forced
            assert not late.is_set()
            signal.raise_signal(signal.SIGUSR2)
            await late.wait()
        late.clear()
        signal.raise_signal(signal.SIGUSR2)
        await late.wait()

    run(main())


def sends_at_once(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.skipif(sys.platform != "linux", reason="the runtime is for Linux only, and so is this")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_have_nodelay(host: str) -> None:
    """A connection that comes later has the option, an older one keeps what it has; none leaks."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as server,
        socket.socket(socket.AF_UNIX),
    ):
        port = server.getsockname()[1]
        with socket.create_connection((host, port)), server.accept()[0] as before:
            assert not sends_at_once(before)
            files = sorted(Path("/proc/self/fd").iterdir())
            accept_without_delay()
            assert sorted(Path("/proc/self/fd").iterdir()) == files
            with socket.create_connection((host, port)), server.accept()[0] as after:
                assert sends_at_once(after)
            assert not sends_at_once(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("home", [True, False])
def test_identical_workers_share_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, home: bool
) -> None:
    """The same model has the same folder, with whole files; without a home in the temporary one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache") if home else "/dev/null")
    folder = shared_model_folder(4096)
    assert folder.is_relative_to(tmp_path / ("cache" if home else "tmp"))
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    (folder / "tokenizer.json").write_text("half of i")
    assert shared_model_folder(4096) == folder
    (tmp_path / "alone").mkdir()
    assert not has_model_files(tmp_path / "alone")
    assert contents(folder) == contents(write_model_files(tmp_path / "alone", 4096))
    assert has_model_files(tmp_path / "alone")
    assert shared_model_folder(8192) != folder
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    (tmp_path / "tmp" / f"rx-backend-{os.getuid()}").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(PermissionError, match="belongs to another user"):
        shared_model_folder(4096)


@pytest.mark.needs("dynamo")
def test_the_discovery_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one is; the default one is made so; another's is refused, with what to set."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def connect() -> None:
        DynamoRuntime("file").shutdown()

    def mode_of(folder: Path) -> int:
        asyncio.run(connect())
        return stat.S_IMODE(folder.stat().st_mode)

    default, named = tmp_path / "dynamo_store_kv", tmp_path / "here" / "named"
    monkeypatch.delenv("DYN_FILE_KV", raising=False)
    default.mkdir(mode=0o755)
    assert mode_of(default) == 0o700
    monkeypatch.setenv("DYN_FILE_KV", str(named))
    assert mode_of(named) == 0o700
    named.chmod(0o750)
    assert mode_of(named) == 0o750
    monkeypatch.delenv("DYN_FILE_KV")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(CannotConnect, match="dynamo_store_kv: Operation not permitted; set DYN"):
        mode_of(default)


def test_a_default_folder_of_another_user_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the mode could be changed, as by root; it is left as it is."""
    monkeypatch.delenv("DYN_FILE_KV", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "dynamo_store_kv"
    folder.mkdir(mode=0o755)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(CannotConnect, match="belongs to another user; set DYN_FILE_KV"):
        make_private_folder()
    assert folder.stat().st_mode & 0o777 == 0o755
