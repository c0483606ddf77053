"""The steps of the conformance kit: a worker's calls, in its order."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from time import perf_counter
from typing import Annotated, Any, TypeAlias, TypedDict, TypeVar, cast

from msgspec.structs import replace

from operators.assembly import CHECKED
from operators.authoring import Seconds
from rx_backend.dynamo import from_any_engine
from rx_backend.engine import (
    EngineConfig,
    LLMEngine,
    check_config,
    check_model_name,
    until_lost,
)
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest, StopConditions, convert_request
from rx_backend.testing.conformance_report import ConformanceReport, Rule, Violation
from rx_backend.testing.conformance_stream import (
    RELEASE_S,
    Plan,
    Stream,
    run_within,
    settle,
    wait_for_any,
)
from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = ("Check", "ConformanceOptions", "EngineFactory")

T = TypeVar("T")

EngineFactory: TypeAlias = Callable[[], object | Awaitable[object]]
"""Returns a new engine, or an awaitable of one; see `from_any_engine`."""

_ENGINE_RULES = {
    Rule.START_FAILED,
    Rule.MODEL_NAME_EMPTY,
    Rule.BAD_CONFIG,
    Rule.CLEANUP_FAILED,
    Rule.SECOND_CLEANUP_FAILED,
    Rule.UNSTARTED_CLEANUP_FAILED,
}
_CLEANUP = methodcaller("cleanup")
_MAY_BLOCK_S = 0.1
_BEAT_S = 0.01
_TRIES = 3
_START_TIMEOUT_S = 600.0  # The time limit for an engine's start, and for its cleanup.
_STREAMS = 8  # The number of concurrent streams.
_FEW_TOKENS, _MANY_TOKENS = 8, 4096


class ConformanceOptions(TypedDict, total=False):
    """
    Options of the conformance kit. All times are seconds on the loop's clock.

    Attributes:
        request: The streams' request; three prompt tokens and at most 8 new ones by default. The
            stream that is stopped after its first chunk requests at most 4096 new ones.
        timeout_s: The time limit for an engine to end a stopped stream (2).
        stream_timeout_s: The time limit for a stream's terminal (30).
    """

    request: Annotated[PreprocessedRequest, CHECKED]
    timeout_s: Seconds
    stream_timeout_s: Seconds


@dataclass
class Check:
    """One run of the kit on one engine, in the order of a worker's calls."""

    factory: EngineFactory
    request: PreprocessedRequest | None = None
    timeout_s: float = 2.0
    stream_timeout_s: float = 30.0
    tried: set[Rule] = field(default_factory=set[Rule])
    found: dict[Rule, Violation] = field(default_factory=dict[Rule, Violation])
    _stalled: bool = False

    async def run(self) -> ConformanceReport:
        """Check every rule, and return the report."""
        threads = set(threading.enumerate())
        own_threads: list[str] = []
        if unstarted := await self._call(Rule.START_FAILED, "the factory", self._make):
            await self._call(Rule.UNSTARTED_CLEANUP_FAILED, "cleanup", _CLEANUP, unstarted)
        if engine := await self._call(Rule.START_FAILED, "the factory", self._make):
            config = await self._call(Rule.START_FAILED, "start", methodcaller("start", 0), engine)
            if Rule.START_FAILED not in self.found:
                self._check_config(config)
                async with self._not_lost(engine):
                    await self._check_health_payload(engine)
                    await self._check_streams(engine, *self._requests(config))
                    await self._call_optional(engine, "is_quiescent")
                await self._call_optional(engine, "drain")
                own_threads = [each.name for each in set(threading.enumerate()) - threads]
            await self._call(Rule.CLEANUP_FAILED, "cleanup", _CLEANUP, engine)
            await self._call(Rule.SECOND_CLEANUP_FAILED, "cleanup", _CLEANUP, engine)
        return ConformanceReport(
            engine=getattr(self.factory, "__qualname__", None) or repr(self.factory),
            violations=[self.found[rule] for rule in Rule if rule in self.found],
            unchecked=[rule for rule in Rule if rule not in self.tried],
            hint=_clock_hint(own_threads, self._stalled) if self.found else "",
        )

    def _find(self, *violations: Violation) -> None:
        for violation in violations:
            self.found.setdefault(violation.rule, violation)

    async def _make(self) -> LLMEngine:
        made = self.factory()
        return from_any_engine(await made if inspect.isawaitable(made) else made)

    async def _call(
        self, rule: Rule, name: str, function: Callable[..., object], *arguments: object
    ) -> Any:
        """Call a method of the engine; a failure breaks *rule*."""
        self.tried.add(rule)
        called = _awaited(name, function, *arguments)
        result, violation = await run_within(_START_TIMEOUT_S, called, name, rule)
        if violation is not None:
            self._find(violation)
        return result

    async def _call_optional(self, engine: LLMEngine, name: str) -> Any:
        if getattr(engine, name, None) is None:
            return None
        return await self._call(Rule.OPTIONAL_METHOD_FAILED, name, methodcaller(name), engine)

    async def _check_health_payload(self, engine: LLMEngine) -> None:
        name = "health_check_payload"
        payload = await self._call_optional(engine, name)
        if payload is not None:
            try:
                convert_request(payload)
            except InvalidArgument as error:
                message = f"{name} returned no request: {error.message}"
                self._find(Violation(Rule.OPTIONAL_METHOD_FAILED, message, error))

    @asynccontextmanager
    async def _not_lost(self, engine: LLMEngine) -> AsyncGenerator[None]:
        """Check that ``lost`` waits while the block runs, and ends when it is cancelled."""
        self.tried.add(Rule.LOST_WHILE_WORKING)
        lost = asyncio.create_task(settle(until_lost(engine)), name="conformance lost")
        try:
            yield
            found = _end_of_lost(lost)
        finally:
            lost.cancel()
            await wait_for_any(RELEASE_S, lost)
        if not lost.done():
            found = "lost did not end when it was cancelled"
        if found:
            self._find(Violation(Rule.LOST_WHILE_WORKING, found))

    def _check_config(self, config: EngineConfig) -> None:
        self.tried |= {Rule.MODEL_NAME_EMPTY, Rule.BAD_CONFIG}
        rule = Rule.MODEL_NAME_EMPTY
        try:
            check_model_name(config)
            rule = Rule.BAD_CONFIG
            check_config(config)
        except InvalidArgument as error:
            self._find(Violation(rule, error.message))

    def _requests(self, config: object) -> tuple[PreprocessedRequest, PreprocessedRequest]:
        """Return the request, and the one for the stream that is stopped."""
        request = self.request or PreprocessedRequest(
            model=str(getattr(config, "model", "")),
            token_ids=[1, 2, 3],
            stop_conditions=StopConditions(max_tokens=_FEW_TOKENS),
        )
        prompt = len(request.token_ids)
        length = getattr(config, "context_length", None)
        room = length if type(length) is int and length > 0 else prompt + _MANY_TOKENS
        conditions = replace(
            request.stop_conditions, max_tokens=max(1, min(_MANY_TOKENS, room - prompt))
        )
        return request, replace(request, stop_conditions=conditions)

    async def _check_streams(
        self, engine: LLMEngine, request: PreprocessedRequest, cancel_request: PreprocessedRequest
    ) -> None:
        self.tried |= set(Rule) - _ENGINE_RULES

        def stream(plan: Plan = Plan.TO_END) -> Stream:
            asked = request if plan is Plan.TO_END else cancel_request
            return Stream(engine, asked, self.timeout_s, self.stream_timeout_s, plan)

        alone, blocked_s = await _longest_block(stream().play())
        for _ in range(_TRIES - 1):
            if blocked_s > _MAY_BLOCK_S:
                # Again, as the machine may have been busy.
                blocked_s = min(blocked_s, (await _longest_block(stream().play()))[1])
        if blocked_s > _MAY_BLOCK_S:
            message = f"the event loop was blocked for {blocked_s:.2f} s while a stream ran"
            self._find(Violation(Rule.LOOP_BLOCKED, message))
        self._stalled = bool(alone.stalled)
        self._find(*alone.violations())
        together = (stream().play() for _ in range(_STREAMS))
        self._check_together(alone, await asyncio.gather(*together))
        stopped = await stream(Plan.STOP).play()
        if not stopped.stopped:
            # It ended with its first chunk: so fast an engine must handle an earlier stop.
            stopped = await stream(Plan.STOP_BEFORE).play()
        self._check_stopped(stopped)
        closed = await stream(Plan.CLOSE).play()
        self._find(*(each for each in closed.found if each.rule is Rule.CLOSE_FAILED))

    def _check_together(self, alone: Stream, together: Sequence[Stream]) -> None:
        known = {violation.rule for violation in alone.violations()}
        failures: list[Violation] = []
        for stream in together:
            new = [each for each in stream.violations() if each.rule not in known]
            if stream.failed and not alone.failed:
                new.insert(0, Violation(Rule.GENERATE_FAILED, stream.ending, stream.error))
            failures += new[:1]
        if failures:
            first = failures[0]
            what = f"{len(failures)} of {len(together)} streams that ran together failed"
            message = f"{what}, the first: {first.message}"
            self._find(Violation(Rule.INTERLEAVED_CALLS_FAILED, message, first.exception))

    def _check_stopped(self, stream: Stream) -> None:
        self._find(*stream.found)
        if stream.is_cancelled:
            return
        what = "a stream whose request was stopped"
        rule = Rule.CANCELLATION_IGNORED if stream.stalled else Rule.NO_CANCELLED_TERMINAL
        abort = getattr(type(stream.engine), "abort", None)
        if stream.stalled and abort not in {None, LLMEngine.abort}:
            rule, what = Rule.ABORT_FAILED, f"{what} and aborted"
        self._find(Violation(rule, f"{what}: {stream.ending}", stream.error))


def _end_of_lost(lost: asyncio.Task[tuple[str | None, BaseException | None]]) -> str:
    """Return how ``lost`` ended; empty while it waits."""
    if not lost.done():
        return ""
    reason, error = lost.result()
    if isinstance(error, InvalidArgument):
        return error.message
    return f"lost ended while the engine worked: {reason if error is None else repr(error)}"


def _clock_hint(names: Sequence[str], stalled: bool) -> str:
    """
    Return a hint at the real clock if virtual time may not wait for the engine.

    A stalled stream also hints at it: a request's thread may have ended before it was seen.
    """
    # Work in asyncio's own executor holds the virtual clock.
    own = sorted(name for name in names if not name.startswith("asyncio_"))
    if not isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        return ""
    real = "check it on the real clock (--real, or virtual=False)"
    if own:
        return (
            f"the engine has threads of its own ({', '.join(own)}), for which virtual time does "
            f"not wait: {real}"
        )
    if stalled:
        return f"virtual time waits for no thread, process or network; if the engine does, {real}"
    return ""


async def _awaited(name: str, function: Callable[..., object], *arguments: object) -> object:
    result = function(*arguments)
    if not inspect.isawaitable(result):
        raise TypeError(f"{name}: expected an async function, got one that returns {result!r}")
    return await cast("Awaitable[object]", result)


async def _longest_block(running: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """
    Await *running*, and measure how long the event loop was blocked, in real seconds.

    A virtual loop measures it; on a real clock it is the delay of a timer.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.longest_iteration_s = 0.0
        return await running, loop.longest_iteration_s
    longest_s = 0.0

    async def beat() -> None:
        nonlocal longest_s
        while True:
            begun = perf_counter()
            try:
                await asyncio.sleep(_BEAT_S)
            finally:
                longest_s = max(longest_s, perf_counter() - begun - _BEAT_S)

    beating = asyncio.create_task(beat(), name="conformance beat")
    await asyncio.sleep(0)
    try:
        result = await running
    finally:
        beating.cancel()
        await asyncio.wait([beating])
    return result, longest_s
