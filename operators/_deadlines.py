"""Deadlines of a stream: for its first token, for the gaps after it, and for all of it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar

from operators._core.arguments import Seconds
from operators._core.fusion import FusedRun
from operators._core.item_types import same_type
from operators._core.operator import pulling
from operators._core.scope import StreamScope
from operators._lazy_timer import LazyTimer
from operators._raw_chunk import has_content, is_terminal, tokens_in

__all__ = ("DeadlineExpired", "FirstTokenTimeout", "IdleTimeout", "TotalTimeout", "deadlines")


class DeadlineExpired(TimeoutError):
    """
    A deadline of a stream has passed; :func:`deadlines` raises one of the subclasses.

    Args:
        seconds: How long the deadline was.
        tokens: How many tokens had come.

    >>> str(IdleTimeout(2.5, tokens=7))
    'nothing came for 2.5 s (idle_s), tokens so far: 7'
    """

    said: ClassVar[str] = "no end within {:g} s"

    def __init__(self, seconds: float, tokens: int) -> None:
        super().__init__(f"{self.said.format(seconds)}, tokens so far: {tokens}")
        self.seconds = seconds
        self.tokens = tokens

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.seconds, self.tokens)


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
    on_expiry: Callable[[], object] | None = None,
    scope: StreamScope | None = None,
) -> AsyncGenerator[Any]:
    """
    Fail a stream whose engine is silent for too long, or that takes too long altogether.

    Items pass unchanged. Here ``idle_s`` is 3 seconds, which are frames::

        source  -h---a-b----c-|
        result  -h---a-b--#

    ``first_token_s`` and ``idle_s`` count only while the engine is waited for: a consumer that is
    slow to come back is not taken for a silent engine. ``total_s`` counts always. All begin with
    the first pull. An item that becomes ready in the very turn of the event loop in which a
    deadline passes is still handed out, and counts.

    Put it in front of the standard pipeline. A deadline that passes stops the request there: the
    engine is asked to abort as after any stop (rows A2 to A5), and the stream ends with an error
    item of kind ``ResponseTimeout``::

        timed = deadlines(first_token_s=60, idle_s=10)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_before("validate_chunks", timed))

    In decode mode a deadline that passes before the first token fails the stream before its first
    token, so that the deferred abort is not made (row A5).

    Args:
        first_token_s: How long the engine may be waited for until its first token, in seconds. Items
            without content don't count as one.
        idle_s: From the first token on, how long it may be waited for until its next item, which
            need not have content.
        total_s: How long the stream may last, the consumer's own time included. When it passes
            while nobody pulls, the engine is closed then, and the next pull fails.
        on_expiry: Called when one has passed, before the engine is closed; by default, in a
            pipeline, it stops the request.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: A deadline is no positive number, or none is given; when the operator is made.
        TypeError: *on_expiry* can't be called; when the operator is made.

    Errors: source errors pass unchanged. A deadline that passes closes the engine and fails the
        stream with `FirstTokenTimeout`, `IdleTimeout` or `TotalTimeout`, once an engine that cleans
        up is through with it. What *on_expiry* raises fails the stream instead.
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
    if on_expiry is None and scope is not None:
        on_expiry = scope.stop
    watch = _Watch(source, first_token_s, idle_s, total_s, on_expiry)
    try:
        watch.wait()
        async for item in source:
            watch.came(item)
            yield item
            watch.wait()
        watch.raise_failure()
    finally:
        watch.cancel()


class _Watch(LazyTimer):
    """The deadlines of one stream: a timer for the one that is next."""

    __slots__ = (
        "_allowed_s",
        "_end",
        "_failure",
        "_first_token_s",
        "_has_begun",
        "_idle_s",
        "_item",
        "_on_expiry",
        "_since",
        "_source",
        "_tokens",
        "_total_s",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        first_token_s: float | None,
        idle_s: float | None,
        total_s: float | None,
        on_expiry: Callable[[], object] | None,
    ) -> None:
        super().__init__(self._expire, source.own_context)
        self._source = source
        self._first_token_s = math.inf if first_token_s is None else first_token_s
        self._idle_s = math.inf if idle_s is None else idle_s
        self._total_s = math.inf if total_s is None else total_s
        self._on_expiry = on_expiry
        self._item: Any = None
        self._has_begun = False
        self._tokens = 0
        self._failure: Exception | None = None
        self._end = self.clock() + self._total_s
        # How long the engine may be waited for, and since when it is; infinite for not at all.
        self._allowed_s = self._first_token_s
        self._since = math.inf

    def wait(self) -> None:
        """Note that the engine is about to be pulled."""
        self._since = now = self.clock()
        due = now + self._allowed_s
        if due > self._end:  # noqa: PLR1730 - a call of min() for every chunk would be dear
            due = self._end
        self.due = due
        if due < self._at:
            self.set(due)

    def came(self, item: Any) -> None:
        """Note an item of the engine."""
        try:
            tokens = len(item.token_ids)
        except (AttributeError, TypeError):
            tokens = tokens_in(item)
        if not self._has_begun:
            self._has_begun = has_content(item)
            waited_s = self.clock() - self._since
            self._allowed_s = self._idle_s if self._has_begun else self._allowed_s - waited_s
        self._tokens += tokens
        self._item = item
        self._since = math.inf
        self.due = self._end

    def raise_failure(self) -> None:
        """Raise what the source was closed for, if it was, at its end."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                # This frame is in its traceback: holding it here would be a cycle.
                del failure

    def _expire(self) -> None:
        if is_terminal(self._item) or self._source.ended:
            # Nothing is waited for any more but the source's release.
            return
        if self._since + self._allowed_s > self.clock():
            expired = TotalTimeout(self._total_s, self._tokens)
        elif self._has_begun:
            expired = IdleTimeout(self._idle_s, self._tokens)
        else:
            expired = FirstTokenTimeout(self._first_token_s, self._tokens)
        self._failure = expired
        self.cancel()
        try:
            if self._on_expiry is not None:
                self._on_expiry()
        except Exception as error:
            self._failure = error
        self._source.close()
