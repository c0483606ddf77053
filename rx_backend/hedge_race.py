"""The race of two engines for one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from opentelemetry import trace

from operators.assembly import Mailbox
from operators.authoring import has_content, own_copy
from rx_backend.combined_engine import EngineCall
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest
from rx_backend.retry_budget import RetryBudget

__all__ = ("HedgeRace",)


class Racer:
    """One engine of a race, pulled in a task of its own from its set-up to its close."""

    def __init__(self, call: EngineCall, race: HedgeRace, *, runs_ahead: bool) -> None:
        self.call = call
        self.runs_ahead = runs_ahead
        self.inbox: Mailbox[LLMEngineOutput] = Mailbox()
        self.output_tokens = 0
        self.pump = call.pump(
            race.request,
            partial(race.on_chunk, self),
            partial(race.on_end, self),
            partial(race.on_tokens, self),
        )

    def close(self) -> None:
        """Drop the engine without waiting; its task releases it. Idempotent."""
        self.call.leave()
        self.pump.close()


class HedgeRace(AsyncIterator[LLMEngineOutput]):
    """
    Two engines for one request until one has answered, then the winner alone.

    Args:
        first: The call of the first engine.
        ask_second: Returns the call of the second engine.
        request: The request.
        after_s: Seconds until the second engine is asked; None for never.
        budget: Has to allow the second call.
    """

    def __init__(
        self,
        first: EngineCall,
        ask_second: Callable[[], EngineCall],
        request: PreprocessedRequest,
        *,
        after_s: float | None,
        budget: RetryBudget,
    ) -> None:
        self._ask_second = ask_second
        self.request = request
        self._left_s = after_s
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._span = trace.get_current_span()
        self._changed = asyncio.Event()
        self._winner: Racer | None = None
        self._is_reported = False
        self._second: Racer | None = None
        self._first = Racer(first, self, runs_ahead=False)

    async def __anext__(self) -> LLMEngineOutput:
        while True:
            racer = self._winner or self._first
            # The first engine's failure is held back until the second one has failed too.
            if self._winner is not None or not racer.inbox.is_closed:
                if racer.inbox:
                    chunk = racer.inbox.take()
                    if chunk.finish_reason is not None:
                        racer.call.report_queue_time()
                    return chunk
                if racer.inbox.is_closed:
                    racer.inbox.raise_end()
                racer.pump.demand()
            if self._winner is None:
                await self._wait_for_change()
            else:
                await racer.inbox.changed()

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
            self._second = Racer(self._ask_second(), self, runs_ahead=True)
            self._second.pump.demand()
            self._add_wasted(len(self.request.token_ids), 0)

    def on_tokens(self, racer: Racer, tokens: int) -> None:
        """Count the tokens of a chunk, including one yielded in answer to a cancellation."""
        racer.output_tokens += tokens
        if self._is_reported and racer is not self._winner:
            self._add_wasted(0, tokens)

    def on_chunk(self, racer: Racer, chunk: LLMEngineOutput) -> None:
        """Take a chunk of an engine."""
        racer.inbox.put(own_copy(chunk) if racer.runs_ahead else chunk)
        self._changed.set()
        if self._winner is None:
            if _is_failure(chunk):
                racer.pump.close()
                self.on_end(racer, None)
            elif has_content(chunk) or chunk.finish_reason is not None:
                self._win(racer)
        if racer.runs_ahead:
            racer.pump.demand()

    def on_end(self, racer: Racer, error: BaseException | None) -> None:
        """Take the end of an engine's stream, and its error if it failed."""
        racer.inbox.end(error)
        self._changed.set()
        is_alone = self._second is None or self._second.inbox.is_closed
        if self._winner is None and self._first.inbox.is_closed and is_alone:
            self._winner = self._first
            self._report("none")

    def _win(self, winner: Racer) -> None:
        self._winner, self._left_s = winner, None
        winner.runs_ahead = False
        loser = self._first if winner is self._second else self._second
        if loser is not None and not loser.inbox.is_closed:
            if not loser.call.context.defers_abort:
                # The call's gate aborts the engine. In decode mode it is only closed (row A5).
                loser.call.context.stop_generating()
            loser.close()
        self._report("first" if winner is self._first else "second")

    def _report(self, winner: str) -> None:
        """Report ``first``, ``second`` or ``none``, once, if there was a race."""
        second = self._second
        if second is None or self._is_reported:
            return
        self._is_reported = True
        wasted = self._first.output_tokens if winner == "second" else second.output_tokens
        self._add_wasted(0, wasted)
        if self._span.is_recording():
            # The span of a dropped stream has ended by now.
            self._span.add_event("hedged", {"winner": winner})

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
        self._report("none")
        for racer in racers:
            racer.inbox.close()
        for racer in racers:
            await racer.pump.wait_closed()


def _is_failure(chunk: LLMEngineOutput) -> bool:
    """Return whether a chunk is a terminal that says ``error``; engines may give it as text."""
    reason: FinishReason | str | None = chunk.finish_reason
    return reason.is_error if isinstance(reason, FinishReason) else str(reason).startswith("error")
