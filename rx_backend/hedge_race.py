"""The race of two engines for one request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from opentelemetry import trace

from operators.assembly import drop_top_frame, start_task
from operators.authoring import has_content, own_copy
from rx_backend.combined_engine import EngineCall
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest

__all__ = ("HedgeOutcome", "HedgeRace")


@dataclass(frozen=True, slots=True)
class HedgeOutcome:
    """
    The end of a race.

    Attributes:
        winner: Which engine answered first; None where both failed, or the stream was dropped
            before either had answered.
        elapsed_s: When that was known, in seconds from the first pull.
        wasted_input_tokens: Tokens of the prompt that the other engine has read too.
        wasted_output_tokens: Tokens that the other engine has handed over by then; those that it
            keeps to itself are unknown.
        first_failure: What the first engine failed with before the other had answered.
        second_failure: What the second engine failed with, likewise.
    """

    winner: Literal["first", "second"] | None
    elapsed_s: float
    wasted_input_tokens: int = 0
    wasted_output_tokens: int = 0
    first_failure: BaseException | None = None
    second_failure: BaseException | None = None


class Racer:
    """
    One engine of a race, from its set-up to its close in a task of its own.

    Args:
        call: The engine's part in the request.
        request: The request.
        race: Where each chunk and the end are reported.
        runs_ahead: Whether the next pull waits for no demand.

    Attributes:
        chunks: What waits to be handed out.
        is_over: No more chunks will come.
        is_closed: The race has no use for it.
        has_failed: Its last chunk says ``error``; its close may still be awaited.
        error: What it failed with.
    """

    __slots__ = (
        "_demand",
        "call",
        "chunks",
        "error",
        "has_failed",
        "is_closed",
        "is_over",
        "output_tokens",
        "runs_ahead",
        "task",
    )

    def __init__(
        self, call: EngineCall, request: PreprocessedRequest, race: HedgeRace, *, runs_ahead: bool
    ) -> None:
        self.call = call
        self.chunks: deque[LLMEngineOutput] = deque()
        self.error: BaseException | None = None
        self.is_over = self.is_closed = self.has_failed = False
        self.output_tokens = 0
        self.runs_ahead = runs_ahead
        self._demand = asyncio.Event()
        # Only the task refers to the race: a reference here would be a cycle.
        self.task = start_task(self._pull(request, race), asyncio.get_running_loop())

    def _count(self, tokens: int) -> None:
        self.output_tokens += tokens

    def demand(self) -> None:
        """Have one more chunk pulled, unless a pull is under way."""
        self._demand.set()

    def close(self) -> None:
        """Drop the engine without waiting; its task releases it. Idempotent."""
        if not self.is_closed and not self.is_over:
            self.is_closed = True
            self.call.leave()
            self.task.cancel()

    async def _pull(self, request: PreprocessedRequest, race: HedgeRace) -> None:
        error: BaseException | None = None
        try:
            async for chunk in await self.call.open(request, self._count):
                if self.is_closed or not race.on_chunk(self, chunk):
                    break
                if not self.runs_ahead:
                    self._demand.clear()
                    await self._demand.wait()
        except (Exception, asyncio.CancelledError) as failure:
            drop_top_frame(failure)
            error = failure
        finally:
            await self.call.aclose()
        self.is_over = True
        if not self.is_closed:
            self.error = error
        race.on_end(self)

    def raise_error(self) -> None:
        """Raise what the engine failed with, if it did."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                # This frame is in its traceback: a reference back would be a cycle.
                del error


class HedgeRace:
    """
    Two engines for one request, until one of them has answered; then the winner alone.

    Args:
        begin: Begins a call, of the first engine or of the second.
        request: The request.
        after_s: How long the first engine is waited for; None for ever.
        may_hedge: Whether the second engine may be asked; called when the time is up.
        on_outcome: Called with the outcome, where a second engine was asked.
    """

    def __init__(
        self,
        begin: Callable[[Literal["first", "second"]], EngineCall],
        request: PreprocessedRequest,
        after_s: float | None,
        may_hedge: Callable[[], bool],
        on_outcome: Callable[[HedgeOutcome], None] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._span = trace.get_current_span()
        self._begin = begin
        self._request = request
        self._left_s = after_s
        self._may_hedge = may_hedge
        self._on_outcome = on_outcome
        self._changed = asyncio.Event()
        self._winner: Racer | None = None
        self._second: Racer | None = None
        self._is_told = False
        self._first = Racer(begin("first"), request, self, runs_ahead=False)

    async def next_chunk(self) -> LLMEngineOutput | None:
        """Wait for the next chunk to hand out; None at the end."""
        while True:
            racer = self._winner or self._first
            # How the first engine failed is not told before the second has failed too.
            if self._winner is not None or not (racer.is_over or racer.has_failed):
                if racer.chunks:
                    chunk = racer.chunks.popleft()
                    if chunk.finish_reason is not None:
                        racer.call.report_queue_time()
                    return chunk
                if racer.is_over:
                    racer.raise_error()
                    return None
                racer.demand()
            await self._change()

    async def _change(self) -> None:
        """Wait until something has happened; the time for that counts for the first engine."""
        self._changed.clear()
        begun, timer = self._loop.time(), None
        if self._left_s is not None:
            timer = self._loop.call_later(self._left_s, self._ask_second)
        try:
            await self._changed.wait()
        finally:
            if timer is not None and self._left_s is not None:
                timer.cancel()
                self._left_s = max(self._left_s - (self._loop.time() - begun), 0.0)

    def _ask_second(self) -> None:
        self._left_s = None
        if self._winner is None and self._may_hedge():
            self._second = Racer(self._begin("second"), self._request, self, runs_ahead=True)
            self._add_wasted(len(self._request.token_ids), 0)

    def on_chunk(self, racer: Racer, chunk: LLMEngineOutput) -> bool:
        """Take a chunk; return whether the engine goes on."""
        racer.chunks.append(own_copy(chunk) if racer.runs_ahead else chunk)
        self._changed.set()
        if self._winner is None:
            if _is_failure(chunk):
                racer.has_failed = True
                return False
            if has_content(chunk) or chunk.finish_reason is not None:
                self._win(racer)
        return True

    def on_end(self, racer: Racer) -> None:
        """Note that an engine is at its end, and released."""
        self._changed.set()
        if self._winner is None:
            if self._first.is_over and (self._second is None or self._second.is_over):
                self._winner = self._first
                self._tell(None)
        elif racer is not self._winner:
            self._add_wasted(0, racer.output_tokens)

    def _win(self, winner: Racer) -> None:
        self._winner = winner
        self._left_s = None
        winner.runs_ahead = False
        loser = self._first if winner is self._second else self._second
        if loser is not None and not loser.is_over:
            if not loser.call.context.defers_abort:
                # The call's gate aborts the engine. In decode mode it is only closed (row A5).
                loser.call.context.stop_generating()
            loser.close()
        self._tell("first" if winner is self._first else "second")

    def _tell(self, winner: Literal["first", "second"] | None) -> None:
        second = self._second
        if second is None or self._is_told:
            return
        self._is_told = True
        loser = self._first if winner == "second" else second
        outcome = HedgeOutcome(
            winner,
            round(self._loop.time() - self._started_at, 6),
            len(self._request.token_ids),
            loser.output_tokens,
            self._first.error,
            second.error,
        )
        if self._span.is_recording():
            # A dropped stream's span has ended by now.
            self._span.add_event("hedged", {"winner": winner or "none"})
        if self._on_outcome is not None:
            try:
                self._on_outcome(outcome)
            except Exception as error:
                _log.error("on_outcome failed", **describe(error))

    def _add_wasted(self, input_tokens: int, output_tokens: int) -> None:
        wasted = self._first.call.context.wasted
        if wasted is not None:
            wasted.input += input_tokens
            wasted.output += output_tokens

    async def aclose(self) -> None:
        """Drop what is left of both engines, and wait until it is released."""
        racers = [self._first] if self._second is None else [self._first, self._second]
        for racer in racers:
            racer.close()
        self._tell(None)
        for racer in racers:
            racer.error = None
        await asyncio.wait([racer.task for racer in racers])


def _is_failure(chunk: LLMEngineOutput) -> bool:
    """Whether a chunk is a terminal that says `error`; engines may give it as text."""
    reason: FinishReason | str | None = chunk.finish_reason
    return reason.is_error if isinstance(reason, FinishReason) else str(reason).startswith("error")


_log = get_logger(__name__)
