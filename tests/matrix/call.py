"""What an engine of the matrix uses: its waits, its clean-up and its chunks, all of them counted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from random import Random
from typing import Any

from opentelemetry.trace import Tracer

from rx_backend import EngineConfig, LLMEngine, LLMEngineOutput, PreprocessedRequest, RequestContext
from tests.matrix.kinds import Engine
from tests.matrix.record import Record

__all__ = ("POOL", "Call", "MatrixEngine")

POOL = ThreadPoolExecutor(2, thread_name_prefix="matrix")
"""The threads that engines and consumers signal from."""

LONG_S = 0.01


class Call:
    """
    One request as its engine sees it.

    Attributes:
        record: Where everything is counted.
        context: The request's context.
        stream: The request's own stream, for the kinds that want it.
        released: Set when the consumers of the batch are through.
        tracer: Makes the engine's own spans.
        aborted: For an engine that ends by its abort.
        length: How many tokens the answer has.
    """

    def __init__(
        self,
        record: Record,
        context: RequestContext,
        rng: Random,
        released: asyncio.Event,
        tracer: Tracer,
    ) -> None:
        self.record = record
        self.context = context
        self.rng = rng
        self.released = released
        self.tracer = tracer
        self.aborted = asyncio.Event()
        self.stream: Any = None
        self.length = rng.randrange(1, 5)
        self._sent = 0

    @contextmanager
    def opened(self) -> Generator[None]:
        """Count an answer's begin and its end."""
        self.record.opened += 1
        try:
            yield
        finally:
            self.record.closed += 1

    async def pause(self, *, must_wait: bool = False) -> None:
        """Wait for a moment, in one of the ways there are, or not at all."""
        self.record.progress += 1
        loop = asyncio.get_running_loop()
        choice = self.rng.randrange(1 if must_wait else 0, 5)
        try:
            if choice == 1:
                await asyncio.sleep(0)
            elif choice == 2:
                await asyncio.sleep(self.rng.uniform(0.0002, 0.001))
            elif choice > 2:
                future: asyncio.Future[None] = loop.create_future()
                if choice == 3:
                    loop.call_soon(_resolve, future)
                else:
                    loop.call_later(0.0005, _resolve, future)
                await future
        except asyncio.CancelledError:
            self.record.cancels += 1
            raise

    def stick(self) -> None:
        """Note that the engine is about to wait forever, or for a signal."""
        self.record.is_stuck = True

    async def wait_for_ever(self) -> None:
        """Wait for what never comes."""
        self.stick()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.record.cancels += 1
            raise

    async def clean(self, *, long: bool = False) -> None:
        """Wait as clean-up does; being cancelled in it is noted, and so is why it began."""
        if sys.exc_info()[0] is GeneratorExit and not self.record.is_over:
            self.record.is_closed = True
        try:
            if long:
                await asyncio.sleep(LONG_S)
            else:
                await asyncio.sleep(0)
                await asyncio.sleep(0.0003)
        except asyncio.CancelledError:
            self.record.cuts += 1
            raise

    def apart(self) -> Call:
        """Give a copy that refers to nothing of the request."""
        other = copy(self)
        del other.context
        return other

    def token(self) -> LLMEngineOutput:
        """Make the next token's chunk."""
        self.has_token()
        self._sent += 1
        return LLMEngineOutput.token(self._sent - 1)

    def has_token(self) -> None:
        """Note that there is a token; one in the iteration of the drop counts (row A5)."""
        self.record.progress += 1
        if not self.record.is_drop_over:
            self.record.has_content = True

    def stop(self) -> LLMEngineOutput:
        """Make the terminal."""
        self.fail()
        return LLMEngineOutput.stop()

    def cancelled(self) -> LLMEngineOutput:
        """Make the terminal of a request that was stopped."""
        self.fail()
        return LLMEngineOutput.cancelled()

    def fail(self) -> None:
        """Note that the engine is about to end its answer."""
        self.record.is_over = True

    def signal(self, *, kill: bool = False, cleans: bool = False) -> None:
        """Have the engine stop its own request; what it does in its clean-up aborts nothing (A5)."""
        record = self.record
        record.is_signalled = True
        if not record.is_drop_over:
            record.is_signalled_live = True
        # A thread's signal may be on its way to the loop still.
        cleans = cleans or self.context.is_stopped
        if not cleans and record.is_live and record.is_exact and record.mode != "decode":
            record.must_abort = True
        if kill:
            self.context.kill()
        else:
            self.context.stop_generating()

    def notify(self) -> None:
        """Tell of the first token."""
        self.has_token()
        self.context.notify_first_token()


class MatrixEngine(LLMEngine):
    """One request's engine: plays its kind."""

    def __init__(self, kind: Engine, call: Call) -> None:
        self._kind = kind
        self._call = call

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="matrix")

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        return self._kind.generate(self._call)

    async def abort(self, context: RequestContext) -> None:
        self._call.record.aborts += 1
        if self._kind.abort is not None:
            await self._kind.abort(self._call)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
