"""What a worker does where etcd or NATS does not answer."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from rx_backend.errors import CannotConnect
from rx_backend.worker.services import Service, services, until_reachable
from tests.rx_backend.worker._processes import START_S, free_port, frontend, serve


def absent(variable: str, scheme: str) -> tuple[dict[str, Any], str]:
    """The variables of a service that is not there, and what is told of it."""
    place = f"127.0.0.1:{free_port()}"
    limit = f"{variable.partition('_')[0]}_STARTUP_CONNECT_TIMEOUT_SECONDS"
    environ = {variable: f"{scheme}://me:secret@{place}", limit: "1"}
    return environ, f"{scheme}://{place} ({variable}): no connection within 1 s"


@pytest.mark.needs("dynamo")
@pytest.mark.timeout(90)
def test_a_missing_service_is_named(tmp_path: Path) -> None:
    """The error has its kind, the address without its password and the variable; exit code 1."""
    environ, message = absent("ETCD_ENDPOINTS", "http")
    with serve(tmp_path, "CountingEngine", "--discovery", "etcd", **environ) as served:
        line = served.line("rx-backend: error:", START_S)
        assert "BackendCannotConnect" in line
        assert message in line
        assert served.ended() == 1
        assert not any("secret" in seen or "cleanup" in seen for seen in served.seen)
    environ, message = absent("NATS_SERVER", "nats")
    with (
        pytest.raises(AssertionError, match=re.escape(message)),
        frontend(tmp_path, "--request-plane", "nats", **environ),
    ):
        pass


@pytest.mark.needs("dynamo")
@pytest.mark.timeout(90)
def test_an_interrupt_ends_the_wait(tmp_path: Path) -> None:
    """At once and in silence, where the runtime itself would block for two minutes."""
    with serve(
        tmp_path, "CountingEngine", "--discovery", "etcd", ETCD_ENDPOINTS="127.0.0.1:1"
    ) as served:
        served.line("etcd at 127.0.0.1:1 (ETCD_ENDPOINTS)", START_S)
        served.signal(signal.SIGINT)
        assert served.ended() == 130
        assert not any("Traceback" in line for line in served.seen)


def test_one_address_that_answers_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    """It may come up later, which is logged, and the others need not be there."""

    async def main() -> None:
        with socket.socket() as late:
            late.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:1,http://localhost:{late.getsockname()[1]}"
            waiting = asyncio.create_task(until_reachable(Service("etcd", "ETCD", address)))
            assert not (await asyncio.wait({waiting}, timeout=0.1))[0]
            async with await asyncio.start_server(lambda _, writer: writer.close(), sock=late):
                await waiting
                await until_reachable(Service("etcd", "ETCD", address))

    asyncio.run(main())
    assert len(caplog.records) == 1


def test_a_silent_service_times_out() -> None:
    """An address where nobody takes connections is given up in time, as is one that is no name."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"nats://.default.svc,nats://127.0.0.1:{bound.getsockname()[1]}"
        silent = Service("NATS", "NATS_SERVER", address, patience_s=0.1)
        with pytest.raises(CannotConnect, match=r"NATS at .* \(NATS_SERVER\): no .* within 0.1 s"):
            asyncio.run(until_reachable(silent))


@pytest.mark.parametrize(
    ("discovery", "plane", "environ", "names"),
    [
        ("file", "tcp", {}, []),
        ("file", "tcp", {"ETCD_ENDPOINTS": "http://a"}, []),
        ("etcd", "tcp", {}, ["etcd"]),
        ("etcd", "nats", {}, ["etcd", "NATS"]),
        ("file", "tcp", {"DYN_EVENT_PLANE": " NATS "}, ["NATS"]),
        ("file", "tcp", {"DYN_EVENT_PLANE": "zmq"}, []),
        ("mem", "tcp", {"DYN_EVENT_PLANE": "zmq", "NATS_SERVER": "nats://a"}, ["NATS"]),
    ],
)
def test_only_the_runtimes_services_are_awaited(
    discovery: str, plane: str, environ: dict[str, str], names: list[str]
) -> None:
    """The events may need NATS too, and the runtime connects wherever there is a NATS_SERVER."""
    assert [service.name for service in services(discovery, plane, environ)] == names


@pytest.mark.parametrize(
    ("addresses", "places"),
    [
        ("http://a:1, https://me:secret@b", [("a", 1), ("b", 7)]),
        ("a:1,b", [("a", 1), ("b", 7)]),
        ("tls://[::1]:2", [("::1", 2)]),
        ("unix:///run/etcd", []),
        ("http://a:port,,", []),
    ],
)
def test_addresses_are_read_as_users_write_them(
    addresses: str, places: list[tuple[str, int]]
) -> None:
    """Without a scheme or a port too; what names no host is left to the runtime."""
    assert Service("any", "ANY", addresses, port=7).places == places


@pytest.mark.parametrize(("text", "patience_s"), [("5", 5.0), ("0", 30.0), ("soon", 30.0)])
def test_the_timeout_is_that_of_the_runtime(text: str, patience_s: float) -> None:
    """Its variables count, and what they can't mean does not."""
    environ = {"ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS": text}
    assert [one.patience_s for one in services("etcd", "tcp", environ)] == [patience_s]
