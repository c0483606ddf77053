"""An engine that asks a second engine too when the first is slow to answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from rx_backend.combined_engine import CombinedEngine, EngineCall
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.hedge_race import HedgeRace
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumption import has_hand_off
from rx_backend.retry_budget import RetryBudget, check_number

__all__ = ("HedgedEngine",)


class HedgedEngine(CombinedEngine):
    """
    Ask a second engine too when the first has no token after *after_s*; the faster one wins.

    A terminal counts as an answer. The loser is aborted once and closed; in decode mode it is only
    closed, since it had no token yet (row A5). Each engine is pulled in a task of its own, so neither
    waits for the other, nor the winner for the loser's clean-up; a token costs two turns of the event
    loop for that. The second engine is pulled up to its first token, then on demand (row S4).

    If one engine fails before the other has answered, ends without a terminal, or ends with one that
    says ``error``, the other one answers; if both do, the stream ends as the first one did. A failure
    before *after_s* is not hedged. Each engine has a context of its own, the second one's id is
    ``<id>/hedge``. A stop of the request reaches both, and prevents the second call. Not hedged are
    health checks, and requests with a hand-off from another worker, which only one engine can take.

    Args:
        first: The engine that is asked first.
        second: The other engine.
        after_s: Time for the first engine's first token, in seconds, 0 or more; the consumer's own
            time is not counted.
        budget: Bounds the share of hedged requests; by default a tenth of all, and 10 at once.

    Raises:
        ValueError, TypeError: An argument does not fit.

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
        after_s: float,
        budget: RetryBudget | None = None,
    ) -> None:
        super().__init__((first, second))
        check_number("HedgedEngine: after_s", after_s, "a number of seconds")
        self._after_s = after_s
        self._budget = RetryBudget() if budget is None else budget

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the chunks of the engine that answers first."""
        self._budget.add_request()
        is_for_one = request.is_probe or has_hand_off(request)
        race = HedgeRace(
            EngineCall(self.engines[0], context, self._live),
            partial(EngineCall, self.engines[1], context, self._live, "hedge"),
            request,
            after_s=None if is_for_one else self._after_s,
            budget=self._budget,
        )
        try:
            async for chunk in race:
                yield chunk
        finally:
            await race.aclose()
