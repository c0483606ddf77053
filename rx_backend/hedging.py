"""Ask a second engine too when the first one is slow to begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from operators import HedgeOutcome, hedge, stateless
from operators.assembly import Callbacks
from operators.authoring import AnyOperator, FusedRun
from rx_backend.engine import LLMEngine
from rx_backend.live_engines import LiveEngines, check_engine, check_functions
from rx_backend.pipeline import RequestScope
from rx_backend.resumption import has_hand_off

__all__ = ("hedge_engines",)


def hedge_engines(
    scope: RequestScope,
    after_s: float,
    second_engine: LLMEngine | Callable[[], LLMEngine],
    *,
    on_outcome: Callable[[HedgeOutcome], None] | None = None,
) -> AnyOperator:
    """
    Make the operator that asks a second engine too when the first is slow to begin.

    It stands first, and is made first::

        pipeline=lambda scope: [hedge_engines(scope, 0.5, spare), *standard_pipeline(scope)]

    The engine that gives a token first goes on; the other one is aborted once, and closed. In decode
    mode the loser is closed without an abort, as it had no token yet (row A5). The second engine has
    a context of its own, ``<id>/hedge``, which is stopped with the request's and when it loses. A
    stop is for both while both are at work, and after it no second engine is asked.

    A health check is not hedged, and neither is a request with a hand-off from another worker,
    which only one engine can take.

    Args:
        scope: The request.
        after_s: How long the first engine has for its first token, in seconds, 0 or more.
        second_engine: An engine that is started, or a function that chooses one.
        on_outcome: Told which engine went on, where a second one was asked.

    Raises:
        ValueError, TypeError: An argument is something else.

    Errors: see ``operators.hedge``.

    >>> from rx_backend import EngineAdapter, PreprocessedRequest, standard_pipeline
    >>> from rx_backend.engines import SampleEngine
    >>> from rx_backend.testing import run_virtual
    >>> async def main():
    ...     spare = SampleEngine(token_interval_ms=10)
    ...     def pipeline(scope):
    ...         hedged = hedge_engines(scope, 0.5, spare, on_outcome=print)
    ...         return [hedged, *standard_pipeline(scope)]
    ...     slow = EngineAdapter(SampleEngine(token_interval_ms=60_000), pipeline=pipeline)
    ...     async for item in await slow.generate(PreprocessedRequest(token_ids=[1])):
    ...         pass
    ...     print(item.data.completion_usage)
    >>> run_virtual(main())
    HedgeOutcome(winner='second', elapsed_s=0.51, first_failure=None, second_failure=None)
    CompletionUsage(prompt_tokens=1, completion_tokens=16, total_tokens=17)
    """
    check_engine("hedge_engines: second_engine", second_engine)
    check_functions("hedge_engines", on_outcome=on_outcome)
    engines = LiveEngines(scope)

    async def second() -> FusedRun[Any]:
        engine = second_engine
        if not hasattr(engine, "generate"):
            engine = cast("Callable[[], LLMEngine]", engine)()
        return await engines.open(cast("LLMEngine", engine), scope.request, "hedge")

    def tell(outcome: HedgeOutcome) -> None:
        if scope.recording:
            scope.add_event("hedged", {"winner": outcome.winner or "none"})
        if on_outcome is not None:
            on_outcome(outcome)

    made: AnyOperator = hedge(
        after_s,
        second,
        abort_first=engines.abort_first_as_loser,
        abort_second=engines.stop_other,
        on_first_over=engines.leave_first,
        is_stopped=lambda: scope.context.is_stopped,
        on_outcome=tell,
    )
    is_for_one = scope.request.is_probe or has_hand_off(scope.request)
    return _unchanged() if is_for_one else made


@stateless
def _unchanged() -> Hooks[Any, Any]:
    """Hand everything through, at no cost."""
    return Hooks()
