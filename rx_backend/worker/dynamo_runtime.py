"""A worker's endpoint in NVIDIA Dynamo's runtime, the package ``ai-dynamo-runtime``."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from errno import EPERM
from pathlib import Path
from tempfile import gettempdir
from types import MappingProxyType
from typing import Any, Self

from rx_backend.addresses import host_and_port
from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo import Handler
from rx_backend.engine import EngineConfig
from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.extras import import_extra
from rx_backend.worker.bad_setting import BadSetting
from rx_backend.worker.nodelay import accept_without_delay
from rx_backend.worker.ports import check_runtime_ports
from rx_backend.worker.services import services, until_reachable

__all__ = (
    "DynamoEndpoint",
    "DynamoRuntime",
    "check_parsers",
    "make_private_folder",
)

_POLL_S = 0.02


class DynamoRuntime:
    """
    A connection to the runtime, shared by a worker and a frontend of one process.

    Create it on the event loop that serves. The constructor blocks the loop while discovery does
    not respond; :meth:`connect` does not.

    Args:
        discovery: How workers find each other: ``file``, ``etcd``, ``mem`` or ``kubernetes``.
            ``file`` uses the folder that ``DYN_FILE_KV`` names; a new one is private to its user.
        request_plane: How requests travel: ``tcp`` or ``nats``.

    Raises:
        CannotConnect: The runtime can't be created, or the default folder is another user's.
        BadSetting: The package is not installed.
    """

    def __init__(self, discovery: str = "file", request_plane: str = "tcp") -> None:
        core = _import("dynamo._core")
        self.discovery = discovery
        loop = asyncio.get_running_loop()
        if discovery == "file":
            make_private_folder()
        try:
            self._inner: Any = core.DistributedRuntime(loop, discovery, request_plane)
        except Exception as error:
            used = services(discovery, request_plane, os.environ)
            parts = [f"discovery {discovery!r}", f"request plane {request_plane!r}"]
            raise CannotConnect(f"{', '.join([*parts, *map(str, used)])}: {error}") from error

    @classmethod
    async def connect(
        cls,
        discovery: str = "file",
        request_plane: str = "tcp",
        *,
        takes_requests: bool = True,
        parsers: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Self:
        """
        Create a runtime, once the services that it needs accept connections.

        It waits for each as long as ``ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS`` and
        ``NATS_STARTUP_CONNECT_TIMEOUT_SECONDS`` say, 30 seconds by default.

        Args:
            discovery: As for the class.
            request_plane: As for the class.
            takes_requests: Whether a worker serves on it, with or without a frontend.
            parsers: The parsers that the worker needs, see :func:`check_parsers`.

        Raises:
            CannotConnect: A service does not respond, a port from a variable is in use, or as for
                the class.
            BadSetting: The package is not installed or lacks a parser, or a variable has an invalid
                port or event plane.
        """
        takes_requests = takes_requests and request_plane == "tcp"
        needed = services(discovery, request_plane, os.environ)
        await check_runtime_ports(os.environ, takes_requests=takes_requests)
        # Only now, because on import it logs its own warnings about some of these variables.
        _import("dynamo._core")
        check_parsers(parsers)
        for service in needed:
            await until_reachable(service)
        return cls(discovery, request_plane)

    def endpoint(self, namespace: str, component: str, name: str) -> DynamoEndpoint:
        """Return the endpoint with this address."""
        return DynamoEndpoint(self, self._inner.endpoint(f"{namespace}.{component}.{name}"))

    async def serve_http(self, host: str, port: int, *, migration_limit: int = 3) -> None:
        """
        Serve the OpenAI API for every model in discovery, until :meth:`shutdown`.

        Call `check_free` before anything tries to connect to the port.

        Args:
            host: The address to listen on.
            port: The port.
            migration_limit: How often a request may move to another worker, with the tokens
                generated so far, when its own is lost; 0 for never.

        Raises:
            CannotConnect: The port is not available.
        """
        llm = _import("dynamo.llm")
        arguments = llm.EntrypointArgs(
            llm.EngineType.Dynamic,
            http_host=host,
            http_port=port,
            migration_limit=migration_limit,
        )
        engine = await llm.make_engine(self._inner, arguments)
        try:
            await llm.run_input(self._inner, "http", engine)
        except Exception as error:
            raise CannotConnect(f"frontend on {host_and_port(host, port)}: {error}") from error

    def set_ready(self) -> None:
        """Report status 200 at ``/health`` and ``/live``, unless a health check decides that."""
        self._inner.set_health_status(True)

    def shutdown(self) -> None:
        """Shut the runtime down, with everything that runs on it."""
        self._inner.shutdown()


class DynamoEndpoint:
    """
    One worker's endpoint in the runtime.

    Calls come in this order: ``serve`` (which lasts), ``reachable``, ``register``, then ``restore``
    whenever ``is_listed`` is false; at the end ``leave`` and ``shutdown``, upon which ``serve``
    returns.

    Args:
        runtime: The runtime.
        inner: Its endpoint.
    """

    def __init__(self, runtime: DynamoRuntime, inner: Any) -> None:
        self._runtime = runtime
        self._inner = inner
        self._client: Any = None
        self._registered: dict[str, Any] = {}

    @property
    def worker_id(self) -> int:
        """The worker's id in discovery."""
        return self._inner.connection_id()

    async def serve(self, handler: Handler, probe: Mapping[str, Any] | None) -> None:
        """Serve requests until the runtime ends; *probe* becomes the runtime's health check."""
        payload = None if probe is None else {**probe, "_HEALTH_CHECK": True}
        await self._inner.serve_endpoint(
            handler, graceful_shutdown=True, health_check_payload=payload
        )

    async def reachable(self) -> None:
        """Wait until discovery lists the worker."""
        self._client = await self._inner.client()
        await self._client.wait_for_instances()
        while not self.is_listed():  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(_POLL_S)
        # By now the runtime listens, but no frontend sends requests before the model is registered.
        accept_without_delay()

    def is_listed(self) -> bool:
        """Whether discovery lists the worker."""
        return self.worker_id in self._client.instance_ids()

    async def register(self, config: EngineConfig, mode: DisaggregationMode, path: str) -> None:
        """
        Register the model: names, sizes, tokenizer, and the worker roles that it needs.

        Args:
            config: What the engine's ``start`` returned.
            mode: The worker's role.
            path: Folder with the model's tokenizer and chat template.

        Raises:
            InvalidArgument: ``runtime_data`` has a value that JSON can't represent.
        """
        llm = _import("dynamo.llm")
        kinds = llm.WorkerType
        openai = llm.ModelType.Chat | llm.ModelType.Completions
        types: dict[DisaggregationMode, tuple[Any, Any, list[list[Any]]]] = {
            DisaggregationMode.AGGREGATED: (openai, kinds.Aggregated, []),
            DisaggregationMode.PREFILL: (llm.ModelType.Prefill, kinds.Prefill, [[kinds.Decode]]),
            DisaggregationMode.DECODE: (openai, kinds.Decode, [[kinds.Prefill]]),
        }
        model_type, worker_type, needs = types[mode]
        self._registered = {
            "model_input": llm.ModelInput.Tokens,
            "model_type": model_type,
            "endpoint": self._inner,
            "model_path": path,
            "model_name": config.served_model_name or config.model,
            "worker_type": worker_type,
            "needs": needs,
            "kv_cache_block_size": config.kv_cache_block_size,
            "runtime_config": _runtime_config(llm, config),
            "max_gpu_lora_count": config.max_gpu_lora_count,
            "model_aliases": config.model_aliases or None,
            "self_host_metadata": self._self_host(),
        }
        await llm.register_model(**self._registered)
        self._runtime.set_ready()

    async def restore(self) -> None:
        """Register the model and then the worker again: a listed worker must have its model."""
        await _import("dynamo.llm").register_model(**self._registered)
        await self._inner.register_endpoint_instance()

    async def leave(self) -> None:
        """Remove the worker from discovery."""
        await self._inner.unregister_endpoint_instance()

    def shutdown(self) -> None:
        """Shut the runtime down."""
        self._runtime.shutdown()

    def _self_host(self) -> bool | None:
        """Whether the worker serves its tokenizer files; None leaves it to the runtime."""
        shares_disk = self._runtime.discovery in {"file", "mem"}
        return False if shares_disk and "DYN_SELF_HOST_METADATA" not in os.environ else None


def check_parsers(parsers: Mapping[str, str | None]) -> None:
    """
    Check the names of the runtime's parsers.

    This imports the runtime, which reads the variables for its log and its traces, so call it late.

    Args:
        parsers: The names, by ``tool_call_parser`` and ``reasoning_parser``; None for no parser.

    Raises:
        BadSetting: The runtime has no such parser, or is not installed.
    """
    core = _import("dynamo._core")
    for kind, name in parsers.items():
        of_tools = kind == "tool_call_parser"
        names = core.get_tool_parser_names() if of_tools else core.get_reasoning_parser_names()
        if name is not None and name not in names:
            raise BadSetting(f"{kind}: expected one of {', '.join(sorted(names))}, got {name!r}")


def make_private_folder() -> None:
    """Create file discovery's folder, private to its user: workers trust its contents."""
    named = os.environ.get("DYN_FILE_KV")
    folder = Path(named) if named else Path(gettempdir(), "dynamo_store_kv")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not named:
            if folder.stat().st_uid != os.geteuid():
                raise PermissionError(EPERM, "belongs to another user")
            folder.chmod(0o700)
    except OSError as error:
        raise CannotConnect(
            f"discovery folder {folder}: {error.strerror}; set DYN_FILE_KV to another folder"
        ) from error


def _runtime_config(llm: Any, config: EngineConfig) -> Any:
    result = llm.ModelRuntimeConfig()
    for name in (
        "context_length",
        "total_kv_blocks",
        "max_num_seqs",
        "max_num_batched_tokens",
        "data_parallel_size",
        "data_parallel_start_rank",
        "tool_call_parser",
        "reasoning_parser",
    ):
        value = getattr(config, name)
        if value is not None:
            setattr(result, name, value)
    for key, value in config.runtime_data.items():
        try:
            result.set_engine_specific(key, json.dumps(value, allow_nan=False))
        except Exception as error:  # the runtime raises no other class
            raise InvalidArgument(f"runtime_data[{key!r}]: expected JSON, {error}") from error
    if config.bootstrap_host is not None or config.bootstrap_port is not None:
        result.set_disaggregated_endpoint(config.bootstrap_host, config.bootstrap_port)
    return result


def _import(name: str) -> Any:
    try:
        return import_extra(name, "dynamo", package="ai-dynamo-runtime", needed_by="a worker")
    except ImportError as error:
        raise BadSetting(str(error)) from error
