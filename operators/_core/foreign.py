"""Operators of another library as a part of a pulled pipeline: what is the same for both libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from operators._core.inbox import Inbox
from operators._core.naming import name_of
from operators._core.pump import Pump
from operators._core.segment import Segment

__all__ = ("ForeignSegment", "applied_all")

ObserverT = TypeVar("ObserverT")
InboxT = TypeVar("InboxT", bound=Inbox)


class ForeignSegment(Segment, Generic[ObserverT, InboxT]):
    """
    Neighbouring operators of one library between two parts of a pulled pipeline.

    Args:
        source: The part before this one.
        operators: The operators, in order.
    """

    __slots__ = (
        "__weakref__",
        "_inbox",
        "_is_subscribed",
        "_names",
        "_observer",
        "_pump",
        "_source",
    )

    _inbox: InboxT

    def __init__(self, source: Any, operators: Iterable[Callable[[Any], Any]]) -> None:
        self._source = source
        self._names = ", ".join(map(name_of, operators))
        self._observer: ObserverT | None = None
        self._is_subscribed = False
        # None where the consumer's pull feeds the operators.
        self._pump: Pump[Any] | None = None

    @property
    def ended(self) -> bool:
        return self._inbox.mailbox.ended

    @property
    def ended_by(self) -> str | None:
        source = self._source
        has_completed = source.has_ended and not source.dropped
        return source.ended_by if has_completed else self._names

    def made_by(self, item: object) -> str | None:
        return self._source.made_by(item) or self._names

    def raised_by(self, error: BaseException) -> str | None:
        return None if id(error) == self._source.raised else self._names

    def drop(self) -> None:
        self._source.drop()

    def _demand(self) -> None:
        if self._pump is not None and self._observer is not None:
            self._pump.demand()

    def _demand_more(self) -> None:
        """Have the source pulled again where the consumer waits still."""
        if self._inbox.mailbox.is_awaited:
            self._demand()

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call *function* in the loop's thread."""
        function(*arguments)

    def _subscribed(self, observer: ObserverT) -> None:
        """Note that the operators have subscribed to the source."""
        if self._is_subscribed:
            # The operator isn't told: one that tries again on an error would do so for ever.
            error = RuntimeError("a token stream can be subscribed to only once")
            self._on_loop(self._inbox.end, error)
            return
        self._is_subscribed = True
        self._observer = observer
        # The consumer may have begun to wait already.
        self._on_loop(self._demand_more)

    def _leave_source(self) -> None:
        """Drop the source, of which the operators want no more; a pull under way ends, and a step."""
        self._observer = None
        if self._pump is not None:
            self._pump.close()
        else:
            self._source.close()

    def close(self) -> None:
        """Drop: the operators' subscription, the source and the task that pulls it. Idempotent."""
        self._inbox.close()
        # Where the garbage collector found the stream, nothing refers weakly to it any more.
        self._leave_source()

    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""
        self.close()
        await self._inbox.released()
        if self._pump is not None:
            await self._pump.wait_closed()
        await self._source.aclose()


def applied_all(
    apply: Callable[[Any, Any, str], Any],
    operators: Sequence[Callable[[Any], Any]],
    source: Any,
    where: tuple[str, int],
) -> Any:
    """Apply *operators* to *source*, in order; *where* says what their list is called, and from where."""
    name, first = where
    for place, operator in enumerate(operators, first):
        source = apply(operator, source, f"{name}[{place}]")
    return source
