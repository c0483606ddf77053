"""Streams that go on for a while after they were dropped: who owns them, and what bounds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Self

from reactivex import Observable, abc

from operators._core.failures import redacted_exc_info
from operators._core.fusion import FusedRun
from operators._core.tasks import current_task
from operators._raw_chunk import has_content, is_terminal

__all__ = ("Drain", "Drains")


class Drains:
    """
    Owns the streams that ``drain_until_first_token`` lets go on after a drop, and bounds them.

    Make one for a process, and close it before the engine is cleaned up. It is an asynchronous
    context manager too.

    Args:
        limit: How many streams may go on at once; one more is closed at its drop, as it would be
            without the operator. 0 for none.
        timeout_s: How long one may take to its first token, in seconds.
        grace_s: How long the engine may take to end after the abort, in seconds.

    Attributes:
        drained: How many came to their first token, or to their end, in time.
        timed_out: How many didn't, those that :meth:`aclose` cut off included.
        refused: How many were closed at their drop, because there were too many.

    Raises:
        ValueError: A number is out of range; names it.

    >>> Drains(limit=-1)
    Traceback (most recent call last):
    ValueError: Drains: limit: expected at least 0, got -1
    """

    def __init__(self, limit: int = 256, *, timeout_s: float = 60.0, grace_s: float = 5.0) -> None:
        for name, value in (("limit", limit), ("timeout_s", timeout_s), ("grace_s", grace_s)):
            if not value >= 0:
                raise ValueError(f"Drains: {name}: expected at least 0, got {value}")
        self.limit = limit
        self.timeout_s = timeout_s
        self.grace_s = grace_s
        self.drained = 0
        self.timed_out = 0
        self.refused = 0
        self._is_closed = False
        self._tasks: dict[asyncio.Task[None], tuple[Drain, object]] = {}
        self._held: set[object] = set()

    @property
    def running(self) -> int:
        """How many streams go on at this moment."""
        return len(self._tasks)

    def has_room(self, label: object) -> bool:
        """Return whether one more stream may go on; if not, that is counted and logged."""
        if not self._is_closed and self.running < self.limit:
            return True
        self.refused += 1
        why = "Drains is closed" if self._is_closed else f"the limit of {self.limit} is reached"
        _log.warning("the stream %s was dropped before its first token, and closed: %s", label, why)
        return False

    def hold(self, stream: object) -> None:
        """Keep what a dropped stream would go on with from the collector, which would close it."""
        self._held.add(stream)

    def release(self, stream: object) -> None:
        """Keep it no longer. Idempotent."""
        self._held.discard(stream)

    def own(self, task: asyncio.Task[None], drain: Drain, puller: object) -> None:
        """Hold *task*, in which *drain* goes on, and what *puller* it is of, until it is done."""
        self._tasks[task] = drain, puller
        task.add_done_callback(lambda _: self._tasks.pop(task))

    async def wait(self) -> None:
        """Wait until no stream goes on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self, timeout_s: float | None = None) -> None:
        """
        Take no more streams, and wait for those that go on.

        Args:
            timeout_s: Cut off what still goes on after so many seconds; by default each has the
                time that it would have anyway.
        """
        self._is_closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for drain, _ in list(self._tasks.values()):
            drain.cut_off()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.grace_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Drain:
    """
    One stream on its way to its first token, with nobody who takes its items.

    Args:
        owner: Bounds it.
        run: What goes on.
        abort: Called once, when the first token is there or the time is up.
        notified: Emits when the first token is known to exist before a chunk shows it.
        label: Names the stream in the log.
    """

    __slots__ = (
        "_abort",
        "_is_late",
        "_is_settled",
        "_label",
        "_notice",
        "_owner",
        "_run",
        "_timer",
    )

    def __init__(
        self,
        owner: Drains,
        run: FusedRun[Any],
        abort: Callable[[], object],
        notified: Observable[Any] | None,
        label: object,
    ) -> None:
        self._owner = owner
        self._run = run
        self._abort = abort
        self._label = label
        self._is_settled = False
        self._is_late = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(owner.timeout_s, self._time_is_up)
        self._notice: abc.DisposableBase | None = None
        if notified is not None:
            # The engine may tell of it in a step of its own; let that end first.
            def abort_soon(_: object) -> None:
                loop.call_soon_threadsafe(self.abort)

            self._notice = notified.subscribe(abort_soon)

    def look_at(self, chunk: Any) -> None:
        """Take a chunk that the engine still gave."""
        if is_terminal(chunk):
            self._leave()
            self._run.close()
        elif has_content(chunk):
            self.abort()

    def abort(self) -> None:
        """Abort, once, since there is nothing to wait for any more; the engine may end by itself."""
        if self._is_settled:
            return
        self._leave()
        self._timer = asyncio.get_running_loop().call_later(self._owner.grace_s, self._run.close)
        try:
            self._abort()
        except Exception as error:
            _log.error(
                "the abort of the dropped stream %s failed",
                self._label,
                exc_info=redacted_exc_info(error),
            )

    def cut_off(self) -> None:
        """Close it now."""
        self._is_late = self._is_late or not self._is_settled
        self.abort()
        self._run.close()

    def end(self, failure: BaseException | None) -> None:
        """Count the end, by a failure or without; a cancellation is the event loop's own end."""
        self._leave()
        task = current_task()
        is_cancelled = isinstance(failure, asyncio.CancelledError) or (
            task is not None and task.cancelling() > 0
        )
        if self._is_late or is_cancelled:
            self._owner.timed_out += 1
        else:
            self._owner.drained += 1
        if failure is not None:
            _log.debug(
                "the dropped stream %s failed", self._label, exc_info=redacted_exc_info(failure)
            )

    def _leave(self) -> None:
        """Wait for no first token from here on."""
        self._is_settled = True
        self._timer.cancel()
        if self._notice is not None:
            self._notice.dispose()

    def _time_is_up(self) -> None:
        self._is_late = True
        _log.warning(
            "the dropped stream %s had no first token within %g s",
            self._label,
            self._owner.timeout_s,
        )
        self.abort()


_log = logging.getLogger(__name__)
