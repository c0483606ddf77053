"""Engines that keep to the contract but for one rule each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, cast

from rx_backend import EngineConfig, LLMEngine, LLMEngineOutput, PreprocessedRequest, RequestContext
from rx_backend.errors import Cancelled, Disconnected
from rx_backend.testing import Rule

Chunks = AsyncGenerator[Any]

STEP_S = 0.01
FOR_EVER = 10 * 365 * 24 * 3600.0


class GoodEngine(LLMEngine):
    """Counts, one token a step, and stops when it is told to."""

    model = "good"

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model=self.model)

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[Any] | Awaitable[Any]:
        return self.chunks(request, context)

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        for token in range(request.stop_conditions.max_tokens or 4):
            await asyncio.sleep(STEP_S)
            if context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            yield LLMEngineOutput.token(token)
        yield LLMEngineOutput.length()


class DictEngine(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        while not context.is_stopped and request.stop_conditions.max_tokens != 8:
            yield {"token_ids": [1]}
        yield {"token_ids": [2], "finish_reason": "abort" if context.is_stopped else "stop"}


class CoroutineEngine(GoodEngine):
    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Awaitable[Any]:
        async def set_up() -> AsyncIterator[Any]:
            await asyncio.sleep(STEP_S)
            return self.chunks(request, context)

        return set_up()


class RaisingTerminalEngine(GoodEngine):
    """Ends every stream with a typed error, which is a terminal too."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if chunk.finish_reason is None:
                yield chunk
        raise Cancelled("stopped") if context.is_stopped else Disconnected("gone")


class FirstChunkIsLastEngine(GoodEngine):
    """Too fast to be stopped in mid-stream."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.cancelled() if context.is_stopped else LLMEngineOutput.stop()


class DuckEngine:
    """No LLMEngine at all, but one by its methods."""

    def __init__(self) -> None:
        self.inner = GoodEngine()
        self.start = self.inner.start
        self.generate = self.inner.generate
        self.cleanup = self.inner.cleanup


class WaitsAfterTerminalEngine(GoodEngine):
    """Never yields again after its terminal, and never returns either."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield chunk
        await asyncio.sleep(FOR_EVER)


class KeepsSlotsById(GoodEngine):
    """Knows its requests by id, as most engines do."""

    def __init__(self) -> None:
        self.slots: set[str] = set()

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        assert context.id not in self.slots
        self.slots.add(context.id)
        async for chunk in super().chunks(request, context):
            yield chunk


class StopsByAbortAlone(GoodEngine):
    """Does not look at the context: its request ends when it is aborted."""

    def __init__(self) -> None:
        self.aborted: set[str] = set()

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, RequestContext()):
            if context.id in self.aborted:
                yield LLMEngineOutput.cancelled()
                return
            yield chunk

    async def abort(self, context: RequestContext) -> None:
        await asyncio.sleep(STEP_S)
        self.aborted.add(context.id)


class UsesEqualChunksAgain(GoodEngine):
    """Yields one chunk many times, and leaves it as it is."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        shared = LLMEngineOutput([1], cum_log_probs=float("nan"))
        async for chunk in super().chunks(request, context):
            yield shared if chunk.token_ids else chunk


class SeveralAnswers(GoodEngine):
    """Gives ``n`` answers that take turns, and the later ones end later."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        answers = range(request.sampling_options.n or 1)
        async for chunk in super().chunks(request, context):
            for index in answers:
                yield LLMEngineOutput(
                    chunk.token_ids, index=index, finish_reason=chunk.finish_reason
                )
                if chunk.finish_reason is not None and index + 1 in answers:
                    yield LLMEngineOutput([7], index=index + 1)


GOOD = [
    GoodEngine,
    DictEngine,
    CoroutineEngine,
    RaisingTerminalEngine,
    FirstChunkIsLastEngine,
    DuckEngine,
    WaitsAfterTerminalEngine,
    KeepsSlotsById,
    StopsByAbortAlone,
    UsesEqualChunksAgain,
    SeveralAnswers,
]


class CannotBeMade(GoodEngine):
    def __init__(self) -> None:
        raise OSError("no device")


class StartRaises(GoodEngine):
    async def start(self, worker_id: int) -> EngineConfig:
        raise OSError("no device")


class StartHangs(GoodEngine):
    async def start(self, worker_id: int) -> EngineConfig:
        await asyncio.sleep(FOR_EVER)
        return EngineConfig(model="late")


class NamelessModel(GoodEngine):
    model = " "


class NoConfig(GoodEngine):
    async def start(self, worker_id: int) -> EngineConfig:
        return cast("EngineConfig", None)


class GenerateGivesAList(GoodEngine):
    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Awaitable[Any]:
        if context.is_stopped:
            raise Cancelled("stopped")
        return cast("Awaitable[Any]", [1, 2])


class UntypedError(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if chunk.token_ids == [3]:
                raise KeyError("slot")
            yield chunk


class CancelsItself(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if chunk.token_ids == [3]:
                raise asyncio.CancelledError
            yield chunk


class NoChunk(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if context.is_stopped:
                yield chunk


class HangsBeforeItsFirstChunk(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        await context.stopped()
        yield LLMEngineOutput.cancelled()


class RefusesTheRequest(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        if not context.is_stopped:
            raise Disconnected("no peer")
        yield LLMEngineOutput.cancelled()


class YieldsText(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield "hello"
        async for chunk in super().chunks(request, context):
            yield chunk


class YieldsAReasonAsANumber(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if chunk.finish_reason is not None and not context.is_stopped:
                chunk.finish_reason = cast("Any", 7)
            yield chunk


class YieldsAMalformedDict(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield {"token_ids": [1], "index": "first"} if chunk.token_ids else chunk


class NegativeToken(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.token(-1)
        async for chunk in super().chunks(request, context):
            yield chunk


class TokensAsTuple(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput(cast("list[int]", (1, 2)))
        async for chunk in super().chunks(request, context):
            yield chunk


class TokensAsTextInADict(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield {"token_ids": ["one"]}
        async for chunk in super().chunks(request, context):
            yield chunk


class NoTerminal(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if context.is_stopped or chunk.finish_reason is None:
                yield chunk


class HangsBeforeItsTerminal(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.token(1)
        await context.stopped()
        yield LLMEngineOutput.cancelled()


class NeverEndsNorWaits(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        while not context.is_stopped:
            yield LLMEngineOutput.token(1)
        yield LLMEngineOutput.cancelled()


class GoesOnAfterTerminal(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield chunk
        await asyncio.sleep(1.0)
        yield LLMEngineOutput.token(9)


class TwoTerminals(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield chunk
        yield LLMEngineOutput.stop()


class RaisesAfterTerminal(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield chunk
        raise Disconnected("late")


class OneSharedCounter(GoodEngine):
    """Fails when a second stream runs beside a first."""

    running = 0

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        self.running += 1
        try:
            async for chunk in super().chunks(request, context):
                if self.running > 1:
                    raise Disconnected("slot taken")
                yield chunk
        finally:
            self.running -= 1


class LosesItsTerminalWhenBusy(GoodEngine):
    running = 0

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        self.running += 1
        try:
            async for chunk in super().chunks(request, context):
                if self.running == 1 or chunk.finish_reason is None:
                    yield chunk
        finally:
            self.running -= 1


class IgnoresTheStop(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, RequestContext()):
            yield chunk


class SeesTheStopTooLate(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if context.is_stopped:
                await asyncio.sleep(2.5)
            yield chunk


class EndsAStoppedStreamAsStop(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield LLMEngineOutput.stop() if context.is_stopped else chunk


class EndsAStoppedStreamWithoutTerminal(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if context.is_stopped:
                return
            yield chunk


class ClosingRaises(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        try:
            async for chunk in super().chunks(request, context):
                yield chunk
        except GeneratorExit:
            raise OSError("already released") from None


class ClosingHangs(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        try:
            async for chunk in super().chunks(request, context):
                yield chunk
        except GeneratorExit:
            await asyncio.sleep(FOR_EVER)


class UsesItsChunkAgain(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        one = LLMEngineOutput()
        async for chunk in super().chunks(request, context):
            one.token_ids = chunk.token_ids
            yield one if chunk.token_ids else chunk


class UsesItsListAgain(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        ids: list[int] = []
        async for chunk in super().chunks(request, context):
            ids[:] = chunk.token_ids
            yield {"token_ids": ids} if chunk.token_ids else chunk


class EmptiesAListAfterwards(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            chunk.log_probs = [-1.0] * len(chunk.token_ids)
            yield chunk
            chunk.log_probs.clear()


class BlocksTheLoop(GoodEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        time.sleep(0.15)  # noqa: ASYNC251
        async for chunk in super().chunks(request, context):
            yield chunk


class BlocksTheLoopBehindTheScenes(GoodEngine):
    """Its chunks are made by a task of its own."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async def step() -> None:
            time.sleep(0.15)  # noqa: ASYNC251

        await asyncio.create_task(step())
        async for chunk in super().chunks(request, context):
            yield chunk


class AbortRaises(GoodEngine):
    async def abort(self, context: RequestContext) -> None:
        raise KeyError(context.id)


class AbortHangs(GoodEngine):
    async def abort(self, context: RequestContext) -> None:
        await asyncio.sleep(FOR_EVER)


class AbortDoesNothing(IgnoresTheStop):
    async def abort(self, context: RequestContext) -> None:
        await asyncio.sleep(STEP_S)


class CleanupRaises(GoodEngine):
    started = False

    async def start(self, worker_id: int) -> EngineConfig:
        self.started = True
        return await super().start(worker_id)

    async def cleanup(self) -> None:
        if self.started:
            self.started = False
            raise OSError("still in use")


class CleanupHangs(CleanupRaises):
    async def cleanup(self) -> None:
        if self.started:
            self.started = False
            await asyncio.sleep(FOR_EVER)


class SecondCleanupRaises(GoodEngine):
    cleaned = False

    async def cleanup(self) -> None:
        if self.cleaned:
            raise OSError("already closed")
        self.cleaned = True


class UnstartedCleanupRaises(CleanupRaises):
    async def cleanup(self) -> None:
        if not self.started:
            raise OSError("nothing to close")


BROKEN: list[tuple[type[GoodEngine], Rule]] = [
    (CannotBeMade, Rule.START_FAILED),
    (StartRaises, Rule.START_FAILED),
    (StartHangs, Rule.START_FAILED),
    (NamelessModel, Rule.MODEL_NAME_EMPTY),
    (NoConfig, Rule.MODEL_NAME_EMPTY),
    (GenerateGivesAList, Rule.GENERATE_FAILED),
    (UntypedError, Rule.GENERATE_FAILED),
    (CancelsItself, Rule.GENERATE_FAILED),
    (NoChunk, Rule.NO_CHUNK),
    (HangsBeforeItsFirstChunk, Rule.NO_CHUNK),
    (RefusesTheRequest, Rule.NO_CHUNK),
    (YieldsText, Rule.WRONG_ITEM_TYPE),
    (YieldsAReasonAsANumber, Rule.WRONG_ITEM_TYPE),
    (YieldsAMalformedDict, Rule.WRONG_ITEM_TYPE),
    (NegativeToken, Rule.BAD_TOKEN_IDS),
    (TokensAsTuple, Rule.BAD_TOKEN_IDS),
    (TokensAsTextInADict, Rule.BAD_TOKEN_IDS),
    (NoTerminal, Rule.NO_TERMINAL),
    (HangsBeforeItsTerminal, Rule.NO_TERMINAL),
    (NeverEndsNorWaits, Rule.NO_TERMINAL),
    (GoesOnAfterTerminal, Rule.ITEM_AFTER_TERMINAL),
    (TwoTerminals, Rule.ITEM_AFTER_TERMINAL),
    (RaisesAfterTerminal, Rule.ITEM_AFTER_TERMINAL),
    (OneSharedCounter, Rule.INTERLEAVED_CALLS_FAILED),
    (LosesItsTerminalWhenBusy, Rule.INTERLEAVED_CALLS_FAILED),
    (IgnoresTheStop, Rule.CANCELLATION_NOT_SEEN),
    (SeesTheStopTooLate, Rule.CANCELLATION_NOT_SEEN),
    (EndsAStoppedStreamAsStop, Rule.CANCELLED_NOT_TERMINAL),
    (EndsAStoppedStreamWithoutTerminal, Rule.CANCELLED_NOT_TERMINAL),
    (UsesItsChunkAgain, Rule.CHUNK_TOUCHED),
    (UsesItsListAgain, Rule.CHUNK_TOUCHED),
    (EmptiesAListAfterwards, Rule.CHUNK_TOUCHED),
    (BlocksTheLoop, Rule.LOOP_BLOCKED),
    (BlocksTheLoopBehindTheScenes, Rule.LOOP_BLOCKED),
    (AbortRaises, Rule.ABORT_FAILED),
    (AbortHangs, Rule.ABORT_FAILED),
    (AbortDoesNothing, Rule.ABORT_FAILED),
    (ClosingRaises, Rule.CLOSE_FAILED),
    (ClosingHangs, Rule.CLOSE_FAILED),
    (CleanupRaises, Rule.CLEANUP_FAILED),
    (CleanupHangs, Rule.CLEANUP_FAILED),
    (SecondCleanupRaises, Rule.SECOND_CLEANUP_FAILED),
    (UnstartedCleanupRaises, Rule.UNSTARTED_CLEANUP_FAILED),
]
