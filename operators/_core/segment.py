"""Parts of an assembled pipeline, and pulling and closing other sources."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Self

from operators._core.failures import is_only_closed, redacted_exc_info
from operators._core.tasks import current_task

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("OperatorSegment", "Segment", "close_now", "close_quietly", "first_pull")


class Segment:
    """
    A part of an assembled pipeline, pulled by the next part: an asynchronous iterator.

    It is not an ``ABC``: ``isinstance`` would then cost every request more.
    """

    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> Any: ...

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the most recent item was the last one."""

    @property
    @abstractmethod
    def ended_by(self) -> str | None:
        """The operator that ended the stream before its source did, if any."""

    @abstractmethod
    def made_by(self, item: object) -> str | None:
        """Return the operator that handed out *item*, the most recent one; None if unknown."""

    def raised_by(self, error: BaseException) -> str | None:
        """Return the operator that raised *error*, unless a note already names it."""
        return None

    @abstractmethod
    def drop(self) -> None:
        """Notify the earlier stages that the stream was dropped; :meth:`close` follows."""

    @abstractmethod
    def close(self) -> None:
        """Drop without waiting. Idempotent; not while it is pulled."""

    @abstractmethod
    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""


class OperatorSegment(Segment):
    """
    A segment of operators that pull a run.

    Attributes:
        name: The names of the operators.
        source: The run before them.
    """

    def __init__(self, source: FusedRun[Any], name: str) -> None:
        self.source = source
        self.name = name

    @property
    def ended_by(self) -> str | None:
        return self.name if self.source.dropped else self.source.ended_by

    def made_by(self, item: object) -> str | None:
        return self.source.made_by(item) or self.name

    def raised_by(self, error: BaseException) -> str | None:
        return None if id(error) == self.source.raised else self.name


def first_pull(source: AsyncIterator[Any]) -> Any:
    """
    Make the first pull of a source that its stream will close, without the loop's generator hooks.

    Otherwise the event loop would also close a generator, at shutdown or when it is collected with
    its stream: in another context, and concurrently. It closes the stream instead (`LoopStreams`).
    """
    return _without_hooks(source.__anext__)


def _without_hooks(begin: Callable[[], Any]) -> Any:
    """Call *begin*, which may start an async generator, without the event loop's hooks."""
    hooks = sys.get_asyncgen_hooks()
    # By position, as by name takes twice as long.
    sys.set_asyncgen_hooks(None, _leave_open)
    try:
        return begin()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave_open(_: object) -> None: ...


async def close_quietly(source: object, failed: str) -> None:
    """Await the ``aclose`` of *source*, if any; log its exception with the message *failed*."""
    aclose: Any = getattr(source, "aclose", None)
    if aclose is None:
        return
    try:
        # Closing a generator that was never pulled starts it.
        await (_without_hooks(aclose) if isinstance(source, AsyncGeneratorType) else aclose())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if is_only_closed(error):
            return
        task = current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        _log.error("%s", failed, exc_info=redacted_exc_info(error))


def close_now(source: object, failed: str) -> None:
    """Close a source whose event loop is closed, up to its first wait."""
    closing = close_quietly(source, failed)
    with contextlib.suppress(StopIteration):
        closing.send(None)
    closing.close()


_log = logging.getLogger(__name__)
