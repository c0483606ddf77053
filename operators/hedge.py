"""Start a second stream when the first is slow to begin, and go on with the one that answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from operators._core.checked import checked
from operators._core.fusion import FusedRun
from operators._core.operator import operator
from operators._core.stage import bypass, last
from operators._lazy_timer import check_seconds
from operators._opened import Opened
from operators._race import HedgeOutcome, Race
from operators._rival import is_failure

__all__ = ("hedge",)


def _never() -> bool:
    return False


def _nothing() -> None: ...


def _check(
    after_s: float,
    second: object,
    *,
    abort_first: object = _nothing,
    abort_second: object = _nothing,
    on_first_over: object = _nothing,
    is_stopped: object = _never,
    on_outcome: object = _nothing,
) -> None:
    check_seconds("hedge: after_s", after_s, zero=True)
    functions = {
        "second": second,
        "abort_first": abort_first,
        "abort_second": abort_second,
        "on_first_over": on_first_over,
        "is_stopped": is_stopped,
        "on_outcome": on_outcome,
    }
    for name, function in functions.items():
        if not callable(function) and (name, function) != ("on_outcome", None):
            raise TypeError(f"hedge: {name}: expected a function, got {function!r}")


@checked(_check)
@operator
async def hedge(
    source: FusedRun[Any],
    after_s: float,
    second: Callable[[], Opened],
    *,
    abort_first: Callable[[], None] = _nothing,
    abort_second: Callable[[], None] = _nothing,
    on_first_over: Callable[[], None] = _nothing,
    is_stopped: Callable[[], bool] = _never,
    on_outcome: Callable[[HedgeOutcome], None] | None = None,
) -> AsyncGenerator[Any]:
    """
    Start a second stream when the first has no token after *after_s*; the first with one wins.

    The loser is aborted and closed, and the winner goes on alone. Here *after_s* is 3 seconds, which
    are frames; the second row is subscribed to then::

        source  -h---------a-T|
        second  ------b-c-T|
        result  -h----b-c-T|

    A terminal answers too. Until then items of the first stream are handed out as they come; those
    of the second wait for its answer, and beyond that it is not pulled ahead. Then the consumer's
    pull pulls the winner (row S4).

    The first stream is pulled by the consumer alone: where it answers in time, this costs a timer,
    and a few calls per chunk. The second is pulled by a task up to its answer, so an engine behind
    it should not hold a scope of its task (``asyncio.timeout``) open across the ``yield`` of its
    first token. A step of the first that is under way when it loses ends where it was begun, in the
    consumer's pull: so the winner's answer waits for an engine that takes its time to clean up.

    For engines behind an adapter there is ``rx_backend.hedging.hedge_engines``.

    Args:
        after_s: How long the first stream is waited for until its answer, in seconds, 0 or more.
            The consumer's own time does not count.
        second: Gives the second stream: an asynchronous iterator or an observable, or something to
            await for it. Called at most once, in a task.
        abort_first: Called before the first stream is closed because it lost. It should only start
            the work.
        abort_second: Called before the second stream is closed because it lost.
        on_first_over: Called when the first stream has failed or ended while the second is at work.
        is_stopped: Whether the request was told to stop: then no second stream is started.
        on_outcome: Told what came of it, once, where a second stream was started.

    Raises:
        ValueError, TypeError: An argument is something else; when the operator is made.

    Errors: where one of the two fails before the other has answered, or ends without a terminal, or
        with one that says ``error``, the other goes on; when both do, the stream ends as the first
        one did. Errors of the winner pass unchanged.
    On dispose: both streams are closed, and neither is aborted.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import LLMEngineOutput
    >>> from rx_backend.testing import run_virtual
    >>> async def engine(first_token_s, token_id):
    ...     await asyncio.sleep(first_token_s)
    ...     yield LLMEngineOutput.token(token_id)
    ...     yield LLMEngineOutput.stop()
    >>> async def main():
    ...     hedged = hedge(0.5, lambda: engine(0.2, 2), on_outcome=print)
    ...     async for chunk in fuse(engine(30.0, 1), [hedged]):
    ...         print(chunk.token_ids)
    >>> run_virtual(main())
    HedgeOutcome(winner='second', elapsed_s=0.7, first_failure=None, second_failure=None)
    [2]
    []
    """
    race = Race(
        source,
        after_s,
        second,
        abort_first=abort_first,
        abort_second=abort_second,
        on_first_over=on_first_over,
        is_stopped=is_stopped,
        on_outcome=on_outcome,
    )
    try:
        item: Any = None
        while not race.is_first_over:
            item = await race.pull_first()
            if race.winner == "first":
                # It goes on alone.
                yield last(item) if source.ended else bypass(item)
                break
            if not race.is_first_over:
                is_last = source.ended and race.rival is None
                yield last(item) if is_last else item
        rival = race.rival
        if race.winner != "first" and rival is not None:
            if await rival.settled():
                for item in rival.items:
                    is_last = item is rival.items[-1] and cast("FusedRun[Any]", rival.run).ended
                    yield last(item) if is_last else item
                source = cast("FusedRun[Any]", rival.run)
            elif is_failure(item):
                yield last(item)
            else:
                race.raise_failure()
        async for item in source:
            yield item
    finally:
        await race.aclose()
