"""The command ``rx-backend frontend``: the OpenAI API, without a worker."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException

from rx_backend.addresses import host_and_port
from rx_backend.telemetry import configure_logs
from rx_backend.telemetry.switch import OtlpSwitch
from rx_backend.worker.dynamo_runtime import DynamoRuntime
from rx_backend.worker.options import FrontendOptions
from rx_backend.worker.ports import HTTP_SETTING, check_free
from rx_backend.worker.process import run_on_fast_loop
from rx_backend.worker.shutdown import Shutdown, signals_to

__all__ = ("log_warnings_only", "prepare_frontend", "until_listed")

_POLL_S, _TRY_S = 0.05, 5.0

# A made-up model without images is not worth a warning.
_LOGGED = "warn,mm_routing=error"


def log_warnings_only() -> None:
    """Limit the runtime's log to warnings, unless ``DYN_LOG`` is set; it is read once, at first use."""
    os.environ.setdefault("DYN_LOG", _LOGGED)


def prepare_frontend(options: FrontendOptions) -> Callable[[Callable[[str], object]], None]:
    """
    Return a function that serves the OpenAI API for all workers in discovery, until a signal.

    It takes a function that is called with each line of output, and raises a ``BackendError`` when
    the runtime or the port is not available.

    Raises:
        InvalidArgument: A variable for logs or telemetry is invalid.
    """
    configure_logs(whole_process=True)
    switch = OtlpSwitch(options.otlp, os.environ)

    def run(say: Callable[[str], object]) -> None:
        log_warnings_only()
        run_on_fast_loop(_run(options, switch, say))

    return run


async def _run(options: FrontendOptions, switch: OtlpSwitch, say: Callable[[str], object]) -> None:
    with switch.exported_to_runtime_env(os.environ):
        runtime = await DynamoRuntime.connect(
            options.discovery, options.request_plane, takes_requests=False
        )
    shutdown = Shutdown()
    shutdown.started = True
    host, port = options.http_host, options.http_port
    with signals_to(shutdown), ExitStack() as stack:
        stack.callback(runtime.shutdown)
        await check_free(host, port, HTTP_SETTING)
        serving = asyncio.create_task(
            runtime.serve_http(host, port, migration_limit=options.migration_limit)
        )
        announcing = asyncio.create_task(_announce(options, say))
        stack.callback(announcing.cancel)
        stack.callback(shutdown.requested.listen(runtime.shutdown))
        stack.callback(shutdown.forced.listen(serving.cancel))
        await asyncio.wait({serving})
        error = None if serving.cancelled() else serving.exception()
        # A shutdown cancels the frontend's waits, which it reports as errors.
        if error is not None and not shutdown.requested.is_set:
            raise error


async def _announce(options: FrontendOptions, say: Callable[[str], object]) -> None:
    host, port = options.http_host, options.http_port
    await until_listed(host, port)
    say(f"frontend on http://{host_and_port(host, port)}/v1, {options.discovery} discovery")


async def until_listed(host: str, port: int, model: str | None = None) -> None:
    """
    Wait until the frontend responds, and lists *model*.

    Args:
        host: The frontend's address.
        port: Its port.
        model: The model's name for clients; None for any response.
    """
    while True:
        listed = await asyncio.to_thread(_models, host, port)
        if listed is not None and (model is None or model in listed):
            return
        await asyncio.sleep(_POLL_S)


def _models(host: str, port: int) -> list[str] | None:
    """Return the models that the frontend lists; None while it does not respond."""
    connection = HTTPConnection(host, port, timeout=_TRY_S)
    try:
        connection.request("GET", "/v1/models")
        return [entry["id"] for entry in json.load(connection.getresponse())["data"]]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
