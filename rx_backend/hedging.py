"""An engine that also asks a second engine when the first is slow to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Annotated

from opentelemetry import trace

from operators.assembly import CHECKED, Mailbox, check_arguments
from operators.authoring import AtLeast, has_content, own_copy
from rx_backend.combined_engine import CombinedEngine, EngineCall
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumption import has_hand_off
from rx_backend.retry_budget import RetryBudget

__all__ = ("HedgedEngine",)


class HedgedEngine(CombinedEngine):
    """
    Also ask a second engine when the first has no token after *after_s*; the faster one wins.

    A terminal counts as an answer. The loser is aborted once and closed; in decode mode it is only
    closed, since it had no token yet (row A5). Each engine is pulled in its own task, so that
    neither waits for the other, nor the winner for the loser's clean-up; this costs two event-loop
    iterations per token. The second engine is pulled up to its first token, then on demand (row
    S4).

    If one engine fails before the other has answered, ends without a terminal, or ends its only
    answer with ``error``, the other one answers; if both do, the stream ends as the first one did.
    A failure before *after_s* is not hedged. Each engine has its own context; the second one's id
    is ``<id>/hedge``. A stop of the request reaches both, and prevents the second call. Health
    checks are not hedged, nor requests with a hand-off from another worker, which only one engine
    can take.

    Args:
        first: The engine that is asked first.
        second: The other engine.
        after_s: Time for the first engine's first token, in seconds, at least 0; the consumer's own
            time does not count.
        budget: Limits the share of hedged requests; by default a tenth of all, and bursts of 10.

    Raises:
        ValueError, TypeError: An argument is invalid.

    >>> import asyncio
    >>> from rx_backend import EngineAdapter, PreprocessedRequest
    >>> from rx_backend.engines import SampleEngine
    >>> from rx_backend.testing import run_virtual
    >>> async def main():
    ...     slow, fast = SampleEngine(token_interval_ms=60_000), SampleEngine(token_interval_ms=10)
    ...     engine = HedgedEngine(slow, fast, after_s=0.5)
    ...     async for item in await EngineAdapter(engine).generate(PreprocessedRequest(token_ids=[1])):
    ...         pass
    ...     print(item.data.completion_usage)
    ...     print(round(asyncio.get_running_loop().time(), 3), "s")
    >>> run_virtual(main())
    CompletionUsage(prompt_tokens=1, completion_tokens=16, total_tokens=17)
    0.66 s
    """

    def __init__(
        self,
        first: LLMEngine,
        second: LLMEngine,
        *,
        after_s: Annotated[float, AtLeast(0, "seconds")],
        budget: Annotated[RetryBudget, CHECKED] | None = None,
    ) -> None:
        super().__init__((first, second))
        check_arguments(HedgedEngine, first, second, after_s=after_s, budget=budget)
        self.after_s = after_s
        self.budget = RetryBudget() if budget is None else budget

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the chunks of the engine that answers first."""
        self.budget.add_request()
        race = _Race(self, request, context)
        try:
            async for chunk in race:
                yield chunk
        finally:
            await race.aclose()


class _Racer:
    """One engine of a race, pulled in its own task from its set-up to its close."""

    def __init__(self, call: EngineCall, race: _Race) -> None:
        self.call = call
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


class _Race(AsyncIterator[LLMEngineOutput]):
    """Two engines for one request until one has answered, then the winner alone."""

    def __init__(
        self, engine: HedgedEngine, request: PreprocessedRequest, context: RequestContext
    ) -> None:
        self._engine = engine
        self.request = request
        self._context = context
        # With several answers, one that fails does not affect the others.
        self._has_one_answer = (request.sampling_options.n or 1) == 1
        is_for_one = request.is_probe or has_hand_off(request)
        # What is left of the time for the first engine; None where no second one is asked any more.
        self._left_s = None if is_for_one else engine.after_s
        self._loop = asyncio.get_running_loop()
        self._span = trace.get_current_span()
        self._changed = asyncio.Event()
        self._winner: _Racer | None = None
        self._second: _Racer | None = None
        self._first = _Racer(EngineCall(engine.engines[0], context), self)

    async def __anext__(self) -> LLMEngineOutput:
        while True:
            racer = self._winner or self._first
            # The first engine's failure is held back until the second one has failed too.
            if self._winner is not None or not racer.inbox.is_closed:
                if racer.inbox:
                    racer.call.report_queue_time()
                    return racer.inbox.take()
                if racer.inbox.is_closed:
                    racer.inbox.raise_end()
                racer.pump.demand()
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
            if timer is not None:
                timer.cancel()
            if self._left_s is not None:
                self._left_s = max(self._left_s - (self._loop.time() - begun), 0.0)

    def _hedge(self) -> None:
        """Ask the second engine, if that still makes sense and the budget allows it."""
        self._left_s = None
        is_settled = self._winner is not None or self._context.is_stopped
        if not is_settled and self._engine.budget.withdraw():
            call = EngineCall(self._engine.engines[1], self._context, "hedge")
            self._second = _Racer(call, self)
            self._second.pump.demand()
            self._add_wasted(len(self.request.token_ids), 0)

    def on_tokens(self, racer: _Racer, tokens: int) -> None:
        """Count the tokens of a chunk, including one yielded in answer to a cancellation."""
        racer.output_tokens += tokens
        if self._winner is not None and racer is not self._winner:
            self._add_wasted(0, tokens)

    def on_chunk(self, racer: _Racer, chunk: LLMEngineOutput) -> None:
        """Take a chunk of an engine."""
        racer.inbox.put(own_copy(chunk) if self._runs_ahead(racer) else chunk)
        self._changed.set()
        reason = chunk.finish_reason
        if self._winner is None:
            if self._has_one_answer and reason is not None and reason.is_error:
                racer.pump.close()
                self.on_end(racer, None)
            elif has_content(chunk) or reason is not None:
                self._win(racer)
        if self._runs_ahead(racer):
            racer.pump.demand()

    def _runs_ahead(self, racer: _Racer) -> bool:
        """Whether the second engine is pulled on until one of them has answered."""
        return self._winner is None and racer is self._second

    def on_end(self, racer: _Racer, error: BaseException | None) -> None:
        """Take the end of an engine's stream, and its error if it failed."""
        racer.inbox.end(error)
        self._changed.set()
        is_alone = self._second is None or self._second.inbox.is_closed
        if self._winner is None and self._first.inbox.is_closed and is_alone:
            self._winner = self._first
            self._report("none")

    def _win(self, winner: _Racer) -> None:
        self._winner, self._left_s = winner, None
        loser = self._first if winner is self._second else self._second
        if loser is not None and not loser.inbox.is_closed:
            if not loser.call.context.defers_abort:
                # The call's gate aborts the engine. In decode mode it is only closed (row A5).
                loser.call.context.stop_generating()
            loser.close()
        self._report("first" if winner is self._first else "second")

    def _report(self, winner: str) -> None:
        """Report ``first``, ``second`` or ``none`` if there was a race."""
        second = self._second
        if second is None:
            return
        wasted = self._first.output_tokens if winner == "second" else second.output_tokens
        self._add_wasted(0, wasted)
        if self._span.is_recording():
            # The span of a dropped stream has ended by now.
            self._span.add_event("hedged", {"winner": winner})

    def _add_wasted(self, input_tokens: int, output_tokens: int) -> None:
        wasted = self._context.wasted
        if wasted is not None:
            wasted.input += input_tokens
            wasted.output += output_tokens

    async def aclose(self) -> None:
        """Drop what is left of both engines, and wait until it is released."""
        racers = [self._first] if self._second is None else [self._first, self._second]
        for racer in racers:
            racer.close()
        for racer in racers:
            racer.inbox.close()
        for racer in racers:
            await racer.pump.wait_closed()
