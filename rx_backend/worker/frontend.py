"""The frontend: serving the OpenAI API without a worker, and knowing when it answers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import ExitStack

from rx_backend.telemetry import configure_logs
from rx_backend.telemetry.switch import OtlpSwitch
from rx_backend.worker.dynamo_runtime import DynamoRuntime
from rx_backend.worker.options import FrontendOptions
from rx_backend.worker.shutdown import Shutdown, signals_to

__all__ = ("log_warnings_only", "run_frontend", "until_listed")

_POLL_S = 0.05

# Nobody needs to hear that a made-up model can't do images, nor once for each batch that the
# receiver of telemetry is down.
_LOGGED = "warn,mm_routing=error,opentelemetry_sdk=off"


def log_warnings_only() -> None:
    """Have the runtime tell less, unless ``DYN_LOG`` says what; it is read at its first use."""
    os.environ.setdefault("DYN_LOG", _LOGGED)


def run_frontend(options: FrontendOptions, say: Callable[[str], object]) -> None:
    """
    Serve the OpenAI API for all workers in discovery, until a signal ends it.

    Args:
        options: Where, and for which workers.
        say: Is told, a line at a time, what a user should know.

    Raises:
        BackendError: The runtime or the port can't be had, or a variable for the log does not fit.
    """
    configure_logs(whole_process=True)
    log_warnings_only()
    asyncio.run(_run(options, OtlpSwitch(options.otlp, os.environ), say))


async def _run(options: FrontendOptions, switch: OtlpSwitch, say: Callable[[str], object]) -> None:
    with switch.lent_to_runtime(os.environ):
        runtime = await DynamoRuntime.connect(options.discovery, options.request_plane)
    shutdown = Shutdown()
    with signals_to(shutdown), ExitStack() as stack:
        stack.callback(runtime.shutdown)
        serving = asyncio.create_task(
            runtime.serve_http(
                options.http_host, options.http_port, migration_limit=options.migration_limit
            )
        )
        telling = asyncio.create_task(_tell(options, say))
        stack.callback(telling.cancel)
        stack.callback(shutdown.asked.listen(runtime.shutdown))
        stack.callback(shutdown.forced.listen(lambda: _cancel(serving)))
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _tell(options: FrontendOptions, say: Callable[[str], object]) -> None:
    while await _models(options.http_host, options.http_port) is None:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL_S)
    say(
        f"frontend on http://{options.http_host}:{options.http_port}/v1, "
        f"{options.discovery} discovery"
    )


async def until_listed(host: str, port: int, model: str) -> None:
    """
    Wait until the frontend lists *model*.

    Args:
        host: Where the frontend listens.
        port: Its port.
        model: The model's name as clients give it.
    """
    while model not in (await _models(host, port) or ()):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL_S)


async def _models(host: str, port: int) -> list[str] | None:
    """Ask for the list; None as long as nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return None
    try:
        writer.write(f"GET /v1/models HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = await reader.read()
        return [entry["id"] for entry in json.loads(answer.partition(b"\r\n\r\n")[2])["data"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        writer.close()
