"""Engines of the Dynamo ecosystem behind our adapter."""

from __future__ import annotations

from typing import Any, cast

from rx_backend.context import RequestContext
from rx_backend.dynamo.engine_context import EngineContext
from rx_backend.engine import ChunkSource, EngineConfig, LLMEngine, call_optional, until_lost
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest, to_builtins

__all__ = ("from_any_engine", "from_dynamo_engine")

# Dynamo's and our names of these are the same.
_NAMING = ("served_model_name", "model_aliases", "runtime_data")
_REGISTRATION = (
    "context_length",
    "kv_cache_block_size",
    "total_kv_blocks",
    "max_num_seqs",
    "max_num_batched_tokens",
    "data_parallel_size",
    "data_parallel_start_rank",
    "max_gpu_lora_count",
    "bootstrap_host",
    "bootstrap_port",
)


def from_dynamo_engine(engine: Any) -> LLMEngine:
    """
    Return an engine written against Dynamo's Python ``LLMEngine`` as one of ours, unchanged.

    Its ``generate(request, context)`` gets the request as the plain dict that the runtime would
    pass, and an `EngineContext`; its chunks are dicts (row E2). Exceptions of
    ``dynamo.llm.exceptions`` keep their kind. If its ``is_quiescent`` returns None, for unknown,
    that counts as False, so that nothing is freed early. Its other attributes, such as
    ``kv_event_sources``, are available on the result.

    Args:
        engine: The engine, not started.

    Raises:
        InvalidArgument: *engine* has no ``start`` or no ``generate``.

    >>> import asyncio
    >>> from rx_backend import EngineAdapter, PreprocessedRequest
    >>> class Echo:
    ...     async def start(self, worker_id): ...
    ...     async def generate(self, request, context):
    ...         for token_id in request["token_ids"]:
    ...             if context.is_stopped():
    ...                 break
    ...             yield {"token_ids": [token_id], "index": 0}
    ...         yield {"token_ids": [], "index": 0, "finish_reason": "stop"}
    >>> async def main():
    ...     adapter = EngineAdapter(from_dynamo_engine(Echo()))
    ...     async for item in await adapter.generate(PreprocessedRequest(token_ids=[7])):
    ...         print(item.data)
    >>> asyncio.run(main())
    LLMEngineOutput(token_ids=[7], index=0)
    LLMEngineOutput(finish_reason=FinishReason.STOP, index=0)
    """
    for name in ("start", "generate"):
        if not callable(getattr(engine, name, None)):
            raise InvalidArgument(
                f"engine: expected a Dynamo engine, {type(engine).__name__} has no method {name}"
            )
    aborts = callable(getattr(engine, "abort", None))
    return (_AbortsFromDynamo if aborts else _FromDynamo)(engine)


def from_any_engine(made: object) -> LLMEngine:
    """
    Return an engine of ours unchanged, and one of Dynamo's by :func:`from_dynamo_engine`.

    An engine is Dynamo's if its class derives from one in the package ``dynamo``, or has a
    ``from_args``, as all of Dynamo's engines do. Any other object counts as one of ours.

    Args:
        made: An engine, or the result of ``from_args``: a pair of an engine and its worker's
            config.

    >>> from rx_backend.engines import SampleEngine
    >>> ours = SampleEngine()
    >>> from_any_engine(ours) is ours
    True
    """
    if isinstance(made, tuple):
        made = cast("tuple[object, ...]", made)[0]
    if isinstance(made, LLMEngine):
        return made
    packages = {base.__module__.partition(".")[0] for base in type(made).__mro__}
    if "dynamo" in packages or callable(getattr(made, "from_args", None)):
        return from_dynamo_engine(made)
    return cast("LLMEngine", made)


class _FromDynamo(LLMEngine):
    """A Dynamo engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.needs_tokenizer = bool(getattr(engine, "needs_tokenizer", False))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine, name)

    async def start(self, worker_id: int) -> EngineConfig:
        config = await self._engine.start(worker_id)
        registration = getattr(config, "llm", None) or config
        found = {
            **{name: getattr(config, name, None) for name in ("model", *_NAMING)},
            **{name: getattr(registration, name, None) for name in _REGISTRATION},
        }
        known = {name: value for name, value in found.items() if value is not None}
        if "model" not in known:
            raise InvalidArgument(
                f"start() must return an EngineConfig with a model name, got {config!r}"
            )
        return EngineConfig(**known)

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> ChunkSource:
        return self._engine.generate(to_builtins(request), EngineContext(context))

    async def cleanup(self) -> None:
        await call_optional(self._engine, "cleanup")

    async def drain(self) -> None:
        await call_optional(self._engine, "drain")

    async def is_quiescent(self) -> bool:
        return bool(await call_optional(self._engine, "is_quiescent"))

    async def health_check_payload(self) -> dict[str, Any] | None:
        return await call_optional(self._engine, "health_check_payload")

    async def lost(self) -> str:
        return await until_lost(self._engine)


class _AbortsFromDynamo(_FromDynamo):
    """A Dynamo engine that can abort; the conformance kit tests that only if it exists."""

    async def abort(self, context: RequestContext) -> None:
        await self._engine.abort(EngineContext(context))
