"""Our engines and our operators inside Dynamo's own worker."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NoReturn, cast

from rx_backend.adapter import EngineAdapter
from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo.engines import NAMING, REGISTRATION
from rx_backend.dynamo.served_stream import ServedStream, alone
from rx_backend.dynamo.serving import open_stream, wire_chunk, with_coalescing
from rx_backend.engine import EngineConfig, LLMEngine, check_config
from rx_backend.errors import BackendError, to_dynamo
from rx_backend.extras import import_extra
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import Annotated

__all__ = ("DynamoEngine", "as_dynamo_engine")

# What Dynamo's worker calls on every engine: coroutine functions with what an engine without them
# answers, and functions that return lists.
_OPTIONAL: Final = {
    "cleanup": None,
    "drain": None,
    "health_check_payload": None,
    "kv_event_sources": (),
    "on_endpoint_ready": None,
    "register_prometheus": None,
}
_OPTIONAL_LISTS: Final = frozenset(
    ("component_metrics_dp_ranks", "supported_controls", "supported_updates")
)


def as_dynamo_engine(
    engine: LLMEngine,
    pipeline: PipelineSource = standard_pipeline,
    *,
    mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
    coalesce: bool = True,
) -> DynamoEngine:
    """
    Give an engine, with a pipeline of operators, as one that Dynamo's own worker serves.

    So a worker of the Dynamo ecosystem gets our operators in one line, around the engine it has::

        engine = as_dynamo_engine(from_dynamo_engine(engine), my_pipeline)
        await dynamo._core.backend.Worker(engine, config, loop).run()

    Args:
        engine: The engine, not started; one of Dynamo's kind through `from_dynamo_engine`.
        pipeline: Makes a request's list of operators from its scope.
        mode: The worker's role, as its ``WorkerConfig`` has it.
        coalesce: Whether to merge the chunks that wait while the runtime is busy with those before.

    Raises:
        InvalidArgument: Unknown *mode*, or a *pipeline* that can't be called.
        ImportError: The package ``ai-dynamo-runtime`` is not installed.
    """
    _import_backend()
    return DynamoEngine(EngineAdapter(engine, mode, pipeline), coalesce=coalesce)


class DynamoEngine:
    """
    An engine as Dynamo's own worker wants it, made by :func:`as_dynamo_engine`.

    Methods that only some engines have are those of the engine inside.

    Args:
        adapter: What serves the requests.
        coalesce: Whether to merge the chunks that wait while the runtime is busy.
    """

    def __init__(self, adapter: EngineAdapter, *, coalesce: bool = True) -> None:
        self._engine: Any = adapter.engine
        self._served = with_coalescing(adapter) if coalesce else adapter
        self._probes = JsonProbeAdapter(adapter)
        self._decode = adapter.mode.is_decode

    def __getattr__(self, name: str) -> Any:
        """Return the engine's own; for a method that only some engines have, one that does nothing."""
        if name in _OPTIONAL:
            return getattr(self._engine, name, partial(_nothing, _OPTIONAL[name]))
        if name in _OPTIONAL_LISTS:
            return getattr(self._engine, name, list)
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine, name)

    async def start(self, worker_id: int) -> Any:
        """Start the engine; gives the config that the worker registers."""
        try:
            config = check_config(await self._engine.start(worker_id))
        except BackendError as error:
            _raise_as_dynamo(error)
        # An engine of Dynamo's kind may have said more than we have fields for.
        own = getattr(self._engine, "dynamo_config", None)
        return _to_dynamo_config(config) if own is None else own

    def generate(self, request: Mapping[str, Any], context: Any) -> ServedStream:
        """
        Stream one request's chunks as dicts.

        The stream raises a ``DynamoException`` of the nearest kind where it fails.
        """
        return ServedStream(
            context,
            partial(open_stream, self._served, self._probes, request),
            inside=alone,
            to_wire=_chunk_of,
            on_failure=_raise_as_dynamo,
            decode=self._decode,
        )

    async def abort(self, context: Any) -> None:
        """Do nothing: the request has heard the same signal, and its pipeline aborts the engine."""


async def _nothing(answer: object, *_: object) -> Any:
    return [] if answer == () else answer


def _raise_as_dynamo(error: Exception) -> NoReturn:
    failure = to_dynamo(error)
    raise failure from failure.__cause__


def _chunk_of(item: object) -> dict[str, Any] | None:
    """Take an item's chunk out of its envelope; Dynamo's worker puts its own around it."""
    if not isinstance(item, Annotated):
        return wire_chunk(item)
    envelope = cast("Annotated[object]", item)
    if envelope.error is not None:
        raise envelope.error
    return None if envelope.data is None else wire_chunk(envelope.data)


def _to_dynamo_config(config: EngineConfig) -> Any:
    backend = _import_backend()
    return backend.EngineConfig(
        model=config.model,
        llm=backend.LlmRegistration(**{name: getattr(config, name) for name in REGISTRATION}),
        **{name: getattr(config, name) for name in NAMING},
    )


def _import_backend() -> Any:
    """Import Dynamo's worker, with a clear word where the package is missing."""
    return import_extra(
        "dynamo._core.backend",
        "dynamo",
        package="ai-dynamo-runtime",
        needed_by="an engine for Dynamo's worker",
    )
