"""The race of two engines for one request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from opentelemetry import trace

from operators.assembly import drop_top_frame, start_task
from operators.authoring import has_content, own_copy
from rx_backend.combined_engine import EngineCall
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest
from rx_backend.retry_budget import RetryBudget

__all__ = ("HedgeOutcome", "HedgeRace")

Side: TypeAlias = Literal["first", "second"]


@dataclass(frozen=True, slots=True)
class HedgeOutcome:
    """
    The outcome of a race.

    Attributes:
        winner: The engine that answered first; None if both failed, or if the stream was dropped
            before either had answered.
        elapsed_s: Seconds from the first pull to the outcome.
        wasted_input_tokens: Prompt tokens that the other engine has read as well.
        wasted_output_tokens: Tokens that the other engine has yielded by then.
        first_failure: The first engine's error, if it failed before the other one answered.
        second_failure: The second engine's error, likewise.
    """

    winner: Side | None
    elapsed_s: float
    wasted_input_tokens: int = 0
    wasted_output_tokens: int = 0
    first_failure: BaseException | None = None
    second_failure: BaseException | None = None


class Racer:
    """One engine of a race, pulled in a task of its own from its set-up to its close."""

    def __init__(
        self, call: EngineCall, request: PreprocessedRequest, race: HedgeRace, *, runs_ahead: bool
    ) -> None:
        self.call = call
        self.runs_ahead = runs_ahead
        self.chunks: deque[LLMEngineOutput] = deque()
        self.output_tokens = 0
        self.error: BaseException | None = None
        self.is_over = self.is_closed = False
        self._demand = asyncio.Event()
        # Only the task refers to the race: a reference here would be a cycle.
        self.task = start_task(self._pull(request, race), asyncio.get_running_loop())

    def demand(self) -> None:
        """Have one more chunk pulled, unless a pull is under way."""
        self._demand.set()

    def close(self) -> None:
        """Drop the engine without waiting; its task releases it. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self.call.leave()
            if not self.is_over:
                self.task.cancel()

    async def _pull(self, request: PreprocessedRequest, race: HedgeRace) -> None:
        error: BaseException | None = None
        try:
            async for chunk in await self.call.open(request, partial(race.on_tokens, self)):
                if not race.on_chunk(self, chunk):
                    break
                if not self.runs_ahead:
                    self._demand.clear()
                    await self._demand.wait()
        except (Exception, asyncio.CancelledError) as failure:
            drop_top_frame(failure)
            error = failure
        race.on_end(self, error)
        await self.call.aclose()

    def raise_error(self) -> None:
        """Raise the error that the engine failed with, if it did."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                # This frame is in its traceback: a reference back would be a cycle.
                del error


class HedgeRace:
    """
    Two engines for one request until one has answered, then the winner alone.

    Args:
        first: The call of the first engine.
        ask_second: Returns the call of the second engine.
        request: The request.
        after_s: Seconds until the second engine is asked; None for never.
        budget: Has to allow the second call.
        on_outcome: Called with the outcome if the second engine was asked.
    """

    def __init__(
        self,
        first: EngineCall,
        ask_second: Callable[[], EngineCall],
        request: PreprocessedRequest,
        *,
        after_s: float | None,
        budget: RetryBudget,
        on_outcome: Callable[[HedgeOutcome], None] | None,
    ) -> None:
        self._ask_second = ask_second
        self._request = request
        self._left_s = after_s
        self._budget = budget
        self._on_outcome = on_outcome
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._span = trace.get_current_span()
        self._changed = asyncio.Event()
        self._winner: Racer | None = None
        self._is_reported = False
        self._second: Racer | None = None
        self._first = Racer(first, request, self, runs_ahead=False)

    async def next_chunk(self) -> LLMEngineOutput | None:
        """Wait for the next chunk to hand out; None at the end."""
        while True:
            racer = self._winner or self._first
            # The first engine's failure is held back until the second one has failed too.
            if self._winner is not None or not racer.is_over:
                if racer.chunks:
                    chunk = racer.chunks.popleft()
                    if chunk.finish_reason is not None:
                        racer.call.report_queue_time()
                    return chunk
                if racer.is_over:
                    racer.raise_error()
                    return None
                racer.demand()
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        """Wait for a chunk or an end; this is the time in which the first engine may be slow."""
        self._changed.clear()
        begun, timer = self._loop.time(), None
        if self._left_s is not None:
            timer = self._loop.call_later(self._left_s, self._hedge)
        try:
            await self._changed.wait()
        finally:
            if timer is not None and self._left_s is not None:
                timer.cancel()
                self._left_s = max(self._left_s - (self._loop.time() - begun), 0.0)

    def _hedge(self) -> None:
        """Ask the second engine, if that still makes sense and the budget allows it."""
        self._left_s = None
        is_settled = self._winner is not None or self._first.call.context.is_stopped
        if not is_settled and self._budget.withdraw():
            self._second = Racer(self._ask_second(), self._request, self, runs_ahead=True)
            self._add_wasted(len(self._request.token_ids), 0)

    def on_tokens(self, racer: Racer, tokens: int) -> None:
        """Count the tokens of a chunk, including one yielded in answer to a cancellation."""
        racer.output_tokens += tokens
        if self._is_reported and racer is not self._winner:
            self._add_wasted(0, tokens)

    def on_chunk(self, racer: Racer, chunk: LLMEngineOutput) -> bool:
        """Take a chunk; return whether the engine is to be pulled again."""
        racer.chunks.append(own_copy(chunk) if racer.runs_ahead else chunk)
        self._changed.set()
        if self._winner is None:
            if _is_failure(chunk):
                return False
            if has_content(chunk) or chunk.finish_reason is not None:
                self._win(racer)
        return True

    def on_end(self, racer: Racer, error: BaseException | None) -> None:
        """Take the end of an engine's stream, and its error if it failed."""
        if racer.is_closed:
            return
        racer.is_over, racer.error = True, error
        self._changed.set()
        is_alone = self._second is None or self._second.is_over
        if self._winner is None and self._first.is_over and is_alone:
            self._winner = self._first
            self._report(None)

    def _win(self, winner: Racer) -> None:
        self._winner, self._left_s = winner, None
        winner.runs_ahead = False
        loser = self._first if winner is self._second else self._second
        if loser is not None and not loser.is_over:
            if not loser.call.context.defers_abort:
                # The call's gate aborts the engine. In decode mode it is only closed (row A5).
                loser.call.context.stop_generating()
            loser.close()
        self._report("first" if winner is self._first else "second")

    def _report(self, winner: Side | None) -> None:
        """Report the outcome, once, if there was a race."""
        second = self._second
        if second is None or self._is_reported:
            return
        self._is_reported = True
        wasted = self._first.output_tokens if winner == "second" else second.output_tokens
        self._add_wasted(0, wasted)
        if self._span.is_recording():
            # The span of a dropped stream has ended by now.
            self._span.add_event("hedged", {"winner": winner or "none"})
        outcome = HedgeOutcome(
            winner,
            round(self._loop.time() - self._started_at, 6),
            len(self._request.token_ids),
            wasted,
            self._first.error,
            second.error,
        )
        try:
            if self._on_outcome is not None:
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
        self._report(None)
        for racer in racers:
            racer.error = None
        await asyncio.wait([racer.task for racer in racers])


def _is_failure(chunk: LLMEngineOutput) -> bool:
    """Return whether a chunk is a terminal that says ``error``; engines may give it as text."""
    reason: FinishReason | str | None = chunk.finish_reason
    return reason.is_error if isinstance(reason, FinishReason) else str(reason).startswith("error")


_log = get_logger(__name__)
