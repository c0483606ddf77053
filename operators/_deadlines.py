"""Deadlines of a stream: for its first token, for the gaps after it, and for all of it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from operators._answers import Answers, OpenAnswers, answers_of
from operators._core.arguments import Seconds
from operators._core.fusion import FusedRun
from operators._core.item_types import same_type
from operators._core.operator import pulling
from operators._core.scope import StreamScope
from operators._lazy_timer import LazyTimer
from operators._raw_chunk import answer_in, has_content, is_terminal, tokens_in

__all__ = ("DeadlineExpired", "FirstTokenTimeout", "IdleTimeout", "TotalTimeout", "deadlines")


class DeadlineExpired(TimeoutError):
    """
    A deadline of a stream has passed; :func:`deadlines` raises one of the subclasses.

    Args:
        seconds: How long the deadline was.
        tokens: How many tokens had come.
        retry: Whether the request may be tried again elsewhere.

    >>> str(IdleTimeout(2.5, tokens=7))
    'nothing came for 2.5 s (idle_s), tokens so far: 7'
    """

    said: ClassVar[str] = "no end within {:g} s"

    def __init__(self, seconds: float, tokens: int, *, retry: bool = False) -> None:
        super().__init__(f"{self.said.format(seconds)}, tokens so far: {tokens}")
        self.seconds = seconds
        self.tokens = tokens
        self.retry = retry

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.seconds, self.tokens), {"retry": self.retry}


class FirstTokenTimeout(DeadlineExpired):
    """No token came within ``first_token_s``."""

    said = "no first token within {:g} s (first_token_s)"


class IdleTimeout(DeadlineExpired):
    """After the first token, nothing came for ``idle_s``."""

    said = "nothing came for {:g} s (idle_s)"


class TotalTimeout(DeadlineExpired):
    """The stream was not through within ``total_s``."""

    said = "not through within {:g} s (total_s)"


def _check(**given: object) -> None:
    if all(given.get(name) is None for name in ("first_token_s", "idle_s", "total_s")):
        raise ValueError("deadlines: expected first_token_s, idle_s or total_s, got none of them")


@same_type
@pulling(check=_check)
async def deadlines(
    source: FusedRun[Any],
    *,
    first_token_s: Seconds | None = None,
    idle_s: Seconds | None = None,
    total_s: Seconds | None = None,
    retry: bool = False,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> AsyncGenerator[Any]:
    """
    Fail a stream whose engine is silent for too long, or that takes too long altogether.

    Items pass unchanged. Here ``idle_s`` is 3 seconds, which are frames::

        source  -h---a-b----c-|
        result  -h---a-b--#

    ``first_token_s`` and ``idle_s`` count while the engine is waited for, so a slow consumer is not
    taken for a silent engine; ``total_s`` counts always. All begin with the first pull. An item
    that becomes ready in the very turn of the event loop in which a deadline passes is still handed
    out.

    In front of the standard pipeline, a deadline that passes stops the request: the engine is asked
    to abort as after any stop (rows A2 to A5), and the stream ends with an error item of kind
    ``ResponseTimeout``. In decode mode no abort is made before the first token (row A5)::

        timed = deadlines(first_token_s=60, idle_s=10)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_before("validate_chunks", timed))

    A request costs at most its deadline of engine time: Dynamo's frontend answers it with status
    504. With *retry* it moves the request to another worker, up to ``--migration-limit`` times (3
    by default), and each grants the whole deadline anew: an engine that is merely overloaded gets
    such a request four times. So set it only where a silent engine means a broken worker, such as
    for ``idle_s`` alone. The official OpenAI client repeats a 504 twice unless it has
    ``max_retries=0``.

    Args:
        first_token_s: How long the engine may be waited for until its first token, in seconds. Items
            without content don't count as one.
        idle_s: From the first token on, how long it may be waited for until its next item, which
            need not have content.
        total_s: How long the stream may last, the consumer's own time included. When it passes
            while no pull is waiting, the engine is closed then, and the next pull fails.
        retry: Whether another worker may take the request over when a deadline has passed.
        answers: How many answers the request has, 1 at least; by default what the scope says, or 1.
            Nothing is waited for behind the terminal of the last one.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: A deadline is no positive number, or none is given, or *answers* is no such number;
            when the operator is made.

    Phase: anywhere; first of the chunks, where the time of the other operators does not count.
    Errors: source errors pass unchanged. A deadline that passes closes the engine and fails the
        stream with `FirstTokenTimeout`, `IdleTimeout` or `TotalTimeout`, once an engine that cleans
        up is through with it: an error item, or behind the mapping of errors, as among the items,
        raised as it is (row O4).
    On dispose: the timer is cancelled.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import LLMEngineOutput
    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     yield LLMEngineOutput.token(7)
    ...     await asyncio.sleep(60)
    >>> async def main():
    ...     try:
    ...         async for chunk in fuse(engine(), [deadlines(first_token_s=30, idle_s=5)]):
    ...             print(chunk.token_ids)
    ...     except TimeoutError as error:
    ...         print(error)
    >>> run_virtual(main())
    [7]
    nothing came for 5 s (idle_s), tokens so far: 1
    """
    expired: Exception | None = None
    tokens = 0
    open_answers = OpenAnswers(answers_of(answers, scope))
    # What the engine is late for, and how long it may be waited for; since when it is, infinite for
    # not at all.
    late, limit_s = FirstTokenTimeout, _limit(first_token_s)
    allowed_s, since = limit_s, math.inf

    def expire() -> None:
        nonlocal expired
        if open_answers.are_over or source.ended:
            # Nothing is waited for any more but the source's release.
            return
        is_total = since + allowed_s > timer.clock()
        kind, seconds = (TotalTimeout, _limit(total_s)) if is_total else (late, limit_s)
        expired = kind(seconds, tokens, retry=retry)
        if scope is not None:
            scope.stop()
        source.close()

    def wait() -> None:
        nonlocal since
        since = timer.clock()
        timer.set(min(since + allowed_s, end))

    timer = LazyTimer(expire, source.own_context)
    end = timer.clock() + _limit(total_s)
    try:
        wait()
        async for item in source:
            if late is not IdleTimeout:
                allowed_s -= timer.clock() - since
                if has_content(item):
                    late, limit_s = IdleTimeout, _limit(idle_s)
                    allowed_s = limit_s
            tokens += tokens_in(item)
            if is_terminal(item):
                open_answers.end(answer_in(item))
            since = math.inf
            timer.due = end
            yield item
            wait()
        if expired is not None:
            raise expired
    finally:
        timer.cancel()
        # This frame is in its traceback: holding it here would be a cycle.
        expired = None


def _limit(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
