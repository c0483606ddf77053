"""What a consumer of the matrix uses: its stream, and what it says of its doings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import Any, cast

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Tracer

from rx_backend import (
    EngineAdapter,
    LLMEngineOutput,
    Pipeline,
    PreprocessedRequest,
    RequestContext,
    standard_pipeline,
)
from rx_backend.protocols import SamplingOptions
from tests.matrix.call import Call, MatrixEngine
from tests.matrix.kinds import Consumer, Engine
from tests.matrix.record import Record

__all__ = ("Request",)

MANY_ITEMS = 40


class Request:
    """
    One request as its consumer sees it.

    Attributes:
        record: Where everything is noted.
        kind: What its engine is.
        context: The request's context.
        rng: For the consumer's choices.
        loop: The running event loop.
    """

    def __init__(
        self,
        record: Record,
        kinds: tuple[Engine, Consumer],
        rng: Random,
        released: asyncio.Event,
        *,
        tracer: Tracer,
        meter_provider: MeterProvider,
    ) -> None:
        self.record = record
        self.context = RequestContext()
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.kind = kinds[0]
        record.is_exact = kinds[1].is_exact
        self._call = Call(record, self.context, rng, released, tracer)
        engine = MatrixEngine(self.kind, self._call)
        self._make_adapter = partial(
            EngineAdapter,
            engine,
            record.mode,
            tracer=tracer,
            meter_provider=meter_provider,
            record=rng.choice([None, False]),
        )
        self._items = 0
        if not self.kind.holds_task:
            record.watch("the engine", engine)
            record.watch("the context", self.context)

    async def open(
        self, *operators: Any, pipeline: Pipeline | None = None, model: Any = "matrix"
    ) -> Any:
        """Ask for the stream, with *operators* at the end of its pipeline, or with another one."""
        self.record.is_asked = True
        adapter = self._make_adapter(pipeline=pipeline or standard_pipeline)
        if operators:
            adapter = adapter.with_operators(*operators)
        request = PreprocessedRequest(
            model=model, token_ids=[1], sampling_options=SamplingOptions(n=self.kind.answers)
        )
        stream = await adapter.generate(request, self.context)
        if not self.kind.holds_task:
            self.record.watch("the stream", stream)
        if self.kind.fails_setup:
            self.record.blame("S5: the set-up failed, and there is a stream")
        self.record.has_stream = True
        if self.kind.wants_stream:
            self._call.stream = stream
        return stream

    async def pause(self) -> None:
        """Be busy for a moment, or not at all."""
        choice = self.rng.randrange(4)
        if choice == 1:
            await asyncio.sleep(0)
        elif choice > 1:
            await asyncio.sleep(self.rng.uniform(0.0, 0.002))

    def note(self, item: Any) -> None:
        """Note an item that was handed out, or a list of them."""
        if isinstance(item, list):
            for each in cast("list[Any]", item):
                self.note(each)
            return
        record = self.record
        if item is None or (item.data is None and item.error is None):
            return
        record.progress += 1
        self._items += 1
        if self._items == MANY_ITEMS:
            self.signal()
        if record.errors or record.terminals == self.kind.answers:
            record.blame("S2: an item after the last one")
        if item.error is not None:
            record.errors += 1
            record.last = "error"
            self._check_end(type(item.error).__name__)
            return
        chunk = cast("LLMEngineOutput", item.data)
        self._check_order(chunk.token_ids)
        if chunk.finish_reason is not None:
            record.terminals += 1
            if record.terminals == self.kind.answers:
                record.last = "terminal"
                record.is_clean = not record.is_signalled
                self._check_end("terminal")

    def _check_order(self, token_ids: list[int]) -> None:
        if self.kind.counts:
            for token_id in token_ids:
                if token_id != self.record.next_token:
                    self.record.blame(f"S1: token {token_id}, not {self.record.next_token}")
                self.record.next_token = token_id + 1

    def _check_end(self, how: str) -> None:
        record = self.record
        is_expected = how in self.kind.ends or record.is_signalled or record.is_dropped
        if record.is_exact and not is_expected:
            record.blame(f"S6: ended by {how}, not by {' or '.join(self.kind.ends) or 'anything'}")

    def ended(self) -> None:
        """Note that the stream came to its end by itself."""
        record = self.record
        if record.is_dropped or self.kind.drops_itself:
            return
        if record.last not in {"terminal", "error"}:
            record.blame("S9: an end without a terminal or an error")

    async def read(self, stream: AsyncIterator[Any], *, is_slow: bool = False) -> None:
        """Read *stream* to its end."""
        try:
            async for item in stream:
                self.note(item)
                if is_slow:
                    await self.pause()
        except self.kind.raises:
            # Nothing comes behind it; that the next pull hangs is the watchdog's to find.
            if await anext(stream, None) is not None:
                self.record.blame("S7: an item after the engine's failure")
            raise
        self.ended()

    async def some(self, stream: AsyncIterator[Any]) -> None:
        """Pull up to two items, if that many come."""
        for _ in range(self.rng.randrange(3)):
            item = await anext(stream, None)
            if item is None:
                return
            self.note(item)

    def drop(self) -> None:
        """Note that the stream is dropped now."""
        self.record.closes += 1
        self._begin_drop()

    async def drop_in_thread(self, drop: Callable[[], None]) -> None:
        """Drop the stream by calling *drop* in another thread, which may come to it late."""
        self.record.closes += 1
        self.record.is_dropped = True
        await self.loop.run_in_executor(None, drop)
        self.loop.call_soon(self.loop.call_soon, self._drop_is_over)

    def _begin_drop(self) -> None:
        if not self.record.is_dropped:
            self.record.is_dropped = True
            self.loop.call_soon(self.loop.call_soon, self._drop_is_over)

    def _drop_is_over(self) -> None:
        self.record.is_drop_over = True

    def signal(self, *, kill: bool = False, from_thread: bool = False) -> None:
        """Stop or kill the request."""
        record = self.record
        record.is_signalled = True
        if not record.is_drop_over:
            record.is_signalled_live = True
        is_due = record.mode != "decode" or record.next_token > 0
        if record.is_live and record.is_exact and is_due and not from_thread:
            record.must_abort = True
        if kill:
            self.context.kill()
        else:
            self.context.stop_generating()

    def notify(self) -> None:
        """Tell of the first token."""
        self.record.has_content = True
        self.context.notify_first_token()

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task that has the stream."""
        if not task.done():
            self._begin_drop()
            self.record.task_cancels += 1
            task.cancel()

    async def cancel_in_pull(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task that waits in a pull, and look whether that was lost (rows S6, S7)."""
        is_waiting = not task.done()
        self.cancel(task)
        if self.kind.hides_cancellation:
            await asyncio.wait([task], timeout=0.05)
            # It may not have heard of the first.
            task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if self.kind.hides_cancellation:
            return
        if is_waiting and not task.cancelled() and not self._is_of_engine(error):
            self.record.blame("S6: the consumer's cancellation is lost")

    def pull(self, stream: AsyncIterator[Any]) -> asyncio.Task[Any]:
        """Pull once, in a task."""
        return asyncio.create_task(self._pull(stream))

    async def _pull(self, stream: AsyncIterator[Any]) -> Any:
        item = await anext(stream, None)
        self.note(item)
        return item

    async def settle(self, *tasks: asyncio.Task[Any]) -> None:
        """Wait for tasks, and raise what they raised that is not for the consumer to expect."""
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.judge(error)

    def _is_of_engine(self, error: BaseException | None) -> bool:
        return isinstance(error, self.kind.raises)

    def judge(self, error: BaseException) -> None:
        """Say whether an error may reach the consumer."""
        record = self.record
        inner = error.args[0] if type(error) is Exception and error.args else None
        if isinstance(inner, BaseException):
            # As some operators of reactivex pass on what is no Exception.
            error = inner
        if isinstance(error, asyncio.CancelledError):
            if not record.task_cancels and not self.kind.cancels_consumer:
                record.blame("S6: a cancellation that nobody made reached the consumer")
        elif self.kind.cancels_consumer and isinstance(error.__cause__, asyncio.CancelledError):
            return
        elif not self._is_of_engine(error) and (record.has_stream or not self.kind.fails_setup):
            where = _last_line(error)
            record.blame(f"S6: {type(error).__name__} reached the consumer: {error} ({where})")


def _last_line(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return "?"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{code.co_filename.rsplit('/', 2)[-1]}:{traceback.tb_lineno} in {code.co_name}"
