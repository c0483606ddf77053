"""What the tests of the operators share: chunks, sources that count, and the ways to run a list."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, Unpack

import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

from operators import fuse
from operators.assembly import make_stream
from operators.authoring import AnyOperator, Completed, FusedRun, Stage, emit, operator
from rx_backend.testing import run_virtual


class _EndObserver:
    """Is told of the end of a stream only."""

    def __init__(self, on_end: Callable[[bool], object]) -> None:
        self._on_end = on_end

    def mark_undelivered(self, items: Sequence[Any]) -> None: ...

    def end(self, dropped: bool) -> None:
        self._on_end(dropped)


def observed(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator],
    *,
    on_end: Callable[[bool], object],
    own_context: contextvars.Context | None = None,
) -> FusedRun[Any]:
    """Fuse, and call *on_end* when the stream is over, with whether it was dropped."""
    observer = _EndObserver(on_end)
    return make_stream(source, operators, FusedRun[Any], own_context=own_context, observer=observer)


# Longer than anything that a test lets happen: what has not come by then never comes.
LONG_S = 1_000_000.0


# Chunks: the shape that operators know, and nothing more.


@dataclass(slots=True)
class Chunk:
    token_ids: list[int] = field(default_factory=list[int])
    finish_reason: object = None
    worker_trace_link: object = None
    completion_usage: object = None


def token(*token_ids: int) -> Chunk:
    return Chunk(list(token_ids))


def handshake() -> Chunk:
    return Chunk()


def terminal(*token_ids: int, reason: object = "stop") -> Chunk:
    return Chunk(list(token_ids), reason)


LETTERS = {
    "a": token(1),
    "b": token(2),
    "c": token(3),
    "h": handshake(),
    "T": terminal(),
    "U": terminal(9),
}
"""What letters stand for in marble lines of chunks; ``U`` is a terminal with a token."""


# What came out of a stream.


@dataclass(slots=True)
class Seen:
    """
    What came out of a stream, and how it ended.

    Attributes:
        items: The items, in order.
        end: ``completed``, ``open``, ``dropped`` or the text of the exception.
        error: The exception.
    """

    items: list[Any] = field(default_factory=list[Any])
    end: str = "open"
    error: Exception | None = field(default=None, compare=False, repr=False)

    def fail(self, error: Exception) -> None:
        self.error = error
        self.end = repr(error)


def watch(stream: Any, *, take: int | None = None) -> tuple[Seen, abc.DisposableBase]:
    """Note what an Observable gives (a pipe leaves its type open); dispose from within the item that makes *take*."""
    seen = Seen()

    def end() -> None:
        seen.end = "dropped" if len(seen.items) == take else "completed"

    kept: Observable[Any] = stream if take is None else stream.pipe(ops.take(take))
    return seen, kept.subscribe(seen.items.append, seen.fail, end)


async def collect(stream: AsyncIterator[Any], *, take: int | None = None) -> Seen:
    """Pull a stream to its end, or until it gives nothing any more, or close it after *take*."""
    seen = Seen()
    patience = asyncio.timeout(LONG_S)
    try:
        async with patience:
            async for item in stream:
                seen.items.append(item)
                if len(seen.items) == take:
                    await close(stream)
                    seen.end = "dropped"
                    return seen
        seen.end = "completed"
    except Exception as error:
        if not patience.expired():
            seen.fail(error)
    return seen


async def close(stream: AsyncIterator[Any]) -> None:
    aclose: Callable[[], Coroutine[Any, Any, None]] = getattr(stream, "aclose")  # noqa: B009
    await aclose()


async def settle() -> None:
    """Let the loop turn, until a release that needs no time has been made."""
    for _ in range(10):
        await asyncio.sleep(0)


def now() -> float:
    """Return the running loop's time, to the millisecond."""
    return round(asyncio.get_running_loop().time(), 3)


def busy() -> list[str]:
    """Return what is left on the loop besides the running task: tasks, and timers that are set."""
    loop: Any = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    return [*map(repr, tasks), *map(repr, timers)]


# Sources.


class Engine:
    """
    An asynchronous source that counts; call it for the generator.

    Args:
        items: What it gives.
        error: What it raises then.
        ends: False: then it gives nothing any more, and does not end.
        every_s: How long it waits before each item; None for not at all.
        closing_s: How long its clean-up takes.

    Attributes:
        pulls: How many items were asked for and given.
        closed: How often it has cleaned up to the end.
        journal: Where it notes ``pull`` and ``closed``.
    """

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        error: BaseException | None = None,
        ends: bool = True,
        every_s: float | None = None,
        closing_s: float | None = None,
        journal: list[str] | None = None,
    ) -> None:
        self.items = items
        self.error = error
        self.ends = ends
        self.every_s = every_s
        self.closing_s = closing_s
        self.pulls = 0
        self.closed = 0
        self.journal: list[str] = [] if journal is None else journal

    async def __call__(self) -> AsyncGenerator[Any]:
        try:
            for item in self.items:
                if self.every_s is not None:
                    await asyncio.sleep(self.every_s)
                self.pulls += 1
                self.journal.append("pull")
                yield item
            if self.error is not None:
                # An error that many tests share must not gather their frames.
                raise self.error.with_traceback(None)
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            if self.closing_s is not None:
                await asyncio.sleep(self.closing_s)
            self.closed += 1
            self.journal.append("closed")


class Bare:
    """
    An asynchronous source that is no generator.

    Args:
        items: What it gives.
        closing_s: How long its clean-up takes.

    Attributes:
        journal: Where it notes ``pull`` and ``closed``.
    """

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        closing_s: float | None = None,
        journal: list[str] | None = None,
    ) -> None:
        self._items = iter(items)
        self._closing_s = closing_s
        self.journal: list[str] = [] if journal is None else journal

    def __aiter__(self) -> Bare:
        return self

    async def __anext__(self) -> Any:
        self.journal.append("pull")
        for item in self._items:
            return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        try:
            if self._closing_s is not None:
                await asyncio.sleep(self._closing_s)
        finally:
            self.journal.append("closed")


# A list of operators, run in each of its lives.


class How(TypedDict, total=False):
    """
    How a stream ends; by default its source completes.

    Attributes:
        error: What the source fails with.
        ends: False: the source gives nothing any more, and does not end.
        take: Drop the stream when so many items have come out.
    """

    error: Exception | None
    ends: bool
    take: int | None


class Life(Protocol):
    """Runs a list of operators on the items of a source, and tells what came out."""

    def __call__(
        self, items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]
    ) -> Seen: ...


def pushed(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As ``reactivex`` operators, the source being pushed from outside."""
    subject: Subject[Any] = Subject()
    seen, subscription = watch(subject.pipe(*operators), take=how.get("take"))
    for item in items:
        subject.on_next(item)
    end(subject, how)
    subscription.dispose()
    return seen


def end(subject: Subject[Any], how: How) -> None:
    error = how.get("error")
    if error is not None:
        subject.on_error(error)
    elif how.get("ends", True):
        subject.on_completed()


def synchronous(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As ``reactivex`` operators, the source giving everything while it is subscribed to."""
    error = how.get("error")
    end = reactivex.empty() if how.get("ends", True) else reactivex.never()
    source = reactivex.concat(
        reactivex.from_iterable(items), end if error is None else reactivex.throw(error)
    )
    seen, subscription = watch(source.pipe(*operators), take=how.get("take"))
    subscription.dispose()
    return seen


def fused(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As one pulled stream."""
    return run_virtual(pulled(items, *operators, **how))


def fused_waiting(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As one pulled stream, whose source waits before each item."""
    return run_virtual(pulled(items, *operators, every_s=1.0, **how))


async def pulled(
    items: Sequence[Any],
    *operators: AnyOperator,
    every_s: float | None = None,
    **how: Unpack[How],
) -> Seen:
    """As `fused`, for a test that runs on a virtual loop."""
    source = Engine(items, error=how.get("error"), ends=how.get("ends", True), every_s=every_s)
    try:
        stream = fuse(source(), operators)
    except Exception as failure:
        seen = Seen()
        seen.fail(failure)
        return seen
    seen = await collect(stream, take=how.get("take"))
    # What an operator does on its own comes to its end too.
    await asyncio.sleep(LONG_S)
    assert busy() == []
    assert source.closed == 1 or not source.pulls
    return seen


def pushed_on_the_loop(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As ``reactivex`` operators, the source being pushed from outside, an item a second."""
    return run_virtual(pushed_slowly(items, *operators, **how))


async def pushed_slowly(items: Sequence[Any], *operators: AnyOperator, **how: Unpack[How]) -> Seen:
    """As `pushed_on_the_loop`, for a test that runs on a virtual loop."""
    subject: Subject[Any] = Subject()
    seen, subscription = watch(subject.pipe(*operators), take=how.get("take"))
    for item in items:
        subject.on_next(item)
        await asyncio.sleep(1.0)
    end(subject, how)
    await asyncio.sleep(LONG_S)
    subscription.dispose()
    await asyncio.sleep(LONG_S)
    return seen


LIVES: tuple[Life, ...] = (pushed, synchronous, fused, fused_waiting)


# Ways to drop a stream.


# A list that owns the stream, so that emptying it is losing the last reference.
Owner = list[FusedRun[Any]]


async def by_close(owner: Owner) -> None:
    owner[0].close()


async def by_aclose(owner: Owner) -> None:
    await owner[0].aclose()


async def by_losing_it(owner: Owner) -> None:
    owner.clear()


# Small operators.


async def later(item: Any) -> Any:
    """Return the item in another iteration of the loop; for ``map_async``."""
    await asyncio.sleep(0)
    return item


@operator
def same() -> Stage[Any, Any]:
    """Hand every item through."""
    item = yield
    while True:
        item = yield item


@operator
def spy(journal: list[str], name: str = "") -> Stage[Any, Any]:
    """Hand every item through; note it, and what came at the end: ``|``, ``#`` or ``!``."""
    end = "!"
    try:
        item = yield
        while True:
            journal.append(f"{name}{item}")
            item = yield item
    except Completed:
        end = "|"
        raise
    except Exception:
        end = "#"
        raise
    finally:
        journal.append(f"{name}{end}")


@operator
def twice() -> Stage[Any, Any]:
    """Hand out every item two times."""
    item = yield
    while True:
        item = yield emit(item, item)


@operator
def cue(actions: Mapping[int, Callable[[], object]]) -> Stage[Any, Any]:
    """Hand every item through; call an action before the item of that number, counted from 0."""
    number = 0
    item = yield
    while True:
        if number in actions:
            actions[number]()
        number += 1
        item = yield item
