"""One stream of an engine, run by the conformance kit within time limits."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar

from operators.assembly import is_only_closed
from operators.authoring import own_copy
from rx_backend.context import RequestContext
from rx_backend.engine import ChunkStream, LLMEngine, open_chunks
from rx_backend.errors import BackendError, Cancelled, as_backend_error
from rx_backend.protocols import FinishReason, PreprocessedRequest
from rx_backend.testing.conformance_items import is_unchanged, read_item
from rx_backend.testing.conformance_report import Rule, Violation

__all__ = ("RELEASE_S", "Plan", "Stream", "run_within", "settle", "wait_for_any")

T = TypeVar("T")

RELEASE_S = 1.0
"""The time limit for a cancelled task to end, in seconds."""

_MOST_EXTRA = 10_000  # A stream with more items than this and the requested tokens is endless.
# What an engine may raise without ending the kit; its SystemExit would end the event loop.
_OF_ENGINES = (Exception, SystemExit)


class Plan(Enum):
    """What the kit does with a stream."""

    TO_END = auto()
    STOP = auto()  # stop and abort the request after its first chunk
    STOP_BEFORE = auto()  # stop the request before the engine is asked
    CLOSE = auto()  # close the stream after its first chunk


@dataclass(slots=True)
class Stream:
    """
    One stream, and its outcome.

    Attributes:
        timeout_s: The time limit for its end after a stop, and for closing it.
        stream_timeout_s: The time limit for its terminal.
        answers: The number of requested answers.
        items: The items, including terminals, each with a copy from its arrival.
        terminals: Finish reasons of the terminal chunks, by the index of their answer.
        error: The exception that the engine raised instead of a terminal.
        stopped: Whether the request was stopped before the stream was over.
        ended_before: How many answers had ended when it was stopped.
        stalled: Why the kit stopped waiting for the terminal; empty if it did not.
        found: Broken rules that are unrelated to the stop.
    """

    engine: LLMEngine
    request: PreprocessedRequest
    timeout_s: float
    stream_timeout_s: float
    plan: Plan = Plan.TO_END
    answers: int = 1
    items: list[tuple[object, object]] = field(default_factory=list[tuple[object, object]])
    terminals: dict[int, FinishReason] = field(default_factory=dict[int, FinishReason])
    error: BaseException | None = None
    stopped: bool = False
    ended_before: int = 0
    stalled: str = ""
    found: list[Violation] = field(default_factory=list[Violation])
    _context: RequestContext = field(default_factory=RequestContext)
    _stop_sent: asyncio.Future[None] = field(default_factory=asyncio.Future[None])
    _over: asyncio.Future[None] = field(default_factory=asyncio.Future[None])
    _abort: asyncio.Task[tuple[None, Violation | None]] | None = None
    _is_left: bool = False
    _is_closing: bool = False

    @property
    def is_over(self) -> bool:
        """Whether every answer has its terminal."""
        return len(self.terminals) >= self.answers

    @property
    def is_cancelled(self) -> bool:
        """Whether the stream ended as a stopped one must (row E4)."""
        if isinstance(self.error, Cancelled):
            return True
        reasons = list(self.terminals.values())[self.ended_before :]
        return self.is_over and all(reason == FinishReason.CANCELLED for reason in reasons)

    @property
    def failed(self) -> bool:
        """Whether the stream ended with an error, raised or as its terminal."""
        return self.error is not None or any(each.is_error for each in self.terminals.values())

    @property
    def ending(self) -> str:
        """How the stream ended, as text."""
        if self.stalled:
            return self.stalled
        if self.error is not None:
            return f"raised {self.error!r}"
        if self.is_over:
            return f"ended with {', '.join(repr(str(each)) for each in self.terminals.values())}"
        missing = f"{self.answers - len(self.terminals)} of {self.answers} answers"
        items = "1 item" if len(self.items) == 1 else f"{len(self.items)} items"
        return f"ended after {items} without a terminal ({missing})"

    def violations(self) -> list[Violation]:
        """Return the broken rules of a stream that was not stopped."""
        found = list(self.found)
        if not self.items and not any(each.rule is Rule.GENERATE_FAILED for each in found):
            found.append(Violation(Rule.NO_CHUNK, self.ending, self.error))
        elif self.items and not self.is_over and self.error is None:
            found.append(Violation(Rule.NO_TERMINAL, self.ending))
        elif FinishReason.CANCELLED in self.terminals.values():
            what = f"{self.ending}, although it was not stopped"
            found.append(Violation(Rule.UNREQUESTED_CANCELLATION, what))
        return found

    async def play(self) -> Stream:
        """Pull to the end and once more, in a task on which the engine can't block the kit."""
        self.request = copy.deepcopy(self.request)
        self.answers = self.request.sampling_options.n or 1
        if self.plan is Plan.STOP_BEFORE:
            self._stop_request()
        task = asyncio.create_task(self._drive(), name="conformance stream")
        try:
            await self._watch(task)
        finally:
            self._is_left = True
            task.cancel()
        await wait_for_any(RELEASE_S, task)
        if not task.done():
            self._find(Rule.CLOSE_FAILED, f"still running {RELEASE_S:g} s after it was closed")
        elif not task.cancelled():
            task.result()
        if self._abort is not None and (violation := (await self._abort)[1]):
            self.found.append(violation)
        for place, (item, before) in enumerate(self.items):
            if not is_unchanged(item, before):
                what = f"item {place} was {before!r} when it was yielded, and {item!r} later"
                self._find(Rule.CHUNK_MODIFIED, what)
                break
        return self

    async def _watch(self, task: asyncio.Task[None]) -> None:
        limit_s = self.stream_timeout_s
        if self.plan in {Plan.STOP, Plan.STOP_BEFORE}:
            await wait_for_any(limit_s, task, self._over, self._stop_sent)
            self._stop_request()
            limit_s = self.timeout_s
        await wait_for_any(limit_s, task, self._over)
        if not self._over.done():
            self.stalled = f"no terminal within {limit_s:g} s"
            return
        # The pull after the terminal may wait forever, as that is no item. Closing may not.
        await wait_for_any(self.timeout_s, task)
        if self._is_closing and not task.done():
            self._find(Rule.CLOSE_FAILED, f"not closed within {self.timeout_s:g} s")

    def _stop_request(self) -> None:
        if self._stop_sent.done() or self._over.done():
            return
        self._stop_sent.set_result(None)
        self.stopped = True
        self.ended_before = len(self.terminals)
        self._context.stop_generating()
        if self.plan is Plan.STOP:
            self._start_abort()

    def _start_abort(self) -> None:
        """Abort as the adapter does after a stop, once there is a stream."""

        async def abort() -> None:
            await self.engine.abort(self._context)

        if hasattr(self.engine, "abort"):
            running = run_within(self.timeout_s, abort(), "abort", Rule.ABORT_FAILED)
            self._abort = asyncio.create_task(running)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _find(self, rule: Rule, message: str, error: BaseException | None = None) -> None:
        self.found.append(Violation(rule, message, error))

    async def _drive(self) -> None:
        try:
            chunks = await open_chunks(self.engine, self.request, self._context)
        except BaseException as error:
            self._note_raised(error, "before there was a stream")
            self._end()
            return
        if self.plan is Plan.STOP_BEFORE:
            self._start_abort()
        try:
            if await self._pull_to_end(chunks):
                self._end()
                await self._pull_beyond(chunks)
        finally:
            self._end()
            self._is_closing = True
            await self._close(chunks)

    def _note_raised(self, error: BaseException, where: str = "") -> None:
        """Record what the engine raised; re-raise the kit's cancellation, or an interrupt."""
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if not isinstance(error, _OF_ENGINES) and (self._is_left or not is_cancelled):
            raise error
        if self._is_left:
            return
        self.error = typed = _typed(error)
        if typed is None:
            self.error = error
            what = f"raised an untyped {type(error).__name__} {where}".rstrip()
            self._find(Rule.GENERATE_FAILED, f"{what}: {error}", error)
        elif where and not self.stopped:
            self._find(Rule.GENERATE_FAILED, f"raised {where}: {error}", error)

    async def _pull_to_end(self, chunks: ChunkStream) -> bool:
        """Pull to the last terminal; return False when the stream ended or continued without one."""
        most = (self.request.stop_conditions.max_tokens or 0) * self.answers + _MOST_EXTRA
        while len(self.items) < most:
            try:
                item = await anext(chunks)
            except StopAsyncIteration:
                return False
            except BaseException as error:
                self._note_raised(error)
                return True
            self._note_item(item)
            if self.is_over:
                return True
            if self.plan is Plan.STOP:
                self._stop_request()
            if self.plan is Plan.CLOSE:
                return False
            # An engine that never waits would block concurrent streams, and the clock.
            await asyncio.sleep(0)
        self.stalled = f"no terminal within {len(self.items)} items"
        return False

    def _note_item(self, item: object) -> None:
        self.items.append((item, own_copy(item)))
        answer, reason, violation = read_item(item)
        if violation is not None:
            self.found.append(violation)
        if answer >= self.answers:
            what = f"yielded {item!r}, expected an index below {self.answers}"
            self._find(Rule.UNREQUESTED_ANSWER, what)
        if answer in self.terminals:
            self._find(Rule.ITEM_AFTER_TERMINAL, f"yielded {item!r} after its answer's terminal")
        elif reason is not None:
            self.terminals[answer] = reason

    async def _pull_beyond(self, chunks: ChunkStream) -> None:
        try:
            item = await anext(chunks)
        except StopAsyncIteration:
            return
        except _OF_ENGINES as error:
            if not self._is_left:
                self._find(Rule.ITEM_AFTER_TERMINAL, f"raised {error!r} after the terminal", error)
            return
        self._find(Rule.ITEM_AFTER_TERMINAL, f"yielded {item!r} after the terminal")

    async def _close(self, chunks: Any) -> None:
        try:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()
        except (*_OF_ENGINES, BaseExceptionGroup) as error:
            if not is_only_closed(error):
                self._find(Rule.CLOSE_FAILED, f"closing raised {error!r}", error)


def _typed(error: BaseException) -> BackendError | None:
    """Return a typed error, perhaps one of Dynamo's; None for any other exception."""
    is_dynamos = any(base.__name__ == "DynamoException" for base in type(error).__mro__)
    return as_backend_error(error) if is_dynamos or isinstance(error, BackendError) else None


async def run_within(
    timeout_s: float, coroutine: Coroutine[Any, Any, T], name: str, rule: Rule
) -> tuple[T | None, Violation | None]:
    """Run a call of the engine in a separate task, and return its result or the violation."""
    task = asyncio.create_task(settle(coroutine), name=f"conformance {name}")
    try:
        await wait_for_any(timeout_s, task)
    finally:
        task.cancel()
    await wait_for_any(RELEASE_S, task)
    if not task.done() or task.cancelled():
        return None, Violation(rule, f"{name} did not return within {timeout_s:g} s")
    result, error = task.result()
    if error is not None:
        return None, Violation(rule, f"{name} raised {error!r}", error)
    return result, None


async def settle(
    coroutine: Coroutine[Any, Any, T],
) -> tuple[T | None, BaseException | None]:
    """Return the result of a call of the engine, or its exception."""
    try:
        return await coroutine, None
    except _OF_ENGINES as error:
        return None, error


async def wait_for_any(timeout_s: float, *futures: asyncio.Future[Any]) -> None:
    """Wait until one is done, at most for the given seconds."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
