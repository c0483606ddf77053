"""One stream of an engine, played by the conformance kit: never for longer than allowed."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from enum import Enum, auto

from operators.assembly import is_only_closed
from operators.authoring import own_copy
from rx_backend.context import RequestContext
from rx_backend.engine import ChunkStream, LLMEngine, open_chunks
from rx_backend.errors import BackendError, Cancelled, as_backend_error
from rx_backend.protocols import FinishReason, PreprocessedRequest
from rx_backend.testing.conformance_chunks import check_chunk, check_untouched, index_of
from rx_backend.testing.conformance_report import Rule, Violation

__all__ = ("LET_GO_S", "Limits", "Plan", "Played", "play")

LET_GO_S = 1.0  # An engine that is told to let go gets so long, in seconds.


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an engine may take, in seconds, and how many items a stream may have."""

    timeout_s: float
    stream_timeout_s: float
    start_timeout_s: float
    max_items: int


class Plan(Enum):
    """What the kit does with a stream."""

    TO_END = auto()
    STOP = auto()  # stop the request after its first chunk
    STOP_BEFORE = auto()  # stop the request before the engine is asked
    CLOSE = auto()  # close the stream after its first chunk


@dataclass(slots=True)
class Played:
    """
    What became of one stream.

    Attributes:
        answers: How many answers were asked for.
        items: How many items came, the terminals included.
        terminals: Finish reasons of the terminal chunks, by the index of their answer.
        error: What the engine raised in place of a terminal.
        stopped: Whether the request was stopped before the stream was over.
        ended_before: How many answers had ended when it was stopped.
        stalled: Why the kit gave up waiting for the terminal; empty when it did not.
        found: Broken rules that have nothing to do with the stop.
    """

    answers: int = 1
    items: int = 0
    terminals: dict[int, FinishReason] = field(default_factory=dict[int, FinishReason])
    error: BaseException | None = None
    stopped: bool = False
    ended_before: int = 0
    stalled: str = ""
    found: list[Violation] = field(default_factory=list[Violation])

    @property
    def is_cancelled(self) -> bool:
        """Whether the stream ended the way a stopped one must (row E4)."""
        if isinstance(self.error, Cancelled):
            return True
        reasons = list(self.terminals.values())[self.ended_before :]
        return self.is_over and all(reason == FinishReason.CANCELLED for reason in reasons)

    @property
    def is_over(self) -> bool:
        """Whether every answer has its terminal."""
        return len(self.terminals) >= self.answers

    @property
    def failed(self) -> bool:
        """Whether the stream ended with an error, raised or as its terminal."""
        return self.error is not None or any(each.is_error for each in self.terminals.values())

    @property
    def ending(self) -> str:
        """How the stream ended, in words."""
        if self.stalled:
            return self.stalled
        if self.error is not None:
            return f"raised {self.error!r}"
        if self.is_over:
            return f"ended with {', '.join(repr(str(each)) for each in self.terminals.values())}"
        missing = f"{self.answers - len(self.terminals)} of {self.answers} answers"
        return f"ended after {self.items} items without a terminal ({missing})"

    def violations(self) -> list[Violation]:
        """Give the broken rules, those that a stop has nothing to do with."""
        found = list(self.found)
        if not self.items and not any(each.rule is Rule.GENERATE_FAILED for each in found):
            found.append(Violation(Rule.NO_CHUNK, self.ending, self.error))
        elif self.items and not self.is_over and self.error is None:
            found.append(Violation(Rule.NO_TERMINAL, self.ending))
        return found


async def play(
    engine: LLMEngine, request: PreprocessedRequest, limits: Limits, plan: Plan = Plan.TO_END
) -> Played:
    """Play one stream to its end and one pull beyond, close it, and say what became of it."""
    return await _Stream(engine, copy.deepcopy(request), limits, plan).play()


class _Stream:
    def __init__(
        self, engine: LLMEngine, request: PreprocessedRequest, limits: Limits, plan: Plan
    ) -> None:
        self._played = Played(request.sampling_options.n or 1)
        self._came: list[tuple[object, object]] = []  # with a copy of what it was then
        self._aborting: asyncio.Task[None] | None = None
        self._engine = engine
        self._request = request
        self._limits = limits
        self._plan = plan
        self._context = RequestContext()
        self._stopped: asyncio.Future[None] = asyncio.Future()
        self._over: asyncio.Future[None] = asyncio.Future()
        self._gave_up = False
        self._closing = False

    async def play(self) -> Played:
        """Drive the stream in a task of its own, so that no engine can hold up the kit."""
        if self._plan is Plan.STOP_BEFORE:
            self._stop_request()
        task = asyncio.create_task(self._drive(), name="conformance stream")
        try:
            await self._watch(task)
        finally:
            self._gave_up = True
            task.cancel()
        await _first(LET_GO_S, task)
        if not task.done():
            self._find(Rule.CLOSE_FAILED, f"still running {LET_GO_S:g} s after it was closed")
        elif not task.cancelled():
            task.result()
        await self._end_abort()
        self._played.found += check_untouched(self._came)
        return self._played

    async def _watch(self, task: asyncio.Task[None]) -> None:
        limit_s = self._limits.stream_timeout_s
        if self._plan in {Plan.STOP, Plan.STOP_BEFORE}:
            await _first(limit_s, task, self._over, self._stopped)
            self._stop_request()
            limit_s = self._limits.timeout_s
        await _first(limit_s, task, self._over)
        if self._over.done():
            # The pull beyond the terminal may wait for ever: that is no item. Closing may not.
            await _first(self._limits.timeout_s, task)
            if self._closing and not task.done():
                self._find(Rule.CLOSE_FAILED, f"not closed within {self._limits.timeout_s:g} s")
        else:
            self._played.stalled = f"no terminal within {limit_s:g} s"

    def _stop_request(self) -> None:
        if not self._stopped.done() and not self._over.done():
            self._stopped.set_result(None)
            self._played.stopped = True
            self._played.ended_before = len(self._played.terminals)
            self._context.stop_generating()
            if self._plan is Plan.STOP:
                self._abort()

    def _abort(self) -> None:
        """Abort as the adapter does after a stop, once there is a stream."""
        abort = getattr(self._engine, "abort", None)
        if abort is None:
            return

        async def call() -> None:
            await abort(self._context)

        self._aborting = asyncio.create_task(call(), name="conformance abort")

    async def _end_abort(self) -> None:
        timeout_s = self._limits.timeout_s
        if (task := self._aborting) is None:
            return
        await _first(timeout_s, task)
        task.cancel()
        await _first(LET_GO_S, task)
        if not task.done() or task.cancelled():
            self._find(Rule.ABORT_FAILED, f"abort did not return within {timeout_s:g} s")
        elif (error := task.exception()) is not None:
            self._find(Rule.ABORT_FAILED, f"abort raised {error!r}", error)

    def _find(self, rule: Rule, message: str, error: BaseException | None = None) -> None:
        self._played.found.append(Violation(rule, message, error))

    async def _drive(self) -> None:
        try:
            chunks = await open_chunks(self._engine, self._request, self._context)
        except BaseException as error:
            self._raised(error, "before there was a stream")
            self._end()
            return
        if self._plan is Plan.STOP_BEFORE:
            self._abort()
        try:
            if await self._pull_to_end(chunks):
                self._end()
                await self._pull_beyond(chunks)
        finally:
            self._end()
            await self._close(chunks)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _raised(self, error: BaseException, where: str = "") -> None:
        """Note what the engine raised; cancellation by the kit, and interrupts, pass on."""
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        if self._gave_up:
            if isinstance(error, asyncio.CancelledError):
                raise error
            return
        typed = _typed(error)
        self._played.error = typed or error
        if typed is None:
            what = f"raised an untyped {type(error).__name__} {where}".rstrip()
            self._find(Rule.GENERATE_FAILED, f"{what}: {error}", error)
        elif where and not self._played.stopped:
            self._find(Rule.GENERATE_FAILED, f"raised {where}: {error}", error)

    async def _pull_to_end(self, chunks: ChunkStream) -> bool:
        """Pull to the last terminal; False when the stream ended or went on without one."""
        played = self._played
        while played.items < self._limits.max_items:
            try:
                item = await anext(chunks)
            except StopAsyncIteration:
                return False
            except BaseException as error:
                self._raised(error)
                return True
            played.items += 1
            self._came.append((item, own_copy(item)))
            reason, found = check_chunk(item)
            played.found += found
            answer = index_of(item)
            if answer in played.terminals:
                self._find(
                    Rule.ITEM_AFTER_TERMINAL, f"yielded {item!r} after its answer's terminal"
                )
            elif reason is not None:
                played.terminals[answer] = reason
                if played.is_over:
                    return True
            if self._plan is Plan.STOP:
                self._stop_request()
            if self._plan is Plan.CLOSE:
                return False
            # An engine that never waits would hold up the streams beside it, and the clock.
            await asyncio.sleep(0)
        played.stalled = f"no terminal within {played.items} items"
        return False

    async def _pull_beyond(self, chunks: ChunkStream) -> None:
        try:
            item = await anext(chunks)
        except StopAsyncIteration:
            return
        except Exception as error:
            if not self._gave_up:
                self._find(Rule.ITEM_AFTER_TERMINAL, f"raised {error!r} after the terminal", error)
            return
        self._find(Rule.ITEM_AFTER_TERMINAL, f"yielded {item!r} after the terminal")

    async def _close(self, chunks: ChunkStream) -> None:
        self._closing = True
        close = getattr(chunks, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except (Exception, BaseExceptionGroup) as error:
            if is_only_closed(error):
                return
            self._find(Rule.CLOSE_FAILED, f"closing raised {error!r}", error)


def _typed(error: BaseException) -> BackendError | None:
    """Give a typed error, which may be one of Dynamo's; None for any other exception."""
    if isinstance(error, BackendError):
        return error
    is_dynamos = any(base.__name__ == "DynamoException" for base in type(error).__mro__)
    return as_backend_error(error) if is_dynamos else None


async def _first(timeout_s: float, *futures: asyncio.Future[None]) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
