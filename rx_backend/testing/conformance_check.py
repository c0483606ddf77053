"""One run of the conformance kit over one engine, step by step."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from operator import methodcaller
from typing import cast

import msgspec

from rx_backend.dynamo import from_any_engine
from rx_backend.engine import EngineConfig, LLMEngine, check_config
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest, StopConditions
from rx_backend.testing.conformance_block import MAY_BLOCK_S, longest_block
from rx_backend.testing.conformance_report import ConformanceReport, Rule, Violation
from rx_backend.testing.conformance_stream import LET_GO_S, Limits, Plan, Played, play

__all__ = ("Check",)

_STREAM_RULES = (
    Rule.GENERATE_FAILED,
    Rule.NO_CHUNK,
    Rule.WRONG_ITEM_TYPE,
    Rule.BAD_TOKEN_IDS,
    Rule.NO_TERMINAL,
    Rule.ITEM_AFTER_TERMINAL,
    Rule.CHUNK_TOUCHED,
    Rule.LOOP_BLOCKED,
    Rule.INTERLEAVED_CALLS_FAILED,
    Rule.CANCELLATION_NOT_SEEN,
    Rule.CANCELLED_NOT_TERMINAL,
    Rule.ABORT_FAILED,
    Rule.CLOSE_FAILED,
)
_PROMPT = (1, 2, 3)
_FEW_TOKENS, _MANY_TOKENS = 8, 4096


class Check:
    """
    One run of the kit.

    Args:
        factory: Makes a fresh engine.
        limits: How long the engine may take.
        request: What the streams ask for; a small one when None.
        cancel_request: What the stream asks for that is stopped; a long one when None.
        calls: How many streams run at the same time.
    """

    def __init__(
        self,
        factory: Callable[[], object],
        limits: Limits,
        *,
        request: PreprocessedRequest | None,
        cancel_request: PreprocessedRequest | None,
        calls: int,
    ) -> None:
        self._factory = factory
        self._request = request
        self._cancel_request = cancel_request
        self._limits = limits
        self._calls = calls
        self._tried: set[Rule] = set()
        self._found: dict[Rule, Violation] = {}

    async def run(self) -> ConformanceReport:
        """Try everything, in the order in which a worker would."""
        await self._check_unstarted()
        engine = await self._make(Rule.START_FAILED)
        if engine is not None:
            start = partial(methodcaller("start", 0), engine)
            config = await self._call(Rule.START_FAILED, "start", start)
            if Rule.START_FAILED not in self._found:
                self._check_config(config)
                await self._check_streams(engine, *self._requests(config))
            await self._check_cleanup(engine)
        return ConformanceReport(
            engine=getattr(self._factory, "__qualname__", None) or repr(self._factory),
            violations=[self._found[rule] for rule in Rule if rule in self._found],
            unchecked=[rule for rule in Rule if rule not in self._tried],
        )

    def _find(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self._found.setdefault(violation.rule, violation)

    async def _make(self, rule: Rule) -> LLMEngine | None:
        made = await self._call(rule, "the factory", self._engine)
        return None if rule in self._found else cast("LLMEngine", made)

    async def _engine(self) -> LLMEngine:
        return from_any_engine(await _call(self._factory))

    async def _check_unstarted(self) -> None:
        engine = await self._make(Rule.START_FAILED)
        if engine is not None:
            await self._cleanup(Rule.UNSTARTED_CLEANUP_FAILED, engine)

    async def _check_cleanup(self, engine: LLMEngine) -> None:
        await self._cleanup(Rule.CLEANUP_FAILED, engine)
        await self._cleanup(Rule.SECOND_CLEANUP_FAILED, engine)

    async def _cleanup(self, rule: Rule, engine: LLMEngine) -> None:
        await self._call(rule, "cleanup", partial(methodcaller("cleanup"), engine))

    def _check_config(self, config: object) -> None:
        self._tried.add(Rule.MODEL_NAME_EMPTY)
        try:
            check_config(cast("EngineConfig", config))
        except InvalidArgument as error:
            self._find([Violation(Rule.MODEL_NAME_EMPTY, error.message)])

    def _requests(self, config: object) -> tuple[PreprocessedRequest, PreprocessedRequest]:
        """Give what to ask for, and what to ask for in the stream that is stopped."""
        request = self._request or PreprocessedRequest(
            model=str(getattr(config, "model", "")),
            token_ids=list(_PROMPT),
            stop_conditions=StopConditions(max_tokens=_FEW_TOKENS),
        )
        if self._cancel_request is not None:
            return request, self._cancel_request
        room = getattr(config, "context_length", None) or len(request.token_ids) + _MANY_TOKENS
        many = max(1, min(_MANY_TOKENS, room - len(request.token_ids)))
        conditions = msgspec.structs.replace(request.stop_conditions, max_tokens=many)
        return request, msgspec.structs.replace(request, stop_conditions=conditions)

    async def _check_streams(
        self, engine: LLMEngine, request: PreprocessedRequest, cancel_request: PreprocessedRequest
    ) -> None:
        self._tried.update(_STREAM_RULES)
        alone = await self._play_alone(engine, request)
        self._find(alone.violations())
        together = await asyncio.gather(
            *(play(engine, request, self._limits) for _ in range(self._calls))
        )
        self._check_together(alone, together)
        await self._check_cancellation(engine, cancel_request)
        closed = await play(engine, cancel_request, self._limits, Plan.CLOSE)
        self._find(each for each in closed.found if each.rule is Rule.CLOSE_FAILED)

    async def _play_alone(self, engine: LLMEngine, request: PreprocessedRequest) -> Played:
        """Play one stream, and a second where the first blocked the loop: the machine may be busy."""
        played, blocked_s = await longest_block(play(engine, request, self._limits))
        if blocked_s > MAY_BLOCK_S:
            _, again_s = await longest_block(play(engine, request, self._limits))
            blocked_s = min(blocked_s, again_s)
        if blocked_s > MAY_BLOCK_S:
            message = f"the event loop stood still for {blocked_s:.2f} s while a stream ran"
            self._find([Violation(Rule.LOOP_BLOCKED, message)])
        return played

    def _check_together(self, alone: Played, together: Sequence[Played]) -> None:
        known = {violation.rule for violation in alone.violations()}
        failures: list[Violation] = []
        for played in together:
            new = [each for each in played.violations() if each.rule not in known]
            if played.failed and not alone.failed:
                new.insert(0, Violation(Rule.GENERATE_FAILED, played.ending, played.error))
            failures += new[:1]
        if failures:
            first = failures[0]
            what = f"{len(failures)} of {len(together)} streams that ran together failed"
            message = f"{what}, the first: {first.message}"
            self._find([Violation(Rule.INTERLEAVED_CALLS_FAILED, message, first.exception)])

    async def _check_cancellation(self, engine: LLMEngine, request: PreprocessedRequest) -> None:
        played = await play(engine, request, self._limits, Plan.STOP)
        if not played.stopped:
            # It was over with its first chunk: an engine that fast has to see an earlier stop.
            played = await play(engine, request, self._limits, Plan.STOP_BEFORE)
        self._find(played.found)
        if played.is_cancelled:
            return
        what = "a stream whose request was stopped"
        rule = Rule.CANCELLATION_NOT_SEEN if played.stalled else Rule.CANCELLED_NOT_TERMINAL
        if played.stalled and _has_abort(engine):
            rule, what = Rule.ABORT_FAILED, f"{what} and aborted"
        self._find([Violation(rule, f"{what}: {played.ending}", played.error)])

    async def _call(self, rule: Rule, name: str, function: Callable[[], object]) -> object:
        """Call and await something of the engine's; what goes wrong breaks *rule*."""
        self._tried.add(rule)
        timeout_s = self._limits.start_timeout_s
        task = asyncio.create_task(_call(function), name=f"conformance {name}")
        try:
            await asyncio.wait([task], timeout=timeout_s)
        finally:
            task.cancel()
        await asyncio.wait([task], timeout=LET_GO_S)
        if not task.done() or task.cancelled():
            self._find([Violation(rule, f"{name} did not return within {timeout_s:g} s")])
            return None
        error = task.exception()
        if error is not None:
            self._find([Violation(rule, f"{name} raised {error!r}", error)])
            return None
        return task.result()


async def _call(function: Callable[[], object]) -> object:
    result = function()
    return await cast("Awaitable[object]", result) if inspect.isawaitable(result) else result


def _has_abort(engine: object) -> bool:
    """Return whether an engine has an abort of its own."""
    return getattr(type(engine), "abort", None) not in {None, LLMEngine.abort}
