"""The base of engines that combine other engines."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from operators import deferred_abort, validate_chunks
from operators.assembly import Pump, close_quietly, first_pull, tokens_in
from operators.authoring import FusedRun
from rx_backend.context import RequestContext
from rx_backend.engine import (
    AnyChunk,
    ChunkStream,
    EngineConfig,
    LLMEngine,
    call_optional,
    is_engine,
    open_chunks,
    start_abort,
    until_lost,
)
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, convert_output

__all__ = ("CombinedEngine", "EngineCall")


class EngineCall:
    """
    One engine's part in a request: its own context, and a gate for its abort.

    A stop of the request reaches the context at once. The gate then aborts the engine once, in
    decode mode not before its own first token (rows A2 to A5), and never before its ``generate`` has
    returned: an engine can't abort what it does not know yet.

    Args:
        engine: The engine.
        parent: The request's context.
        name: Added to the request's id in the id of the call's context.
    """

    def __init__(self, engine: LLMEngine, parent: RequestContext, name: str = "") -> None:
        self.engine = engine
        self.context = parent.child(f"{parent.id}/{name}" if name else None)
        self._parent = parent
        self._run: FusedRun[LLMEngineOutput] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._is_asked = False
        self._has_due_abort = False

    async def open(self, request: PreprocessedRequest) -> FusedRun[LLMEngineOutput]:
        """Call the engine's ``generate`` and return its chunks, with the abort gate."""
        own = contextvars.copy_context()
        chunks = await open_chunks(self.engine, request, self.context, own_context=own)
        abort = partial(start_abort, self.engine, self.context, own)
        self._run = self._behind_gate(chunks, own, abort, enters=True)
        return self._run

    def pump(
        self,
        request: PreprocessedRequest,
        on_chunk: Callable[[LLMEngineOutput], None],
        on_end: Callable[[BaseException | None], None],
        on_tokens: Callable[[int], None],
    ) -> Pump[LLMEngineOutput]:
        """
        Return a pump of the engine's chunks, with the abort gate; its task also calls ``generate``.

        Args:
            request: The request.
            on_chunk: Called with each chunk.
            on_end: Called with the error at the end, or None.
            on_tokens: Called with the number of tokens in each chunk that the engine yields,
                including one in answer to its cancellation, which is not handed out.
        """
        own = contextvars.copy_context()
        chunks = _counted(partial(self._ask, request, own), on_tokens)
        abort = partial(self._abort_once_asked, own)
        return Pump(self._behind_gate(chunks, own, abort, enters=False), on_chunk, on_end)

    async def _ask(self, request: PreprocessedRequest, own: contextvars.Context) -> ChunkStream:
        """Call the engine's ``generate``, then make an abort that was due earlier."""
        chunks = await open_chunks(self.engine, request, self.context)
        self._is_asked = True
        if self._has_due_abort:
            start_abort(self.engine, self.context, own)
        return chunks

    def _abort_once_asked(self, own: contextvars.Context) -> None:
        self._has_due_abort = True
        if self._is_asked:
            start_abort(self.engine, self.context, own)

    def _behind_gate(
        self,
        chunks: ChunkStream,
        own: contextvars.Context,
        abort: Callable[[], None],
        *,
        enters: bool,
    ) -> FusedRun[LLMEngineOutput]:
        context, defers = self.context, self.context.defers_abort
        if defers:
            self._unlisten = context.first_token().listen(self._parent.notify_first_token)
        gate = deferred_abort(
            abort,
            stop=context.stopped(),
            notified=context.first_token() if defers else None,
            defer=defers,
            call_soon=asyncio.get_running_loop().call_soon,
        )
        return FusedRun(chunks, [_WELL_FORMED, gate], own_context=own, enters=enters)

    def report_queue_time(self) -> None:
        """Set the request's queue time to that of this engine."""
        self._parent.queued_s = self.context.queued_s

    def leave(self) -> None:
        """Detach from the request: its signals no longer reach this engine. Idempotent."""
        self.context.detach()
        if self._unlisten is not None:
            self._unlisten()

    async def aclose(self) -> None:
        """Drop the engine's chunks and wait until they are released."""
        self.leave()
        run, self._run = self._run, None
        if run is not None:
            await run.aclose()


class CombinedEngine(LLMEngine):
    """
    Base of engines that combine other engines, which they start and clean up.

    It needs a tokenizer if one of them does.

    Args:
        engines: The engines; one listed twice is started once.

    Raises:
        TypeError: One of them is not an engine.
    """

    def __init__(self, engines: Sequence[LLMEngine]) -> None:
        name = type(self).__name__
        if not engines:
            raise TypeError(f"{name}: engines: expected one or more")
        for engine in engines:
            if not is_engine(engine):
                raise TypeError(f"{name}: engines: expected engines, got {engine!r}")
        self.engines = tuple(engines)
        self.needs_tokenizer = any(getattr(engine, "needs_tokenizer", False) for engine in engines)
        self._distinct = tuple({id(engine): engine for engine in engines}.values())
        self._lost: set[int] = set()

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Start all engines, one after the other, and return the first one's config.

        In sequence, engines that share a device can measure its free memory.
        """
        configs = [await engine.start(worker_id) for engine in self._distinct]
        return configs[0]

    async def abort(self, context: RequestContext) -> None:
        """Stop the request, which aborts the engines that work on it, each through its own gate."""
        context.stop_generating()

    async def cleanup(self) -> None:
        """Clean up all engines, even if some of them fail; several failures raise a group."""
        failures: list[Exception] = []
        for engine in self._distinct:
            try:
                await engine.cleanup()
            except Exception as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("engines failed to clean up", failures)

    async def is_quiescent(self) -> bool:
        """Return whether all engines are quiescent."""
        answers = [await call_optional(engine, "is_quiescent", True) for engine in self._distinct]
        return all(answers)

    async def drain(self) -> None:
        """Finish the background work of all engines."""
        for engine in self._distinct:
            await call_optional(engine, "drain")

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return the first engine's payload."""
        return await call_optional(self.engines[0], "health_check_payload")

    async def lost(self) -> str:
        """Wait until all engines are lost; return their reasons (row E7)."""
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(self._until_lost(engine)) for engine in self._distinct]
        return "; ".join(task.result() for task in waiting)

    async def _until_lost(self, engine: LLMEngine) -> str:
        reason = await until_lost(engine)
        self._lost.add(id(engine))
        return reason

    def _is_lost(self, engine: LLMEngine) -> bool:
        """Whether *engine* has reported that it is lost, to the awaiter of :meth:`lost`."""
        return id(engine) in self._lost


async def _counted(
    open_: Callable[[], Awaitable[ChunkStream]], on_tokens: Callable[[int], None]
) -> AsyncGenerator[AnyChunk]:
    """Stream an engine's chunks, opened at the first pull, with their tokens counted."""
    chunks = await open_()
    try:
        chunk = await first_pull(chunks)
        while True:
            on_tokens(tokens_in(chunk))
            yield chunk
            chunk = await anext(chunks)
    except StopAsyncIteration:
        return
    finally:
        await close_quietly(chunks, "closing an engine's stream failed")


_WELL_FORMED = validate_chunks(
    LLMEngineOutput, convert_output, error=InvalidArgument, normalize=convert_output
)
