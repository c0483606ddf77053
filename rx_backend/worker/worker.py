"""A worker: one engine, served on the distributed runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from rx_backend.adapter import EngineAdapter
from rx_backend.checks import instance
from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo import serving
from rx_backend.engine import EngineConfig, LLMEngine, check_methods
from rx_backend.errors import EngineShutdown, InvalidArgument, to_dynamo
from rx_backend.logger import get_logger
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.worker.dynamo_runtime import DynamoRuntime, check_parsers
from rx_backend.worker.incoming import RequestGate
from rx_backend.worker.lifecycle import Lifecycle
from rx_backend.worker.model_files import (
    NoTokenizer,
    find_tokenizer,
    is_model,
    shared_model_folder,
    tokenizer_folder,
)
from rx_backend.worker.options import is_endpoint_part
from rx_backend.worker.process import frozen_heap, max_switch_interval
from rx_backend.worker.shutdown import Shutdown, ShutdownTimes, signals_to

__all__ = ("Worker",)


class Worker:
    """
    Serves an engine on NVIDIA Dynamo's runtime, from ``start`` to ``cleanup``.

    SIGTERM or SIGINT shut it down gracefully: it leaves discovery, waits for a grace period, lets
    the requests in flight finish, and cleans up. A second signal forces the shutdown, a third ends
    the process. Handlers of the engine's for these signals are replaced. If ``cleanup`` can't be
    stopped at its deadline, the process also ends, with exit code 1.

    While it runs, the interpreter switches threads every 0.2 ms instead of every 5 ms, and the
    garbage collector ignores objects that existed when the engine had started.

    Args:
        engine: The engine, which the worker starts and cleans up, once each.
        mode: The worker's role, or its name: ``agg``, ``prefill`` or ``decode``.
        pipeline: A pipeline, or a function that returns one from a request's scope.
        namespace: First part of the worker's address.
        component: Second part; by default ``prefill`` in that mode, else ``backend``.
        endpoint: Third part.
        discovery: How workers find each other, see :class:`DynamoRuntime`.
        request_plane: How requests travel: ``tcp`` or ``nats``.
        model_path: Folder with the tokenizer and its chat template, or a GGUF file with them. By
            default the engine's model name if that is a path, else a placeholder tokenizer, see
            :func:`write_model_files`.
        served_model_name: The name that clients use; by default the engine's.
        tool_call_parser: The runtime's parser of tool calls, by name; by default the engine's.
        reasoning_parser: Its parser of reasoning, likewise.
        placeholder_tokenizer: Whether an engine without a tokenizer gets a placeholder. An engine
            with ``needs_tokenizer``, or whose model name is a model's path, never does.
        coalesce: Whether chunks that wait for the runtime are sent together.
        times: How long each step of the shutdown may take.
        probe: The health check's request; by default the engine's own.
        shutdown: Requests the shutdown, in addition to the signals.

    Attributes:
        parsers: The parsers by argument name, validated on :meth:`run`.

    Raises:
        InvalidArgument: *mode* is unknown, *engine* lacks a required method, *pipeline* is neither
            a pipeline nor callable, a part of the address is no name, *model_path* has no tokenizer,
            or *probe* is not a mapping.

    To run it in your own program::

        asyncio.run(Worker(MyEngine(), namespace="demo").run())
    """

    def __init__(
        self,
        engine: LLMEngine,
        *,
        mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
        pipeline: PipelineSource = standard_pipeline,
        namespace: str = "dynamo",
        component: str | None = None,
        endpoint: str = "generate",
        discovery: str = "file",
        request_plane: str = "tcp",
        model_path: str | Path | None = None,
        served_model_name: str | None = None,
        tool_call_parser: str | None = None,
        reasoning_parser: str | None = None,
        placeholder_tokenizer: bool = True,
        coalesce: bool = True,
        times: ShutdownTimes | None = None,
        probe: Mapping[str, Any] | None = None,
        shutdown: Shutdown | None = None,
    ) -> None:
        self._adapter = EngineAdapter(engine, mode, pipeline)
        check_methods(engine)
        self._place = (
            namespace,
            component or ("prefill" if self._adapter.mode.is_prefill else "backend"),
            endpoint,
        )
        for name, part in zip(("namespace", "component", "endpoint"), self._place, strict=True):
            if not is_endpoint_part(part):
                raise InvalidArgument(f"{name}: expected a name without dots, got {part!r}")
        self._transport = (discovery, request_plane)
        self.parsers: Mapping[str, str | None] = {
            "tool_call_parser": tool_call_parser,
            "reasoning_parser": reasoning_parser,
        }
        settings = {"served_model_name": served_model_name, **self.parsers}
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._tokenizer = None if model_path is None else tokenizer_folder(model_path, "model_path")
        self._placeholder_tokenizer = placeholder_tokenizer
        self._coalesce = coalesce
        self._times = times or ShutdownTimes()
        if probe is not None:
            instance("probe", probe, Mapping)
        self._probe = probe
        self._shutdown = shutdown or Shutdown()
        self._context_length: int | None = None

    async def run(
        self,
        *,
        runtime: DynamoRuntime | None = None,
        on_ready: Callable[[EngineConfig], None] | None = None,
    ) -> None:
        """
        Serve until shutdown is requested; call it in the main thread, which receives signals.

        Args:
            runtime: The runtime to serve on, which is shut down at the end; by default a new one.
            on_ready: Called once the worker is reachable and its model is registered.

        Raises:
            BadSetting: The runtime has no such parser; nothing was started.
            NoTokenizer: The engine has a model but no tokenizer was found; nothing was served.
            BackendError: The runtime can't be created, the runtime or the engine was lost, the
                engine's ``start`` or ``cleanup`` failed, or the model could not be registered.
        """
        if runtime is None:
            runtime = await DynamoRuntime.connect(*self._transport, parsers=self.parsers)
        else:
            check_parsers(self.parsers)
        gate = RequestGate(_refusal)
        handler = serving(
            self._adapter,
            coalesce=self._coalesce,
            admit=gate.admit,
            context_length=lambda: self._context_length,
        )

        with ExitStack() as stack:
            signals = signals_to(self._shutdown, unwind_s=self._times.unwind_s)
            take_signals = stack.enter_context(signals)
            stack.enter_context(max_switch_interval(_SWITCH_S))

            def registration(config: EngineConfig) -> tuple[EngineConfig, str]:
                take_signals()
                return self._registration(config)

            def ready(config: EngineConfig) -> None:
                stack.enter_context(frozen_heap())
                if on_ready is not None:
                    on_ready(config)

            lifecycle = Lifecycle(
                self._adapter.engine,
                runtime.endpoint(*self._place),
                handler,
                gate,
                self._shutdown,
                mode=self._adapter.mode,
                times=self._times,
                registration=registration,
                probe=self._probe,
            )
            await lifecycle.run(ready)

    def _registration(self, config: EngineConfig) -> tuple[EngineConfig, str]:
        self._context_length = config.context_length
        folder = self._tokenizer or find_tokenizer(config.model) or self._placeholder_folder(config)
        return (replace(config, **self._settings) if self._settings else config), folder

    def _placeholder_folder(self, config: EngineConfig) -> str:
        needs_own = getattr(self._adapter.engine, "needs_tokenizer", False)
        if needs_own or not self._placeholder_tokenizer or is_model(config.model):
            raise NoTokenizer(
                f"no tokenizer was found for the model {config.model}: name a folder with one by "
                "--tokenizer, or by a Worker's model_path"
            )
        _log.warning("no model_path: using a placeholder tokenizer", model=config.model)
        return str(shared_model_folder(config.context_length))


def _refusal() -> Exception:
    return to_dynamo(EngineShutdown("the worker is shutting down"))


_SWITCH_S = 0.0002

_log = get_logger(__name__)
