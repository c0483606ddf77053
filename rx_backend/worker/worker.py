"""A worker: one engine, served on the distributed runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rx_backend.adapter import EngineAdapter
from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo import serving
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import EngineShutdown, InvalidArgument, to_dynamo
from rx_backend.logger import get_logger
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.worker.dynamo_runtime import DynamoRuntime
from rx_backend.worker.gate import RequestGate
from rx_backend.worker.interpreter import switching_within
from rx_backend.worker.lifecycle import Lifecycle
from rx_backend.worker.model_files import shared_model_folder, write_model_files
from rx_backend.worker.probing import with_probes
from rx_backend.worker.shutdown import Shutdown, ShutdownTimes, signals_to

__all__ = ("Worker",)


class Worker:
    """
    Serves an engine on NVIDIA Dynamo's runtime, from ``start`` to ``cleanup``.

    SIGTERM or SIGINT end it gracefully: it leaves discovery, waits out a grace period, lets the
    requests in flight end, and cleans up. A second signal forces the end, a third ends the process.
    While it coalesces, the interpreter switches threads every 0.2 ms, not every 5 ms, so that the
    runtime's threads get their turn.

    Args:
        engine: The engine; the worker starts it and cleans it up, exactly once.
        mode: The worker's role, or its name: ``agg``, ``prefill`` or ``decode``.
        pipeline: Makes a request's list of operators from its scope.
        namespace: First part of the worker's address.
        component: Second part; ``prefill`` in that mode and else ``backend`` when left out.
        endpoint: Third part.
        discovery: How workers find each other, see :class:`DynamoRuntime`.
        request_plane: How requests travel: ``tcp`` or ``nats``.
        model_path: Folder with the tokenizer and its chat template. When left out: the engine's
            model name where that is a folder, else a made-up tokenizer, see
            :func:`write_model_files`.
        coalesce: Whether chunks that are waiting anyway cross into the runtime together.
        times: How long each step of the end may take.
        probe: The health check's request; the engine's own when left out.
        shutdown: Asks for the end; one of its own when left out.

    Raises:
        InvalidArgument: Unknown *mode*, a *pipeline* that can't be called, or no such *model_path*.

    To run it, in a program of your own::

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
        coalesce: bool = True,
        times: ShutdownTimes | None = None,
        probe: Mapping[str, Any] | None = None,
        shutdown: Shutdown | None = None,
    ) -> None:
        self._adapter = EngineAdapter(engine, mode, pipeline)
        self._place = (
            namespace,
            component or ("prefill" if self._adapter.mode.is_prefill else "backend"),
            endpoint,
        )
        self._transport = (discovery, request_plane)
        if model_path is not None and not Path(model_path).is_dir():
            raise InvalidArgument(f"model_path: expected a folder, got {str(model_path)!r}")
        self._model_path = None if model_path is None else str(model_path)
        self._coalesce = coalesce
        self._times = times or ShutdownTimes()
        self._probe = probe
        self._shutdown = shutdown or Shutdown()

    async def run(
        self,
        *,
        runtime: DynamoRuntime | None = None,
        on_ready: Callable[[EngineConfig], None] | None = None,
    ) -> None:
        """
        Serve until the end is asked for. Runs in the main thread, for the signals.

        Args:
            runtime: The runtime to serve on; one of its own when left out. It is shut down.
            on_ready: Called when the worker can be reached and its model is registered.

        Raises:
            BackendError: The runtime can't be had or was lost, the engine's ``start`` or
                ``cleanup`` failed, or the model could not be registered.
        """
        if runtime is None:
            runtime = await DynamoRuntime.connect(*self._transport)
        gate = RequestGate(_refusal)
        handler = serving(self._adapter, coalesce=self._coalesce, inside=gate.admit)
        with ExitStack() as stack:
            stack.enter_context(signals_to(self._shutdown))
            if self._coalesce:
                # What pulls ahead keeps the event loop busy.
                stack.enter_context(switching_within(_SWITCH_S))
            folder = stack.enter_context(TemporaryDirectory(prefix="rx-backend-model-"))
            lifecycle = Lifecycle(
                self._adapter.engine,
                runtime.endpoint(*self._place),
                with_probes(handler),
                gate,
                self._shutdown,
                mode=self._adapter.mode,
                times=self._times,
                model_path=lambda config: self._folder_of(config, Path(folder)),
                probe=self._probe,
            )
            await lifecycle.run(on_ready or _nothing)

    def _folder_of(self, config: EngineConfig, spare: Path) -> str:
        if self._model_path is not None:
            return self._model_path
        if Path(config.model).is_dir():
            return config.model
        _log.warning("no model_path: the tokenizer is a made-up one", model=config.model)
        try:
            return str(shared_model_folder(config.context_length))
        except (OSError, RuntimeError) as error:
            _log.warning("the tokenizer is not shared with other workers", error=repr(error))
            return str(write_model_files(spare, config.context_length))


def _refusal() -> Exception:
    return to_dynamo(EngineShutdown("the worker is shutting down"))


def _nothing(_: EngineConfig) -> None: ...


_SWITCH_S = 0.0002

_log = get_logger(__name__)
