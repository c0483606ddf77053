"""Deadlines of a stream: for its first token, for later gaps, and for the whole stream."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from operators._answers import Answers, OpenAnswers, answers_of
from operators._core.arguments import Seconds
from operators._core.fusion import FusedRun
from operators._core.operator import pulling, same_type
from operators._core.scope import StreamScope
from operators._lazy_timer import LazyTimer
from operators._raw_chunk import answer_in, has_content, is_terminal, tokens_in

__all__ = ("DeadlineExpired", "FirstTokenTimeout", "IdleTimeout", "TotalTimeout", "deadlines")


class DeadlineExpired(TimeoutError):
    """
    A deadline of a stream has passed; :func:`deadlines` raises one of the subclasses.

    Args:
        seconds: How long the deadline was.
        tokens: How many tokens had arrived.
        retry: Whether the request may be tried again elsewhere.

    >>> str(IdleTimeout(2.5, tokens=7))
    'no item for 2.5 s (idle_s), tokens so far: 7'
    """

    message_format: ClassVar[str] = "no end within {:g} s"

    def __init__(self, seconds: float, tokens: int, *, retry: bool = False) -> None:
        super().__init__(f"{self.message_format.format(seconds)}, tokens so far: {tokens}")
        self.seconds = seconds
        self.tokens = tokens
        self.retry = retry

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.seconds, self.tokens), {"retry": self.retry}


class FirstTokenTimeout(DeadlineExpired):
    """No token came within ``first_token_s``."""

    message_format = "no first token within {:g} s (first_token_s)"


class IdleTimeout(DeadlineExpired):
    """After the first token, no item came for ``idle_s``."""

    message_format = "no item for {:g} s (idle_s)"


class TotalTimeout(DeadlineExpired):
    """The stream did not end within ``total_s``."""

    message_format = "no end within {:g} s (total_s)"


def _check(**given: object) -> None:
    if all(given.get(name) is None for name in ("first_token_s", "idle_s", "total_s")):
        raise ValueError("deadlines: expected first_token_s, idle_s or total_s, got none")


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
    Fail a stream whose engine is silent for too long, or that takes too long in total.

    Items pass unchanged. Here ``idle_s`` is 3 seconds, which are frames::

        source  -h---a-b----c-|
        result  -h---a-b--#

    ``first_token_s`` and ``idle_s`` run only while the engine is awaited, so a slow consumer is not
    mistaken for a silent engine; ``total_s`` always runs. All start with the first pull. An item
    that becomes ready in the same loop iteration in which a deadline expires is still handed out.

    At the start of the standard pipeline, a deadline that expires stops the request: the engine is
    aborted as after any stop (rows A2 to A5), and the stream ends with an error item of kind
    ``ResponseTimeout``. In decode mode there is no abort before the first token (row A5)::

        timed = deadlines(first_token_s=60, idle_s=10)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_before("validate_chunks", timed))

    A request costs at most its deadline in engine time: Dynamo's frontend answers it with status
    504. With *retry* the frontend moves the request to another worker, up to ``--migration-limit``
    times (3 by default), and the full deadline applies again on each: merely overloaded engines
    then get such a request four times. So set it only if a silent engine means a broken worker, for
    example with ``idle_s`` alone. The official OpenAI client repeats a 504 twice unless it has
    ``max_retries=0``.

    Args:
        first_token_s: How long the engine may take to its first token, in seconds. Items without
            content don't count as one.
        idle_s: After the first token, how long it may take to each next item, which need not have
            content.
        total_s: How long the stream may last, including the consumer's own time. If it expires
            while no pull is waiting, the engine is closed at once, and the next pull fails.
        retry: Whether another worker may take over the request when a deadline has expired.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
            After the last one's terminal no deadline applies.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: No deadline is given, one is not positive, or *answers* is below 1; when the
            operator is made.

    Phase: anywhere; first of the chunks, so that other operators' time does not count.
    Errors: source errors pass unchanged. A deadline that expires closes the engine and, once that
        has cleaned up, fails the stream with `FirstTokenTimeout`, `IdleTimeout` or `TotalTimeout`:
        an error item, or, in the item phase, raised unchanged (row O4).
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
    no item for 5 s (idle_s), tokens so far: 1
    """
    expired: Exception | None = None
    tokens = 0
    open_answers = OpenAnswers(answers_of(answers, scope))
    # The deadline that applies and its length; since when the engine has been awaited, infinite if
    # it is not.
    late, limit_s = FirstTokenTimeout, _limit(first_token_s)
    allowed_s, since = limit_s, math.inf

    def expire() -> None:
        nonlocal expired
        if open_answers.are_over or source.ended:
            # Only the source's release is still pending.
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
        # This frame is in its traceback, so keeping it here would be a cycle.
        expired = None


def _limit(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
