"""Workers and frontends as processes: what they register, listen on, survive, and leave behind."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import socket
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from rx_backend import DisaggregationMode, EngineConfig
from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.worker.dynamo_runtime import DynamoEndpoint, DynamoRuntime
from rx_backend.worker.frontend import until_listed
from rx_backend.worker.ports import check_runtime_ports
from rx_backend.worker.serve import curl_command
from tests.engines import real_time
from tests.rx_backend.worker._processes import (
    ROOT,
    START_S,
    STEP_S,
    Served,
    ask,
    counted,
    free_port,
    frontend,
    serve,
    warm_up,
    words,
)
from tests.rx_backend.worker.engines import (
    FAIL_FIRST,
    FAIL_LATER,
    MADE_BEFORE_THE_WAIT,
    MODEL,
    WAIT_INSIDE,
)

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

PEER = "tests.rx_backend.worker.engines:PeerEngine"
NO_GRACE = ("--grace-s", "0")


def entry(folder: Path, bucket: str) -> dict[str, Any]:
    """Read the only entry of a bucket of file discovery."""
    (file,) = (folder / "discovery" / "v1" / bucket).iterdir()
    return json.loads(file.read_text())


def test_the_curl_line_survives_a_shell() -> None:
    """Quotes in a model's name, and an address of IPv6, reach the server as they are."""
    words = shlex.split(curl_command("::1", 80, 'it\'s "m"'))
    assert words[:4] == ["curl", "-N", "-g", "http://[::1]:80/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == 'it\'s "m"'


def test_the_role_and_the_sizes_are_registered(tmp_path: Path) -> None:
    """
    The card has the engine's sizes, its data, and what the role needs; it goes with the worker.

    A folder that happens to have the model's name is no obstacle: it has no model's files in it.
    """
    (tmp_path / MODEL).mkdir()
    roles: list[tuple[str, str, str, list[list[str]]]] = [
        ("agg", "backend", "aggregated", []),
        ("prefill", "prefill", "prefill", [["decode"]]),
        ("decode", "backend", "decode", [["prefill"]]),
    ]
    engine: str = "tests.rx_backend.worker.engines:CountingEngine"
    with ExitStack() as stack:
        workers = {
            mode: stack.enter_context(
                serve(
                    tmp_path / mode,
                    engine,
                    *("--mode", mode, "--namespace", "here", *NO_GRACE),
                    cwd=tmp_path,
                    PYTHONPATH=str(ROOT),
                )
            )
            for mode, *_ in roles
        }
        for mode, component, worker_type, needs in roles:
            workers[mode].line("serving", START_S)
            found = entry(tmp_path / mode, "instances")
            assert (found["namespace"], found["component"]) == ("here", component)
            card = entry(tmp_path / mode, "mdc")["card_json"]
            assert card["display_name"] == MODEL
            assert (card["worker_type"], card.get("needs", [])) == (worker_type, needs)
            assert (card["kv_cache_block_size"], card["context_length"]) == (32, 2048)
            runtime = card["runtime_config"]
            assert runtime["total_kv_blocks"] == 640
            assert runtime["runtime_data"] == {"any": [1, {"json": None}], "text": "x", "yes": True}
        for worker in workers.values():
            worker.signal()
        for mode, worker in workers.items():
            assert worker.ended() == 0
            for bucket in ("instances", "mdc"):
                assert list((tmp_path / mode / "discovery" / "v1" / bucket).iterdir()) == []


@pytest.mark.parametrize(
    "value", ["\ud800", 10**400, float("nan"), {1}], ids=["surrogate", "large", "nan", "set"]
)
@real_time
async def test_runtime_data_that_can_not_be_registered_is_named(value: object) -> None:
    """Not every text and number of Python's JSON is one for the runtime."""
    endpoint = DynamoEndpoint(cast("DynamoRuntime", SimpleNamespace(discovery="file")), None)
    config = EngineConfig(model=MODEL, runtime_data={"any": value})
    with pytest.raises(InvalidArgument, match=r"runtime_data\['any'\]: expected JSON, "):
        await endpoint.register(config, DisaggregationMode.AGGREGATED, "folder")


def status(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=STEP_S) as answer:
            return answer.status, json.load(answer)["status"]
    except HTTPError as error:
        with error:
            return error.code, json.load(error)["status"]


READY, NOT_READY = (200, "ready"), (503, "notready")


CHECKED = {"DYN_HEALTH_CHECK_ENABLED": "true", "DYN_CANARY_WAIT_TIME": "1"}


@pytest.mark.rows("H2")
def test_the_probe_decides_the_health(tmp_path: Path) -> None:
    """
    A probe that fails makes the worker unhealthy, also when its first token came.

    Without a health check a registered worker is alive, also with no request for one.
    """
    kinds: list[tuple[str, str | None, tuple[int, str]]] = [
        ("CountingEngine", "c", READY),
        ("CountingEngine", FAIL_FIRST, NOT_READY),
        ("CountingEngine", FAIL_LATER, NOT_READY),
        ("CountingEngine", None, READY),
        ("ProbelessEngine", None, READY),
    ]
    ports = [free_port() for _ in kinds]
    with ExitStack() as stack:
        workers: list[Served] = []
        for port, (engine, probe, _) in zip(ports, kinds, strict=True):
            checked: dict[str, Any] = {**CHECKED, "PROBE": probe} if probe else {}
            folder = tmp_path / str(port)
            worker = serve(folder, engine, DYN_SYSTEM_PORT=str(port), **checked)
            workers.append(stack.enter_context(worker))
        for worker, port, (_, probe, expected) in zip(workers, ports, kinds, strict=True):
            worker.line("serving", START_S)
            # By the time of the second probe the first has been judged.
            for _ in range(2 if probe else 0):
                worker.line(f"probed {probe}")
            assert status(port, "/health") == status(port, "/live") == expected


def test_a_worker_dropped_by_discovery_registers_again(tmp_path: Path) -> None:
    """As after a long freeze: within seconds, with its model, and its requests go on."""
    with (
        serve(tmp_path, PEER, *NO_GRACE, RELEASE=str(tmp_path)) as worker,
        frontend(tmp_path) as front,
        front.client() as client,
    ):
        worker.line("serving", START_S)
        warm_up(client, front.port, worker)
        answer = words(ask(client, WAIT_INSIDE, 8))
        # A frontend that has nothing of an answer yet gives up on a worker that it no longer sees.
        begun = list(islice(answer, MADE_BEFORE_THE_WAIT))
        for bucket in ("instances", "mdc"):
            next((tmp_path / "discovery" / "v1" / bucket).iterdir()).unlink()
        worker.line("not listed in discovery, registering again")
        worker.line("listed in discovery again")
        (tmp_path / WAIT_INSIDE).touch()
        assert [*begun, *answer] == counted(8)
        warm_up(client, front.port)
        assert list(words(ask(client.with_options(max_retries=9), "c", 3))) == counted(3)


def test_unwritable_output_does_not_stop_the_worker(tmp_path: Path) -> None:
    """A full disk under the log, or a pipe that was closed, ends no worker."""
    with (
        Path("/dev/full").open("w") as full,
        serve(
            tmp_path, "examples.echo_engine:EchoEngine", *NO_GRACE, stdout=full, stderr=full
        ) as served,
        frontend(tmp_path) as front,
    ):
        asyncio.run(asyncio.wait_for(until_listed("127.0.0.1", front.port, "echo"), START_S))
        served.signal()
        assert served.ended() == 0


def test_a_kill_leaves_nothing_behind(tmp_path: Path) -> None:
    """However often a worker without a home is killed, there is one folder for its model."""
    for _ in range(2):
        with serve(tmp_path, "CountingEngine", HOME="/dev/null") as served:
            served.line("serving", START_S)
            served.signal(signal.SIGKILL)
            served.ended()
    left = {path.name.split("-")[0] for path in tmp_path.iterdir()} - {"discovery"}
    assert left == {"rx"}
    (shared,) = tmp_path.glob("rx-backend-*")
    assert len(list(shared.iterdir())) == 1


def test_a_frontend_ends_after_its_streams(tmp_path: Path) -> None:
    """A signal cuts no answer off; the exit code is 0, and the worker stays."""
    with (
        serve(tmp_path, PEER, RELEASE=str(tmp_path)) as worker,
        frontend(tmp_path) as front,
        front.client() as client,
    ):
        worker.line("serving", START_S)
        warm_up(client, front.port, worker)
        answer = words(ask(client, WAIT_INSIDE, 8))
        begun = list(islice(answer, MADE_BEFORE_THE_WAIT))
        front.signal()
        assert front.process.poll() is None
        (tmp_path / WAIT_INSIDE).touch()
        assert [*begun, *answer] == counted(8)
        assert front.ended() == 0
        assert worker.process.poll() is None


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    """For a frontend alone, and for a worker with one, whose engine is not even started."""
    with frontend(tmp_path) as first:
        port: dict[str, Any] = {"DYN_HTTP_PORT": str(first.port)}
        told = f"--http-host and --http-port: can't listen on 127.0.0.1:{first.port}: Address already in use"
        with pytest.raises(AssertionError, match=told), frontend(tmp_path, **port):
            pass
        with serve(tmp_path, "CountingEngine", "--frontend", *NO_GRACE, **port) as second:
            assert told in second.line("rx-backend: error", START_S)
            assert second.ended() == 1
            assert second.count("cleanup") == second.count("start True") == 0


def test_a_runtime_port_in_use_is_named(tmp_path: Path) -> None:
    """The command ends with exit code 1 and the variable; a frontend uses no port for requests."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ: dict[str, Any] = {"DYN_TCP_RPC_PORT": str(port)}
        told = (
            f"CannotConnect: DYN_TCP_RPC_HOST and _PORT: can't listen on 127.0.0.1:{port}: Address"
        )
        with serve(tmp_path, "CountingEngine", *NO_GRACE, **environ) as worker:
            assert told in worker.line("rx-backend: error", START_S)
            assert worker.ended() == 1
        with frontend(tmp_path, **environ):
            pass


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (
            {"DYN_TCP_RPC_PORT": "80a"},
            "DYN_TCP_RPC_PORT: expected a port from 0 to 65535, got '80a'",
        ),
        ({"DYN_TCP_RPC_PORT": "65536"}, "expected a port from 0 to 65535, got '65536'"),
        (
            {"DYN_TCP_RPC_HOST": "192.0.2.1"},
            "_RPC_HOST and _PORT: can't listen on 192.0.2.1:0: Cannot assign",
        ),
        ({"DYN_TCP_RPC_HOST": "a..b"}, "DYN_TCP_RPC_HOST and _PORT: can't listen on a..b:0: "),
        (
            {"DYN_TCP_RPC_PORT": "TAKEN"},
            "DYN_TCP_RPC_HOST and _PORT: can't listen on .*: Address already",
        ),
        (
            {"DYN_TCP_RESPONSE_STREAM_PORT": "TAKEN"},
            "DYN_TCP_RESPONSE_STREAM_HOST and _PORT: can't listen",
        ),
        ({"DYN_SYSTEM_PORT": "TAKEN"}, "DYN_SYSTEM_HOST and _PORT: can't listen"),
    ],
)
def test_an_invalid_address_is_named(environ: dict[str, str], told: str) -> None:
    """A port that is taken or that the runtime would not heed, or an address of another machine."""
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = str(taken.getsockname()[1])
        environ = {name: text.replace("TAKEN", port) for name, text in environ.items()}
        with pytest.raises((CannotConnect, InvalidArgument), match=told):
            asyncio.run(check_runtime_ports(environ, takes_requests=True))
        if "DYN_TCP_RPC" in str(environ):
            asyncio.run(check_runtime_ports(environ, takes_requests=False))
