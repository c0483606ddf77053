"""The engines that one request is at, and the aborts that each of them gets."""

from __future__ import annotations

import contextvars
from functools import partial
from typing import Any

from operators import deferred_abort, fuse, validate_chunks
from operators.authoring import FusedRun
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine, open_chunks, start_abort
from rx_backend.errors import InvalidArgument
from rx_backend.pipeline import RequestScope
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, convert_output

__all__ = ("LiveEngines", "check_engine", "check_functions")


class LiveEngines:
    """
    The engines of one request: the adapter's, and another one beside it or after it.

    The standard pipeline's gate calls ``scope.abort`` for the adapter's engine. It is led here, as
    that engine may be gone by then. Any other engine has a context and a gate of its own.
    """

    def __init__(self, scope: RequestScope) -> None:
        self._scope = scope
        self._abort = scope.abort
        self._is_first_live = True
        self._other: RequestContext | None = None
        scope.abort = self.abort

    def abort(self) -> None:
        """Abort what is at work: the first engine once, the other one by its gate."""
        if self._is_first_live:
            self._is_first_live = False
            self._abort()
        self.stop_other()

    def abort_first_as_loser(self) -> None:
        """The first engine has lost before its first token (rows A3, A5)."""
        if self._is_first_live and not self._scope.mode.is_decode:
            self._abort()
        self._is_first_live = False

    def leave_first(self) -> None:
        """The first engine has ended: there is nothing to abort."""
        self._is_first_live = False

    def stop_other(self) -> None:
        """Stop the other engine alone."""
        if self._other is not None:
            self._other.stop_generating()

    async def open(
        self, engine: LLMEngine, request: PreprocessedRequest, name: str
    ) -> FusedRun[Any]:
        """Call another engine's ``generate``; gives its chunks, behind a gate of its own."""
        scope = self._scope
        child = self._other = scope.context.child(f"{scope.context.id}/{name}")
        own = contextvars.copy_context()
        chunks = await open_chunks(engine, request, child, enter=own.run)

        is_decode = scope.mode.is_decode
        gate = deferred_abort(
            partial(start_abort, engine, child, own),
            stop=child.stopped(),
            notified=child.first_token() if is_decode else None,
            defer=is_decode,
            end_of_turn=scope.loop.call_soon,
        )
        return fuse(chunks, [_WELL_FORMED, gate], enter=own.run)


def check_engine(name: str, engine: object) -> None:
    """Raise TypeError, naming the option, for what is neither an engine nor a function."""
    if not hasattr(engine, "generate") and not callable(engine):
        raise TypeError(f"{name}: expected an engine or a function that gives one, got {engine!r}")


def check_functions(name: str, **functions: object) -> None:
    """Raise TypeError, naming the option, for what is neither None nor a function."""
    for option, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name}: {option}: expected a function, got {function!r}")


_WELL_FORMED = validate_chunks(LLMEngineOutput, convert_output, error=InvalidArgument)
