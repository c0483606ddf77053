"""A scheduler in its own thread: several requests, with one step at a time for all of them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from copy import copy
from typing import Any, Final

from rx_backend.checks import function, integer
from rx_backend.context import RequestContext
from rx_backend.engines.chunk_queue import ChunkQueue
from rx_backend.engines.step_sequence import Outgoing, StepScheduler, StepSequence
from rx_backend.errors import (
    BackendError,
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    as_backend_error,
)
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("StepThread",)


_MOST_FAILURES: Final = 8
"""
The number of failed steps in a row after which the thread ends.

A bad request fails its own step, and the next success resets the count. A lost device fails all
steps: without a limit its worker would stay in discovery and fail every request.
"""


def _checked(scheduler: StepScheduler) -> StepScheduler:
    """Return *scheduler*, checked: without a callable method requests would never end."""
    if isinstance(scheduler, type):
        raise InvalidArgument(f"scheduler: expected an object, got the class {scheduler!r}")
    for name in ("admit", "step", "release"):
        function(f"scheduler.{name}", getattr(scheduler, name, None))
    return scheduler


class StepThread:
    """
    Run a scheduler in its own thread, for many streams; create it in the event loop.

    Between two steps the thread releases sequences whose requests were stopped or dropped, and
    admits waiting ones, the oldest first. A sequence with *max_ahead* chunks waiting for its
    consumer is left out of the steps until there is room. The event loop is woken once per step.
    The thread sleeps while there is nothing to do.

    Args:
        scheduler: The work of a step.
        max_sequences: Maximum of sequences in the batch; others wait.
        max_ahead: How many chunks of a sequence may wait for its consumer.

    Raises:
        InvalidArgument: *max_sequences* or *max_ahead* is below 1, or a method of *scheduler* is
            missing or async.

    >>> import asyncio
    >>> from rx_backend import FinishReason, PreprocessedRequest, RequestContext
    >>> class Counter:
    ...     def admit(self, sequence): sequence.state = iter((1, 2, 3))
    ...     def step(self, sequences):
    ...         for sequence in sequences:
    ...             token = next(sequence.state)
    ...             sequence.emit_token(token, FinishReason.STOP if token == 3 else None)
    ...     def release(self, sequence): sequence.state = None
    >>> async def main():
    ...     steps = StepThread(Counter(), max_sequences=8)
    ...     async for chunk in steps.stream(PreprocessedRequest(token_ids=[1]), RequestContext()):
    ...         print(chunk.token_ids, chunk.finish_reason)
    ...     await steps.close()
    >>> asyncio.run(main())
    [1] None
    [2] None
    [3] stop
    """

    def __init__(
        self, scheduler: StepScheduler, *, max_sequences: int, max_ahead: int = 16
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheduler = _checked(scheduler)
        self._max = integer("max_sequences", max_sequences, low=1)
        self._max_ahead = integer("max_ahead", max_ahead, low=1, unit="chunks")
        self._changed = threading.Condition()
        self._waiting: deque[StepSequence] = deque()
        self._active: list[StepSequence] = []
        self._is_closing = False
        self._failures = 0
        self._failure: Disconnected | None = None
        self._open: set[ChunkQueue] = set()
        self._draining: list[asyncio.Future[None]] = []
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """How many sequences are in the batch."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many sequences wait for a place in the batch."""
        return len(self._waiting)

    async def stream(
        self, request: PreprocessedRequest, context: RequestContext, *, state: Any = None
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Queue a request and yield its chunks up to the terminal.

        Args:
            request: The request.
            context: Its context.
            state: The first `StepSequence.state`.

        Raises:
            EngineShutdown: The thread was closed.
            Disconnected: The thread has ended by itself (row E7).
            BackendError: The scheduler failed.
            RuntimeError: The thread was created in another event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("the engine was started in another event loop")
        queue = ChunkQueue(request, context, max_ahead=self._max_ahead, on_change=self._wake)
        with queue:
            self._submit(StepSequence(request, context, queue, state))
            self._open.add(queue)
            try:
                async for chunk in queue:
                    yield chunk
            finally:
                self._open.discard(queue)

    async def drain(self) -> None:
        """Wait until no sequence is in the batch or waits for a place, or the thread ends."""
        with self._changed:
            if self._is_closing:
                return
            drained = self._loop.create_future()
            self._draining.append(drained)
            self._changed.notify()
        await drained

    async def close(self) -> None:
        """End the streams with `EngineShutdown`, and wait for the end of the thread. Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.shield(self._ended)
        self._thread.join()

    async def lost(self) -> str:
        """Wait until the thread has ended by itself, and return why (row E7)."""
        await asyncio.shield(self._ended)
        if self._failure is None:
            await asyncio.get_running_loop().create_future()
        return self._why_ended().message

    def _submit(self, sequence: StepSequence) -> None:
        with self._changed:
            if self._is_closing:
                raise self._why_ended()
            self._waiting.append(sequence)
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _why_ended(self) -> BackendError:
        # A new one for each: raising an error changes it.
        return copy(self._failure) if self._failure else EngineShutdown("the engine was cleaned up")

    def _end_streams(self) -> None:
        """End all open streams once the thread has ended."""
        for queue in self._open:
            queue.end(self._why_ended())
        self._ended.set_result(None)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._admit()
                self._step()
                self._settle()
        except Disconnected as error:
            self._failure = error
        except BaseException as error:
            # Raised in the event loop, `SystemExit` and the like would end the process.
            self._failure = Disconnected(f"the step thread has ended: {error!r}")
        with self._changed:
            self._is_closing = True
            self._waiting.clear()
            self._end_drain()
        try:
            for sequence in self._active:
                self._release(sequence)
            self._active.clear()
        finally:
            self._call(self._end_streams)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; return whether to continue."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._has_work())
            if not (self._active or self._waiting):
                self._end_drain()
            return not self._is_closing

    def _has_work(self) -> bool:
        if self._waiting and len(self._active) < self._max:
            return True
        if self._draining and not self._active:
            return True
        return any(each.is_cancelled or not each.queue.is_full for each in self._active)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._max:
            sequence = self._waiting.popleft()
            if sequence.is_cancelled:
                continue
            try:
                self._scheduler.admit(sequence)
            except Disconnected:
                raise
            except Exception as error:
                sequence.fail(as_backend_error(error))
                self._send([sequence])
            else:
                self._active.append(sequence)

    def _step(self) -> None:
        ready = [each for each in self._active if not each.is_cancelled and not each.queue.is_full]
        if not ready:
            return
        try:
            self._scheduler.step(ready)
        except Disconnected:
            raise
        except Exception as error:
            self._failures += 1
            if self._failures == _MOST_FAILURES:
                raise Disconnected(f"{_MOST_FAILURES} steps in a row failed: {error!r}") from error
            for sequence in ready:
                sequence.fail(copy(as_backend_error(error)))
        else:
            self._failures = 0

    def _settle(self) -> None:
        """Release sequences that are over or whose consumers have exited, then send the results."""
        active, self._active = self._active, []
        leaving: list[StepSequence] = []
        for sequence in active:
            # Checked once: the consumer may exit at any time.
            (leaving if sequence.is_over or sequence.is_cancelled else self._active).append(
                sequence
            )
        for sequence in leaving:
            self._release(sequence)
        self._send(active)

    def _release(self, sequence: StepSequence) -> None:
        try:
            self._scheduler.release(sequence)
        except Exception as error:
            _log.error("release failed", request_id=sequence.context.id, **describe(error))

    def _send(self, sequences: Iterable[StepSequence]) -> None:
        sent = [(each.queue, outgoing) for each in sequences if (outgoing := each.take_outgoing())]
        if sent:
            self._call(_receive, sent)

    def _end_drain(self) -> None:
        draining, self._draining = self._draining, []
        for drained in draining:
            self._call(_resolve, drained)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        # A closed loop has no consumers.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


_log = get_logger(__name__)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _receive(sent: list[tuple[ChunkQueue, Outgoing]]) -> None:
    """Deliver the results of a step, in the event loop."""
    for queue, outgoing in sent:
        for item in outgoing:
            if isinstance(item, BaseException):
                queue.end(item)
            else:
                queue.receive(item)
                if item.finish_reason is not None:
                    queue.end()
