"""Engines for the conformance kit: good ones, and ones that break one rule each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

from msgspec.structs import replace

from rx_backend import EngineConfig, LLMEngine, LLMEngineOutput, PreprocessedRequest, RequestContext
from rx_backend.errors import Cancelled, Disconnected
from rx_backend.testing import Rule

__all__ = (
    "BROKEN",
    "GOOD",
    "Chunks",
    "CorrectEngine",
    "DuckEngine",
    "SeveralAnswers",
    "broken",
    "edited",
)

Chunks: TypeAlias = AsyncGenerator[Any]

STEP_S = 0.01
FOR_EVER = 10 * 365 * 24 * 3600.0


class CorrectEngine(LLMEngine):
    """Counts, one token a step, and sees a stop."""

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


# Engines that differ in what they make of each chunk of a good one: they yield a chunk or any other
# item, wait so many seconds, raise, call a function, or return.
RETURN = object()
Edit: TypeAlias = Callable[[LLMEngineOutput, RequestContext], list[Any]]


def edited(name: str, edit: Edit) -> type[CorrectEngine]:
    class Edited(CorrectEngine):
        async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
            async for chunk in super().chunks(request, context):
                for step in edit(chunk, context):
                    if step is RETURN:
                        return
                    if isinstance(step, BaseException):
                        raise step.with_traceback(None)
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    elif callable(step):
                        await cast("Callable[[], Awaitable[None]]", step)()
                    else:
                        yield step

    Edited.__qualname__ = Edited.__name__ = name
    return Edited


def at_first(*steps: Any) -> Edit:
    """Return an edit that does something before the first token."""
    return lambda chunk, _: [*(steps if chunk.token_ids == [0] else ()), chunk]


def at_last(*steps: Any) -> Edit:
    """Return an edit that does something behind the terminal."""
    return lambda chunk, _: [chunk, *(steps if chunk.finish_reason is not None else ())]


def in_place_of_token(number: int, *steps: Any) -> Edit:
    return lambda chunk, _: list(steps) if chunk.token_ids == [number] else [chunk]


async def block() -> None:
    time.sleep(0.15)  # noqa: ASYNC251


async def block_in_a_task() -> None:
    await asyncio.create_task(block())


class DictEngine(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        while not context.is_stopped and request.stop_conditions.max_tokens != 8:
            yield {"token_ids": [1]}
        yield {"token_ids": [2], "finish_reason": "abort" if context.is_stopped else "stop"}


class CoroutineEngine(CorrectEngine):
    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Awaitable[Any]:
        async def set_up() -> AsyncIterator[Any]:
            await asyncio.sleep(STEP_S)
            return self.chunks(request, context)

        return set_up()


class FirstChunkIsLastEngine(CorrectEngine):
    """Too fast to be stopped in mid-stream."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.cancelled() if context.is_stopped else LLMEngineOutput.stop()


class DuckEngine:
    """No LLMEngine, but one by its methods."""

    def __init__(self) -> None:
        self.inner = CorrectEngine()
        self.start = self.inner.start
        self.generate = self.inner.generate
        self.cleanup = self.inner.cleanup


class StopsByAbortAlone(CorrectEngine):
    """Knows its requests by id, and does not look at the context: a request ends when it is aborted."""

    def __init__(self) -> None:
        self.running: set[str] = set()

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        assert context.id not in self.running
        self.running.add(context.id)
        async for chunk in super().chunks(request, RequestContext()):
            if context.id not in self.running:
                yield LLMEngineOutput.cancelled()
                return
            yield chunk

    async def abort(self, context: RequestContext) -> None:
        await asyncio.sleep(STEP_S)
        self.running.discard(context.id)


class SeveralAnswers(CorrectEngine):
    """Gives ``n`` answers that take turns, and the later ones end later."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        answers = range(request.sampling_options.n or 1)
        async for chunk in super().chunks(request, context):
            for index in answers:
                yield replace(chunk, index=index)
                if chunk.finish_reason is not None and index + 1 in answers:
                    yield LLMEngineOutput([7], index=index + 1)


def with_config(**fields: Any) -> type[CorrectEngine]:
    class WithConfig(CorrectEngine):
        async def start(self, worker_id: int) -> EngineConfig:
            return EngineConfig(model=self.model, **fields)

    WithConfig.__name__ = WithConfig.__qualname__ = f"WithConfig{fields}"
    return WithConfig


def with_method(
    name: str, method: Any, base: type[CorrectEngine] = CorrectEngine
) -> type[CorrectEngine]:
    """Return an engine with another method; its name is that of both."""
    made = f"{name}_{method.__name__}".title().replace("_", "")
    return cast("type[CorrectEngine]", type(made, (base,), {name: method}))


def with_health_payload(payload: Any) -> type[CorrectEngine]:
    async def answers(_: object) -> Any:
        return payload

    return with_method("health_check_payload", answers)


def raise_at_the_end(chunk: LLMEngineOutput, context: RequestContext) -> list[Any]:
    error = Cancelled("stopped") if context.is_stopped else Disconnected("gone")
    return [chunk if chunk.finish_reason is None else error]


SHARED = LLMEngineOutput([1], cum_log_probs=float("nan"))

GOOD: list[type[object]] = [
    *(CorrectEngine, DictEngine, CoroutineEngine, FirstChunkIsLastEngine, DuckEngine),
    *(StopsByAbortAlone, SeveralAnswers),
    with_health_payload({"token_ids": [1]}),
    with_config(context_length=0, max_num_seqs=8),
    edited("RaisesATypedErrorAtItsEnd", raise_at_the_end),
    edited("WaitsAfterItsTerminal", at_last(FOR_EVER)),
    edited("YieldsOneChunkAgain", lambda chunk, _: [SHARED if chunk.token_ids else chunk]),
]


def fails_to_construct(_: object) -> None:
    raise OSError("no device")


async def raises(*_: object) -> None:
    raise OSError("no device")


async def exits(*_: object) -> None:
    """End the process, as a command line's parser does."""
    raise SystemExit(2)


async def hangs(*_: object) -> None:
    await asyncio.sleep(FOR_EVER)


async def does_nothing(*_: object) -> None: ...


async def ends_at_once(_: object) -> str:
    return "no device"


def is_plain(*_: object) -> EngineConfig:
    return EngineConfig(model="good")


class NamelessModel(CorrectEngine):
    model = " "


class GenerateGivesAList(CorrectEngine):
    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Awaitable[Any]:
        if context.is_stopped:
            raise Cancelled("stopped")
        return cast("Awaitable[Any]", [1, 2])


class TreatsTheSignalAsSet(CorrectEngine):
    """Means ``is_stopped``: a signal is true whether it is set or not."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.cancelled() if context.stopped() else LLMEngineOutput.stop()


class NeverEndsNorWaits(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        while not context.is_stopped:
            yield LLMEngineOutput.token(1)
        yield LLMEngineOutput.cancelled()


class WaitsForTheStop(CorrectEngine):
    """Has nothing to yield before it is stopped, but for *first*."""

    first: tuple[LLMEngineOutput, ...] = ()

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        for chunk in self.first:
            yield chunk
        await context.stopped()
        yield LLMEngineOutput.cancelled()


class HangsBeforeItsTerminal(WaitsForTheStop):
    first = (LLMEngineOutput.token(1),)


class OneSharedCounter(CorrectEngine):
    """Fails, or loses its terminal, when a second stream runs beside a first."""

    running = 0
    loses_terminal = False

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        self.running += 1
        try:
            async for chunk in super().chunks(request, context):
                if self.running > 1 and not self.loses_terminal:
                    raise Disconnected("slot taken")
                if self.running == 1 or chunk.finish_reason is None:
                    yield chunk
        finally:
            self.running -= 1


class LosesItsTerminalWhenBusy(OneSharedCounter):
    loses_terminal = True


class IgnoresTheStop(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, RequestContext()):
            yield chunk


class ClosingRaises(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        try:
            async for chunk in super().chunks(request, context):
                yield chunk
        except GeneratorExit:
            raise OSError("already released") from None


class ClosingHangs(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        try:
            async for chunk in super().chunks(request, context):
                yield chunk
        except GeneratorExit:
            await asyncio.sleep(FOR_EVER)


class ReusesItsChunk(CorrectEngine):
    as_mapping = False

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        one = LLMEngineOutput()
        async for chunk in super().chunks(request, context):
            one.token_ids[:] = chunk.token_ids
            again = {"token_ids": one.token_ids} if self.as_mapping else one
            yield again if chunk.token_ids else chunk


class ReusesItsList(ReusesItsChunk):
    as_mapping = True


class EmptiesAListAfterwards(CorrectEngine):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            chunk.log_probs = [-1.0] * len(chunk.token_ids)
            yield chunk
            chunk.log_probs.clear()


class CleanupRaises(CorrectEngine):
    """Fails the first clean-up of an engine that was started."""

    started = cleaned = False

    async def start(self, worker_id: int) -> EngineConfig:
        self.started = True
        return await super().start(worker_id)

    async def cleanup(self) -> None:
        first, self.cleaned = not self.cleaned, True
        if self.started and first:
            raise OSError("still in use")


class CleanupHangs(CleanupRaises):
    async def cleanup(self) -> None:
        try:
            await super().cleanup()
        except OSError:
            await asyncio.sleep(FOR_EVER)


class SecondCleanupRaises(CleanupRaises):
    async def cleanup(self) -> None:
        if self.cleaned:
            raise OSError("already closed")
        self.cleaned = True


class UnstartedCleanupRaises(CleanupRaises):
    async def cleanup(self) -> None:
        if not self.started:
            raise OSError("nothing to close")


def is_last(chunk: LLMEngineOutput) -> bool:
    return chunk.finish_reason is not None


EDITS: dict[Rule, dict[str, Edit]] = {
    Rule.GENERATE_FAILED: {
        "UntypedError": in_place_of_token(3, KeyError("slot")),
        "ExitsInMidStream": in_place_of_token(3, SystemExit(2)),
        "CancelsItself": in_place_of_token(3, asyncio.CancelledError()),
    },
    Rule.NO_CHUNK: {
        "NoChunk": lambda chunk, context: [chunk] if context.is_stopped else [],
        "RefusesTheRequest": lambda chunk, context: [
            chunk if context.is_stopped else Disconnected("no peer")
        ],
    },
    Rule.WRONG_ITEM_TYPE: {
        "YieldsText": at_first("hello"),
        "YieldsAReasonAsANumber": lambda chunk, context: [
            replace(chunk, finish_reason=7) if is_last(chunk) and not context.is_stopped else chunk
        ],
        "YieldsAMalformedDict": in_place_of_token(1, {"token_ids": [1], "index": "first"}),
        "YieldsAMalformedChunk": in_place_of_token(1, LLMEngineOutput([1], index=cast("int", "1"))),
    },
    Rule.BAD_TOKEN_IDS: {
        "NegativeToken": at_first(LLMEngineOutput.token(-1)),
        "TokensAsTuple": at_first(LLMEngineOutput(cast("list[int]", (1, 2)))),
        "TokensAsTextInADict": at_first({"token_ids": ["one"]}),
        **{
            f"TokensAre{type(wrong).__name__}": at_first(LLMEngineOutput(cast("list[int]", wrong)))
            for wrong in cast("list[object]", [5, None, {}, {1}, iter([1])])
        },
    },
    Rule.NO_TERMINAL: {
        "NoTerminal": lambda chunk, context: [
            *([chunk] if context.is_stopped or not is_last(chunk) else [])
        ],
    },
    Rule.ITEM_AFTER_TERMINAL: {
        "ContinuesAfterTerminal": at_last(1.0, LLMEngineOutput.token(9)),
        "TwoTerminals": at_last(LLMEngineOutput.stop()),
        "RaisesAfterTerminal": at_last(Disconnected("late")),
        "ExitsAfterTerminal": at_last(SystemExit(2)),
    },
    Rule.UNREQUESTED_ANSWER: {
        "YieldsForAnotherAnswer": at_first(LLMEngineOutput([9], index=1)),
        "NumbersItsAnswerFromOne": lambda chunk, _: [replace(chunk, index=1)],
    },
    Rule.CANCELLATION_IGNORED: {
        "SeesTheStopTooLate": lambda chunk, context: (
            [2.5, chunk] if context.is_stopped else [chunk]
        ),
    },
    Rule.NO_CANCELLED_TERMINAL: {
        "EndsAStoppedStreamAsStop": lambda chunk, context: [
            LLMEngineOutput.stop() if context.is_stopped else chunk
        ],
        "EndsAStoppedStreamWithoutTerminal": lambda chunk, context: [
            RETURN if context.is_stopped else chunk
        ],
    },
    Rule.LOOP_BLOCKED: {
        "BlocksTheLoop": at_first(block),
        "BlocksTheLoopInATask": at_first(block_in_a_task),
    },
}

BROKEN: list[tuple[type[CorrectEngine], Rule]] = [
    (with_method("__init__", fails_to_construct), Rule.START_FAILED),
    *((with_method("start", each), Rule.START_FAILED) for each in (raises, exits, hangs, is_plain)),
    (NamelessModel, Rule.MODEL_NAME_EMPTY),
    (with_method("start", does_nothing), Rule.MODEL_NAME_EMPTY),
    *(
        (with_config(**{name: number}), Rule.BAD_CONFIG)
        for name in ("context_length", "max_num_seqs", "bootstrap_port")
        for number in ("4096", -5, 0.5, True)
    ),
    (GenerateGivesAList, Rule.GENERATE_FAILED),
    (TreatsTheSignalAsSet, Rule.UNREQUESTED_CANCELLATION),
    (WaitsForTheStop, Rule.NO_CHUNK),
    *((engine, Rule.NO_TERMINAL) for engine in (HangsBeforeItsTerminal, NeverEndsNorWaits)),
    (OneSharedCounter, Rule.INTERLEAVED_CALLS_FAILED),
    (LosesItsTerminalWhenBusy, Rule.INTERLEAVED_CALLS_FAILED),
    (IgnoresTheStop, Rule.CANCELLATION_IGNORED),
    (ReusesItsChunk, Rule.CHUNK_MODIFIED),
    (ReusesItsList, Rule.CHUNK_MODIFIED),
    (EmptiesAListAfterwards, Rule.CHUNK_MODIFIED),
    *((with_method("abort", each), Rule.ABORT_FAILED) for each in (raises, exits, hangs)),
    (with_method("abort", does_nothing, IgnoresTheStop), Rule.ABORT_FAILED),
    *((engine, Rule.CLOSE_FAILED) for engine in (ClosingRaises, ClosingHangs)),
    *((engine, Rule.CLEANUP_FAILED) for engine in (CleanupRaises, CleanupHangs)),
    *(
        (with_method(name, is_plain), Rule.OPTIONAL_METHOD_FAILED)
        for name in ("health_check_payload", "is_quiescent")
    ),
    *(
        (with_health_payload(payload), Rule.OPTIONAL_METHOD_FAILED)
        for payload in ("hello", {}, {"tokens": [1]}, {"token_ids": "a"})
    ),
    *((with_method("drain", each), Rule.OPTIONAL_METHOD_FAILED) for each in (raises, exits)),
    *(
        (with_method("lost", each), Rule.LOST_WHILE_WORKING)
        for each in (is_plain, ends_at_once, raises, exits)
    ),
    (SecondCleanupRaises, Rule.SECOND_CLEANUP_FAILED),
    (UnstartedCleanupRaises, Rule.UNSTARTED_CLEANUP_FAILED),
    *((edited(name, edit), rule) for rule, edits in EDITS.items() for name, edit in edits.items()),
]


def broken(name: str) -> type[CorrectEngine]:
    """Return the broken engine of that name."""
    return next(engine for engine, _ in BROKEN if engine.__name__ == name)
