"""Operators of another library as a segment of a pulled pipeline: what both libraries share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

from reactivex import abc

from operators._core.failures import none_handed_out
from operators._core.inbox import Inbox
from operators._core.naming import name_of
from operators._core.operator import NotAnOperator, Operator
from operators._core.pump import Pump
from operators._core.segment import OperatorSegment

__all__ = ("ForeignSegment", "applied", "kind_of")

InboxT = TypeVar("InboxT", bound=Inbox)


class ForeignSegment(OperatorSegment, Generic[InboxT]):
    """
    Adjacent operators of one library between two parts of a pulled pipeline.

    Synchronous operators are fed within the consumer's pull, until an item comes out. If one of
    them is not, all are detached: a task pulls the source while the consumer waits and nothing has
    come out. They receive copies, because they may hold items (row E6).

    Args:
        source: The part before this one.
        operators: The operators, in order.
        where: The list's name, and the first operator's position, for error messages.

    Attributes:
        library: The name of the library.

    Raises:
        NotAnOperator: An operator does not return an observable, or can't be applied.
    """

    library: ClassVar[str]

    _inbox: InboxT

    def __init__(
        self,
        source: Any,
        operators: Sequence[Callable[[Any], Any]],
        where: tuple[str, int],
    ) -> None:
        super().__init__(source, ", ".join(map(name_of, operators)))
        self._observer: Any = None
        self._is_subscribed = False
        # None if the consumer's pull feeds the operators.
        self._pump: Pump[Any] | None = None
        observable = applied(self._observable(), operators, where)
        if not all(map(self.answers_at_once, operators)):
            self._pump = Pump(source, self._feed, self._source_ended)
        self._receive(observable)

    @staticmethod
    @abstractmethod
    def answers_at_once(operator: Any) -> bool:
        """Return whether an operator emits only while it handles a signal of its source."""

    @abstractmethod
    def _observable(self) -> Any:
        """Return the source as an observable, which does not keep this segment alive."""

    @abstractmethod
    def _receive(self, observable: Any) -> None:
        """Make the inbox for what the operators emit."""

    @abstractmethod
    def _feed(self, item: Any) -> Awaitable[None] | None:
        """Pass an item to the operators."""

    @abstractmethod
    def _tell_end(
        self, observer: Any, failure: Exception | None
    ) -> Coroutine[Any, Any, None] | None:
        """Signal to the operators that the source has ended, with or without *failure*."""

    @property
    def ended(self) -> bool:
        return self._inbox.ended

    def drop(self) -> None:
        self.source.drop()

    async def __anext__(self) -> Any:
        inbox = self._inbox
        if self._pump is None:
            if not self._is_subscribed:
                await inbox.opened()
            while not inbox and not inbox.is_closed and self._observer is not None:
                await self._pull()
        elif not inbox or inbox.is_ahead:
            self._demand()
        item = await inbox.pull()
        self._taken()
        if item is None:
            raise none_handed_out()
        return item

    def _taken(self) -> None:
        """Handle that the consumer has received an item."""

    async def _pull(self) -> None:
        """Pull the source once, in the consumer's pull."""
        try:
            item = await anext(self.source)
        except StopAsyncIteration:
            ending = self._source_ended(None)
        except Exception as error:
            ending = self._source_ended(error)
        else:
            fed = self._feed(item)
            if fed is not None:
                await fed
            ending = self._source_ended(None) if self.source.ended else None
        if ending is not None:
            await ending

    def _source_ended(self, failure: BaseException | None) -> Coroutine[Any, Any, None] | None:
        observer, self._observer = self._observer, None
        if failure is not None and not isinstance(failure, Exception):
            # A cancellation must not reach operators, which could turn it into items.
            self._inbox.end(failure)
            return None
        return None if observer is None else self._tell_end(observer, failure)

    def _demand(self) -> None:
        if self._pump is not None and self._observer is not None:
            self._pump.demand()

    def _demand_more(self) -> None:
        """Pull the source again if the consumer is still waiting."""
        if self._inbox.is_awaited:
            self._demand()

    def _subscribed(self, observer: Any) -> None:
        """Record that the operators have subscribed to the source, in any thread."""
        if self._is_subscribed:
            # The operator gets no error, because one that retries would do so forever.
            error = RuntimeError("a token stream can be subscribed to only once")
            self._inbox.call_on_loop(self._inbox.end, error)
            return
        self._is_subscribed = True
        self._observer = observer
        # The consumer may already be waiting.
        self._inbox.call_on_loop(self._demand_more)

    def _unsubscribed(self) -> None:
        """Record that the operators have unsubscribed from the source, in any thread."""
        self._inbox.call_on_loop(self._leave_source)

    def _leave_source(self) -> None:
        """Drop the source; a pull or step in progress ends."""
        self._observer = None
        if self._pump is not None:
            self._pump.close()
        else:
            self.source.close()

    def close(self) -> None:
        """Drop: the operators' subscription, the source and the task that pulls it. Idempotent."""
        self._inbox.close()
        # During garbage collection, weak references to this segment are already dead.
        self._leave_source()

    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""
        self.close()
        await self._inbox.released()
        if self._pump is not None:
            await self._pump.wait_closed()
        await self.source.aclose()


def kind_of(value: object) -> str | None:
    """Return the name of an observable's kind; None for anything else."""
    if isinstance(value, abc.ObservableBase):
        return "Observable"
    return "AsyncObservable" if hasattr(value, "subscribe_async") else None


def applied(source: Any, operators: Sequence[Callable[[Any], Any]], where: tuple[str, int]) -> Any:
    """
    Apply operators to an observable of their library, in order.

    Raises:
        NotAnOperator: One does not return an observable of that kind, or can't be applied; names
            its position.
    """
    kind = kind_of(source)
    name, first = where
    for place, operator in enumerate(operators, first):
        try:
            source = operator(source)
        except Exception as error:
            hint = _CALL_IT if hasattr(operator, "__wrapped__") else ""
            raise NotAnOperator(
                f"{name}[{place}] is not an operator: {operator!r} can't be applied to an {kind}: "
                f"{type(error).__name__}: {error}{hint}"
            ) from error
        if kind_of(source) != kind:
            hint = _CALL_IT if isinstance(source, Operator) else ""
            raise NotAnOperator(
                f"{name}[{place}] is not an operator: applied to an {kind} it returned "
                f"{type(cast('object', source)).__name__}, expected an {kind}{hint}"
            )
    return source


_CALL_IT = "; is a call's () missing?"
