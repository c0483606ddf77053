"""A worker's place in NVIDIA Dynamo's runtime, the package ``ai-dynamo-runtime``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from errno import EADDRINUSE
from importlib import import_module
from typing import Any, Self

from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.worker.nodelay import accept_without_delay
from rx_backend.worker.probing import PROBE_KEY
from rx_backend.worker.runtime import Handler, ModelEntry
from rx_backend.worker.services import services, until_reachable

__all__ = ("DynamoEndpoint", "DynamoRuntime")

_POLL_S = 0.02


class DynamoRuntime:
    """
    A connection to the runtime, which a worker and a frontend of one process share.

    Made on the event loop that serves. While discovery does not answer, the constructor waits and
    blocks the loop, signals and all; :meth:`connect` does not.

    Args:
        discovery: How workers find each other: ``file``, ``etcd``, ``mem`` or ``kubernetes``.
            ``file`` keeps its files in the folder that ``DYN_FILE_KV`` names.
        request_plane: How requests travel: ``tcp`` or ``nats``.

    Raises:
        CannotConnect: No runtime could be made.
        InvalidArgument: The package is not installed.
    """

    def __init__(self, discovery: str = "file", request_plane: str = "tcp") -> None:
        core = _import("dynamo._core")
        self.discovery = discovery
        loop = asyncio.get_running_loop()
        try:
            self._inner: Any = core.DistributedRuntime(loop, discovery, request_plane)
        except Exception as error:
            used = services(discovery, request_plane, os.environ)
            told = [f"discovery {discovery!r}", f"request plane {request_plane!r}", *map(str, used)]
            raise CannotConnect(f"{', '.join(told)}: {error}") from error

    @classmethod
    async def connect(cls, discovery: str = "file", request_plane: str = "tcp") -> Self:
        """
        Make a runtime, once the services that it needs take connections.

        It waits 30 seconds for each, or as many as ``ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS`` and
        ``NATS_STARTUP_CONNECT_TIMEOUT_SECONDS`` say.

        Args:
            discovery: As above.
            request_plane: As above.

        Raises:
            CannotConnect: A service does not answer, or no runtime could be made.
            InvalidArgument: The package is not installed.
        """
        _import("dynamo._core")
        for service in services(discovery, request_plane, os.environ):
            await until_reachable(service)
        return cls(discovery, request_plane)

    def endpoint(self, namespace: str, component: str, name: str) -> DynamoEndpoint:
        """Return a worker's place."""
        return DynamoEndpoint(self, self._inner.endpoint(f"{namespace}.{component}.{name}"))

    async def serve_http(self, host: str, port: int, *, migration_limit: int = 3) -> None:
        """
        Serve the OpenAI API for every model in discovery, until :meth:`shutdown`.

        Args:
            host: Where to listen.
            port: The port.
            migration_limit: How often a request moves on to another worker when its own is lost;
                it takes along what it has. 0 for never.

        Raises:
            CannotConnect: The port can't be had.
        """
        llm = _import("dynamo.llm")
        await _check_free(host, port)
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
            raise CannotConnect(f"frontend on {host}:{port}: {error}") from error

    def shutdown(self) -> None:
        """End the runtime, and all that runs on it."""
        self._inner.shutdown()


class DynamoEndpoint:
    """
    One worker's place in the runtime; a ``WorkerRuntime``.

    Args:
        runtime: The runtime.
        inner: Its endpoint.
    """

    def __init__(self, runtime: DynamoRuntime, inner: Any) -> None:
        self._runtime = runtime
        self._inner = inner

    @property
    def worker_id(self) -> int:
        """The number under which discovery knows the worker."""
        return self._inner.connection_id()

    async def serve(self, handler: Handler, probe: Mapping[str, Any] | None) -> None:
        """Serve requests until the runtime ends; *probe* becomes the runtime's health check."""
        payload = None if probe is None else {**probe, PROBE_KEY: True}
        await self._inner.serve_endpoint(
            handler, graceful_shutdown=True, health_check_payload=payload
        )

    async def reachable(self) -> None:
        """Wait until discovery shows the worker."""
        client = await self._inner.client()
        await client.wait_for_instances()
        while self.worker_id not in client.instance_ids():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_POLL_S)
        # The runtime listens by now, and has no model that a frontend would send requests for.
        accept_without_delay()

    async def register(self, model: ModelEntry) -> None:
        """Register the model: its names, sizes, tokenizer, and which other workers it needs."""
        llm = _import("dynamo.llm")
        config = model.config
        kinds = llm.WorkerType
        openai = llm.ModelType.Chat | llm.ModelType.Completions
        types: dict[DisaggregationMode, tuple[Any, Any, list[list[Any]]]] = {
            DisaggregationMode.AGGREGATED: (openai, kinds.Aggregated, []),
            DisaggregationMode.PREFILL: (llm.ModelType.Prefill, kinds.Prefill, [[kinds.Decode]]),
            DisaggregationMode.DECODE: (openai, kinds.Decode, [[kinds.Prefill]]),
        }
        model_type, worker_type, needs = types[model.mode]
        await llm.register_model(
            llm.ModelInput.Tokens,
            model_type,
            self._inner,
            model.path,
            config.served_model_name or config.model,
            worker_type=worker_type,
            needs=needs,
            kv_cache_block_size=config.kv_cache_block_size,
            runtime_config=_runtime_config(llm, model),
            max_gpu_lora_count=config.max_gpu_lora_count,
            model_aliases=config.model_aliases or None,
            self_host_metadata=self._self_host(),
        )

    async def leave(self) -> None:
        """Take the worker out of discovery."""
        await self._inner.unregister_endpoint_instance()

    def shutdown(self) -> None:
        """End the runtime."""
        self._runtime.shutdown()

    def _self_host(self) -> bool | None:
        """Whether the worker hands out the tokenizer; the runtime's own choice where it has one."""
        shares_disk = self._runtime.discovery in {"file", "mem"}
        return False if shares_disk and "DYN_SELF_HOST_METADATA" not in os.environ else None


async def _check_free(host: str, port: int) -> None:
    """Say at once that a port is in use: else whoever listens there would be taken for ours."""
    try:
        probe = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as error:
        if error.errno == EADDRINUSE:
            raise CannotConnect(f"frontend on {host}: port {port} already in use") from error
        # What else is wrong, the runtime says itself.
        return
    probe.close()
    await probe.wait_closed()


def _runtime_config(llm: Any, model: ModelEntry) -> Any:
    config = model.config
    result = llm.ModelRuntimeConfig()
    for name in (
        "context_length",
        "total_kv_blocks",
        "max_num_seqs",
        "max_num_batched_tokens",
        "data_parallel_size",
        "data_parallel_start_rank",
    ):
        value = getattr(config, name)
        if value is not None:
            setattr(result, name, value)
    for key, value in config.runtime_data.items():
        result.set_engine_specific(key, value)
    if config.bootstrap_host is not None or config.bootstrap_port is not None:
        result.set_disaggregated_endpoint(config.bootstrap_host, config.bootstrap_port)
    return result


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InvalidArgument(
            "a worker needs the package ai-dynamo-runtime: pip install 'rx-backend[dynamo]'"
        ) from error
