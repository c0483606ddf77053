"""The command ``rx-backend serve``: a worker, optionally with a frontend."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from rx_backend.addresses import host_and_port
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig
from rx_backend.errors import BackendError, Disconnected, InvalidArgument
from rx_backend.telemetry import configure_logs
from rx_backend.telemetry.switch import OtlpSwitch, report_telemetry
from rx_backend.testing.engine_loading import load_pipeline
from rx_backend.testing.engine_making import engine_maker
from rx_backend.worker.dynamo_runtime import DynamoRuntime
from rx_backend.worker.frontend import log_warnings_only, until_listed
from rx_backend.worker.model_files import find_tokenizer, tokenizer_folder
from rx_backend.worker.options import ServeOptions
from rx_backend.worker.ports import HTTP_SETTING, check_free
from rx_backend.worker.process import run_on_fast_loop
from rx_backend.worker.shutdown import Shutdown, ShutdownTimes, exit_within
from rx_backend.worker.worker import Worker

__all__ = ("curl_command", "health_check_request", "prepare_worker")

Say = Callable[[str], object]


def prepare_worker(options: ServeOptions) -> Callable[[Say], None]:
    """
    Load the engine and the pipeline; return a function that serves them until a signal.

    The returned function takes a function that is called with each line of output, and raises a
    ``BackendError`` when the engine's start fails, or the runtime is unavailable or lost. An engine
    with an argument ``mode`` or ``model_path`` gets the worker's. The named function may be
    asynchronous, and the engine may be a Dynamo engine, see `from_any_engine`.

    Raises:
        InvalidArgument: Options contradict each other, the engine or the pipeline can't be loaded,
            the tokenizer is not found, the health check's variable is invalid, or telemetry can't
            be set up.
    """
    options.check()
    namespace, component, endpoint = options.address
    mode = DisaggregationMode.parse(options.mode)
    shutdown = Shutdown()
    maker = engine_maker(
        options.engine,
        options.engine_arg,
        options.own_args,
        mode=options.mode,
        model_path=options.model_path,
    )
    model = maker.arguments.get("model_path")
    if options.tokenizer and model is None and "--model-path" in options.given:
        raise InvalidArgument(
            "--model-path: no effect, --tokenizer is given and the engine takes none"
        )
    worker = Worker(
        maker.make(),
        mode=mode,
        pipeline=load_pipeline(options.pipeline),
        namespace=namespace,
        component=component,
        endpoint=endpoint,
        model_path=_tokenizer(options, model),
        served_model_name=options.served_model_name,
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        placeholder_tokenizer=model is None,
        coalesce=options.coalesce,
        times=ShutdownTimes(grace_s=options.grace_s, drain_s=options.drain_s),
        probe=health_check_request(os.environ),
        shutdown=shutdown,
    )
    # After loading the engine, which may set up logging; before the runtime reads `DYN_LOG`.
    configure_logs(whole_process=True)
    switch = OtlpSwitch(options.otlp, os.environ)
    telemetry = switch.configure("" if mode is DisaggregationMode.AGGREGATED else mode.value)

    def run(say: Say) -> None:
        log_warnings_only()
        # How long the runtime waits for requests if it ends by itself, for example when etcd is
        # lost.
        os.environ.setdefault(_OWN_DRAIN_S, str(max(1, math.ceil(options.drain_s))))
        shutdown.forced.listen(_exit_soon)
        with report_telemetry(telemetry, say):
            run_on_fast_loop(_serve(options, worker, shutdown, switch, say))

    return run


def _tokenizer(options: ServeOptions, model: object) -> str | None:
    """Return the folder with the tokenizer; None if only the started engine may know it."""
    if options.tokenizer is not None:
        return tokenizer_folder(options.tokenizer, "tokenizer")
    return find_tokenizer(model) if isinstance(model, str) else options.model_path


async def _serve(
    options: ServeOptions, worker: Worker, shutdown: Shutdown, switch: OtlpSwitch, say: Say
) -> None:
    if options.frontend:
        await check_free(options.http_host, options.http_port, HTTP_SETTING)
    with switch.exported_to_runtime_env(os.environ):
        runtime = await DynamoRuntime.connect(
            options.discovery, options.request_plane, parsers=worker.parsers
        )
    frontend = hint = None
    if options.frontend:
        frontend = asyncio.create_task(_frontend(runtime, options, shutdown))

    def ready(config: EngineConfig) -> None:
        nonlocal hint
        model = config.served_model_name or config.model
        say(
            f"serving {model} in {options.address[0]}, {options.mode}, on {options.discovery} discovery"
        )
        if options.frontend:
            hint = asyncio.create_task(_hint(options, model, say))

    failure: BackendError | None = None
    try:
        await worker.run(runtime=runtime, on_ready=ready)
    except BackendError as error:
        failure = error
    finally:
        await _ended(hint, 0.0)
        cause = await _ended(frontend, shutdown.remaining_s(_FRONTEND_END_S))
        _exit_soon()
    if failure is None or isinstance(failure, Disconnected):
        # A failing frontend ends the runtime.
        failure = cause or failure
    if failure is not None:
        raise failure


async def _frontend(runtime: DynamoRuntime, options: ServeOptions, shutdown: Shutdown) -> None:
    """Serve HTTP; when it ends, so does the worker."""
    try:
        await runtime.serve_http(
            options.http_host, options.http_port, migration_limit=options.migration_limit
        )
    except BackendError:
        # A shutdown cancels the frontend's waits, which it reports as errors.
        if not shutdown.requested.is_set:
            raise
    finally:
        if not shutdown.requested.is_set:
            shutdown.request()


async def _hint(options: ServeOptions, model: str, say: Say) -> None:
    """Print a command that queries the model, once it is listed."""
    await until_listed(options.http_host, options.http_port, model)
    say(curl_command(options.http_host, options.http_port, model))


def curl_command(host: str, port: int, model: str) -> str:
    """Return a shell command that queries the model."""
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": model, "stream": True, "max_tokens": 32, "messages": messages})
    url = f"http://{host_and_port(host, port)}/v1/chat/completions"
    # Brackets in an address are a pattern for curl and for shells.
    command = f"curl -N {'-g ' if '[' in url else ''}{shlex.quote(url)}"
    return f"{command} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


async def _ended(task: asyncio.Task[None] | None, seconds: float) -> BackendError | None:
    """Wait at most *seconds* for a task, and return the error that it failed with."""
    if task is None:
        return None
    await asyncio.wait({task}, timeout=seconds)
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return result if isinstance(result, BackendError) else None


def health_check_request(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """
    Return the health check's request from the environment, as Dynamo's own workers do.

    Raises:
        InvalidArgument: It is invalid, or its file can't be read.

    >>> health_check_request({"DYN_HEALTH_CHECK_PAYLOAD": '{"token_ids": [1]}'})
    {'token_ids': [1]}
    """
    text = environ.get(_PROBE)
    if not text:
        return None
    try:
        payload = json.loads(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{_PROBE}: expected {_PROBE_FORMS}: {error}") from error
    if not isinstance(payload, dict):
        raise InvalidArgument(f"{_PROBE}: expected {_PROBE_FORMS}, got {text[:80]!r}")
    return cast("dict[str, Any]", payload)


def _exit_soon() -> None:
    """End the process even if an engine's thread or task would keep it alive forever."""
    exit_within(_EXIT_S, "the shutdown")


_PROBE = "DYN_HEALTH_CHECK_PAYLOAD"
_PROBE_FORMS = "a JSON object, or @ and the path of a file that contains one"
_FRONTEND_END_S = 5.0
_EXIT_S = 10.0

_OWN_DRAIN_S = "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"
