"""The engine contract: what the adapter expects of an inference engine (rows E1-E7)."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import operator
import types
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from typing import Annotated, Any, TypeAlias, cast

import msgspec
from reactivex import Observable

from operators.assembly import SubscribesAsync, source_of, start_task
from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument, engine_failure
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = (
    "AnyChunk",
    "ChunkSource",
    "ChunkStream",
    "EngineConfig",
    "LLMEngine",
    "call_optional",
    "check_config",
    "check_methods",
    "check_model_name",
    "is_engine",
    "open_chunks",
    "start_abort",
    "until_lost",
)

AnyChunk: TypeAlias = LLMEngineOutput | Mapping[str, Any]
"""An item of an engine's stream: a chunk, or a plain mapping of the same shape (row E2)."""

ChunkStream = AsyncIterator[AnyChunk]
"""Chunks to pull, one after another."""

ChunkSource: TypeAlias = ChunkStream | Observable[AnyChunk] | SubscribesAsync[AnyChunk]
"""
The result of ``generate``: an asynchronous iterator, a ``reactivex`` Observable, or an
``aioreactive`` AsyncObservable (row E2).
"""


# What the runtime can register.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]


class EngineConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    The properties of a started engine (row E1). Counts are in tokens, sizes in blocks.

    Only ``model`` is required; the rest is for frontends, routers and planners, and may be unknown.
    The parsers are Dynamo's, by name: the frontend finds tool calls and reasoning in the text.
    """

    model: str
    served_model_name: str | None = None
    model_aliases: list[str] = []
    context_length: _Count | None = None
    kv_cache_block_size: _Count | None = None
    total_kv_blocks: _Count | None = None
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None
    data_parallel_size: _Count | None = None
    data_parallel_start_rank: _Count | None = None
    max_gpu_lora_count: _Count | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    bootstrap_host: str | None = None
    bootstrap_port: _Port | None = None
    runtime_data: dict[str, Any] = {}


class LLMEngine(ABC):
    """
    An inference engine: construct, ``start``, many concurrent ``generate``, ``cleanup`` (row E1).

    Subclassing is optional: any object with these methods is an engine. It needs ``start``,
    ``generate`` and ``cleanup``; the others have a default here, and are optional elsewhere.

    Attributes:
        needs_tokenizer: Whether the token ids are those of a model with its own tokenizer. A worker
            that finds none then refuses to serve the engine, instead of making one up.
    """

    needs_tokenizer: bool = False

    @abstractmethod
    async def start(self, worker_id: int) -> EngineConfig:
        """
        Load the model; return a config with a non-empty model name.

        If it fails the caller still calls :meth:`cleanup`.
        """

    @abstractmethod
    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> ChunkSource | Awaitable[ChunkSource]:
        """
        Stream one request's chunks; usually an async generator (row E2).

        It may also return a ``reactivex`` Observable or an ``aioreactive`` AsyncObservable, or be a
        coroutine that returns one of the three. They behave alike: subscribed to at the first pull,
        disposed of at the end or a drop, within the request's span. But an Observable has no
        back-pressure, so items that it pushes ahead of the consumer wait in memory; and work on its
        own threads is outside the span.

        Exactly one terminal ends the stream: a chunk with ``finish_reason``, or a raised error
        (row E3). Watch ``context.is_stopped`` and end with a ``cancelled`` terminal (row E4).
        """

    async def abort(self, context: RequestContext) -> None:
        """Free what the request holds in the engine; called at most once (rows E5, A2)."""

    async def cleanup(self) -> None:
        """Release everything. Idempotent, and safe on an engine that never started (row E5)."""

    async def is_quiescent(self) -> bool:
        """Return whether nothing that must outlive a request, such as a KV transfer, is in flight."""
        return True

    async def drain(self) -> None:
        """Finish background work before :meth:`cleanup`."""

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a small request, as JSON, to check that the engine works; None for no check."""
        return None

    async def lost(self) -> str:
        """
        Wait until the engine is lost for good, and return the reason (row E7).

        A worker awaits it once, from the start until the shutdown. When it returns or raises, the
        worker fails its requests so that others continue them, and exits. The default never
        returns.
        """
        return await _never()


def is_engine(value: object) -> bool:
    """Return whether *value* is an object with ``generate``; a class is not."""
    return hasattr(value, "generate") and not isinstance(value, type)


def check_config(config: EngineConfig) -> EngineConfig:
    """Return a copy of *config* if its fields are valid, else raise `InvalidArgument`."""
    check_model_name(config)
    names = (name for name in EngineConfig.__struct_fields__ if hasattr(config, name))
    try:
        return msgspec.convert({name: getattr(config, name) for name in names}, EngineConfig)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"start() must return a valid EngineConfig: {error}") from None


def check_model_name(config: EngineConfig) -> None:
    """Raise :class:`InvalidArgument` if *config* does not name its model (row E1)."""
    model = getattr(config, "model", None)
    if not isinstance(model, str) or not model.strip():
        kind = type(config).__name__
        got = f"model={model!r} in {kind}" if hasattr(config, "model") else kind
        raise InvalidArgument(
            f"start() must return an EngineConfig with a non-empty model name, got {got}"
        )


def check_methods(engine: LLMEngine) -> None:
    """Raise :class:`InvalidArgument` if *engine* lacks a method that is required (rows E1, E2, E5)."""
    for name in ("start", "generate", "cleanup"):
        if not callable(getattr(engine, name, None)):
            raise InvalidArgument(
                f"engine: {type(engine).__name__} has no method {name}: "
                "derive it from LLMEngine, or add the method"
            )


async def call_optional(engine: LLMEngine, name: str, default: Any = None) -> Any:
    """Call a method that an engine need not have (row E5); return *default* without it."""
    method = getattr(engine, name, None)
    return default if method is None else await method()


async def until_lost(engine: LLMEngine) -> str:
    """
    Wait until *engine* is lost, and return the reason (row E7).

    It never returns for an engine without a method ``lost``. An exception of ``lost`` is a reason
    too.

    Raises:
        InvalidArgument: ``lost`` is not an async method.
    """
    lost = getattr(engine, "lost", None)
    waiting = _never() if lost is None else lost()
    if not inspect.isawaitable(waiting):
        raise InvalidArgument(
            f"{type(engine).__name__}.lost must be an async method, "
            f"it returned {type(waiting).__name__}"
        )
    task = asyncio.current_task()
    try:
        return str(await cast("Awaitable[object]", waiting))
    except (asyncio.CancelledError, Exception) as error:
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return str(engine_failure(error))


async def _never() -> str:
    nothing: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return await nothing


async def open_chunks(
    engine: LLMEngine,
    request: PreprocessedRequest,
    context: RequestContext,
    *,
    own_context: contextvars.Context | None = None,
) -> ChunkStream:
    """
    Call ``engine.generate`` and return its chunks as an asynchronous iterator (row E2).

    An observable becomes an iterator that subscribes at its first pull.

    Args:
        engine: The engine.
        request: Passed to the engine.
        context: Passed to the engine.
        own_context: The ``contextvars`` context to run the engine in; the current one by default.

    Raises:
        InvalidArgument: ``generate`` returned something else.
    """
    enter = operator.call if own_context is None else own_context.run
    chunks: Any = enter(engine.generate, request, context)
    if isinstance(chunks, types.AsyncGeneratorType):
        return cast("ChunkStream", chunks)
    # An Observable can be awaited too, which would return its last chunk.
    source = source_of(chunks)
    if source is None and not hasattr(chunks, "__aiter__") and inspect.isawaitable(chunks):
        chunks = await _awaited(chunks, enter)
        source = source_of(chunks)
    if source is not None:
        return source
    if not hasattr(chunks, "__aiter__"):
        raise InvalidArgument(
            f"{type(engine).__name__}.generate must return an async iterator of chunks, "
            f"got {type(chunks).__name__}"
        )
    return aiter(chunks)


def start_abort(
    engine: LLMEngine, context: RequestContext, own: contextvars.Context | None = None
) -> None:
    """
    Start ``engine.abort``, if there is one, in its own task, and return at once.

    An error is logged with the request's id, and does not disturb the stream (row A7).

    Args:
        engine: The engine.
        context: The request's context.
        own: The ``contextvars`` context that the engine runs in; the abort runs in a copy.
    """
    own = None if own is None else own.copy()
    start_task(_abort(engine, context), asyncio.get_running_loop(), own)


async def _abort(engine: LLMEngine, context: RequestContext) -> None:
    try:
        abort = getattr(engine, "abort", None)
        if abort is not None:
            await abort(context)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        _log.warning("engine abort failed", request_id=context.id, **describe(error))


@types.coroutine
def _awaited(
    awaitable: Awaitable[object], enter: Callable[..., Any]
) -> Generator[Any, Any, object]:
    """Await something, with each of its steps run through *enter*."""
    steps = awaitable.__await__()
    try:
        signal = enter(next, steps)
        while True:
            try:
                yield signal
            except BaseException as error:
                signal = enter(cast("Generator[Any]", steps).throw, error)
            else:
                signal = enter(next, steps)
    except StopIteration as stop:
        return stop.value


_log = get_logger(__name__)
