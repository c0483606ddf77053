"""Share a stream among several readers, with replay for late ones."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated, Any, TypeVar, cast, overload

from reactivex import Observable

from operators._core.arguments import AtLeast, check_arguments
from operators._core.operator import OnWholeStreams
from operators._core.sources import source_of
from operators._replay_log import ItemLog
from operators._shared_stream import SharedStream

__all__ = ("ShareReplay", "share_replay")

A = TypeVar("A")


def share_replay(
    buffer: Annotated[int, AtLeast(1)] | None = None,
    max_ahead: Annotated[int, AtLeast(0)] = 0,
    linger_s: Annotated[float, AtLeast(0, "seconds")] | None = 0.0,
) -> ShareReplay:
    """
    Share one stream among any number of readers, each at its own pace, with replay for late ones.

    Two readers, the second from frame 4 on::

        source  -a-b-c-|
        result  -a-b-c-|
        late    ----(ab)c-|

    The result is a :class:`SharedStream`: an Observable, each of whose subscriptions is a reader,
    with ``read(after=n)`` for an async iterator of what follows the first n items. It accepts a
    stream in any form::

        shared = share_replay()(await adapter.generate(request))
        shared = observable.pipe(share_replay(buffer=16))

    The source is subscribed to, or first pulled, when the first reader comes, and pulled at most
    *max_ahead* items beyond the fastest reader; a slow reader does not slow the others. Items that
    an Observable pushes on its own wait in memory.

    Args:
        buffer: How many of the last items are held, at least *max_ahead*; None for all of them. A
            reader that lags behind them fails with :class:`PositionDropped`.
        max_ahead: How many items the source may be ahead of the fastest reader; with 0 it is pulled
            only while a reader waits.
        linger_s: How many seconds after the last reader has left to close the source; None keeps
            pulling it without readers.

    Raises:
        ValueError, TypeError: An argument is invalid; when the operator is made.

    Phase: none; it applies to a whole stream, and a pipeline rejects it.
    Errors: every reader gets the source's failure, after the items.
    On dispose: the reader leaves. *linger_s* after the last one has left, the source is closed;
        later readers get the held items, then :class:`SourceClosed`.

    Readers of an Observable get the same items at the same times as with ``ops.replay(buffer)`` and
    ``ops.ref_count()`` of ``reactivex``, except that the source is subscribed to only once: readers
    after its end, or after all have left, get the held items and the end, or :class:`SourceClosed`,
    where ``ref_count`` would subscribe again and continue the sequence.

    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     for word in ("to", "be", "or"):
    ...         print(f"made {word}")
    ...         yield word
    >>> async def main():
    ...     shared = share_replay()(engine())
    ...     async with shared.read() as one, shared.read() as other:
    ...         print(await anext(one), await anext(one), await anext(other))
    ...         print([word async for word in shared.read(after=other.position)])
    >>> run_virtual(main())
    made to
    made be
    to be to
    made or
    ['be', 'or']
    """
    check_arguments(share_replay, buffer, max_ahead, linger_s)
    if buffer is not None and buffer < max_ahead:
        raise ValueError(
            f"share_replay: buffer: expected at least max_ahead={max_ahead}, or None, "
            f"got {buffer!r}"
        )
    return ShareReplay(buffer, max_ahead, linger_s)


class ShareReplay(OnWholeStreams):
    """The result of :func:`share_replay`: call it with a stream, or pass it to ``pipe``."""

    instead = (
        "share_replay shares a stream among several readers, and a pipeline's stream has one: "
        "apply it to what generate() returns, share_replay()(stream)"
    )

    def __init__(self, buffer: int | None, max_ahead: int, linger_s: float | None) -> None:
        self._buffer = buffer
        self._max_ahead = max_ahead
        self._linger_s = linger_s

    @overload
    def __call__(self, source: Observable[A]) -> SharedStream[A]: ...
    @overload
    def __call__(self, source: AsyncIterable[A]) -> SharedStream[A]: ...
    def __call__(self, source: object) -> SharedStream[Any]:
        """
        Share *source*, which the result owns from now on.

        Raises:
            TypeError: It is not a stream.
        """
        return SharedStream(
            _items_of(source),
            log=ItemLog(self._buffer),
            max_ahead=self._max_ahead,
            linger_s=self._linger_s,
        )


def _items_of(source: object) -> AsyncIterator[Any]:
    observed = source_of(source)
    if observed is not None:
        return observed
    if hasattr(source, "__anext__"):
        return cast("AsyncIterator[Any]", source)
    if isinstance(source, AsyncIterable):
        return aiter(cast("AsyncIterable[Any]", source))
    raise TypeError(
        f"share_replay: expected an Observable or an asynchronous iterable, got {source!r}"
    )
