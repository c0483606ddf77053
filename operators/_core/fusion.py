"""Fusion: a run of operators over a source, as one loop that the consumer's pull drives."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import operator
import types
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from operators._core.chain import READY, Starter
from operators._core.links import link_up
from operators._core.loop import METHOD, Gives, Visit, compiled, leftovers
from operators._core.pulled import PulledSegment
from operators._core.release import Release, Segment

__all__ = ("Enter", "FusedRun", "context_of")

B = TypeVar("B", covariant=True)

_NEXT_TURN = object()

if TYPE_CHECKING:
    from operators._core.loop import Loop

_Pull = Callable[[], Any]


class Enter(Protocol):
    """Calls a function in the run's context: ``contextvars.Context.run``, or a plain call."""

    def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any: ...


class FusedRun(Segment, Generic[B]):
    """
    A run of operators over an asynchronous source, pulled by its consumer.

    One pull of the consumer pulls the source until one item comes out, once where the operators
    give one for one (row S4). There is no task, queue or future per item. However the run ends,
    it releases everything once, before its last item is handed out where it ends by one (row P6a).

    Args:
        source: Where items come from. Its ``aclose``, if it has one, is called at the end.
        operators: Neighbouring operators, in order.
        enter: Runs source and operators in a context, as ``contextvars.Context.run`` does.
            The caller makes the run in there too.
        context: The context that whoever pulls is in, where *enter* does not say.
        on_end: Called once when everything else is released.
        loop: The running event loop, for a caller who knows it.
    """

    __slots__ = (
        "__weakref__",
        "_chain",
        "_dropped",
        "_enter",
        "_loop",
        "_pull",
        "_release",
        "_step",
        "_waits",
    )

    def __init__(
        self,
        source: AsyncIterator[Any],
        operators: Sequence[Starter],
        *,
        enter: Enter = operator.call,
        context: contextvars.Context | None = None,
        on_end: Callable[[], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._enter = enter
        self._waits: Any = None
        self._dropped = False
        self._chain = link_up(operators)
        # An empty context is false.
        own = context_of(enter) if context is None else context
        self._release = Release(source, on_end, own, loop)
        if self._chain.ended:
            self._start(cast("Loop", leftovers(self._chain, self._release)))
        else:
            try:
                self._fuse()
            except BaseException:
                self._chain.close()
                raise

    def _fuse(self) -> None:
        """Start the loop for the stages that items still visit."""
        chain, source = self._chain, self._release.source
        chain.reshaped = False
        arguments: list[Any] = []
        shape: list[Visit] = []
        for step, condition in zip(chain.steps, chain.conditions, strict=True):
            if step is None:
                shape.append(None)
                continue
            arguments.append(step)
            if condition is None:
                shape.append(type(step) is METHOD)
            else:
                shape.append(condition.expression)
                arguments += condition.values
        gives, pull = _pull_of(source)
        loop = compiled(tuple(shape), gives)
        self._start(loop(chain, source, pull, self._release, *arguments))

    def _start(self, loop: Loop) -> None:
        self._loop = loop
        self._step = self._pull = partial(self._enter, self._loop.send, None)

    @property
    def ended(self) -> bool:
        """Whether the item handed out last was the last one."""
        chain = self._chain
        return chain.ended and not chain.out and chain.error is None

    @property
    def own_context(self) -> contextvars.Context | None:
        """The context to pull in, for a task or a timer of an operator; None for any."""
        return self._release.context

    def __aiter__(self) -> AsyncIterator[B]:
        return self

    async def __anext__(self) -> B:
        while True:
            try:
                signal = self._pull()
                if signal is READY or await self._wait(signal):
                    return self._chain.item
            except StopIteration:
                pass
            # The loop is through: the run has a new shape, failed, or is at its end.
            chain = self._chain
            if chain.ended or not chain.reshaped or self._pull is _nothing_more:
                break
            self._fuse()
        error, chain.error = chain.error, None
        if error is None or not _is_cancelled():
            await self._release.wait()
        if error is not None and (not self._dropped or _is_cancelled()):
            try:
                raise error
            finally:
                # This frame is in its traceback: holding it here would be a cycle.
                del error
        raise StopAsyncIteration

    @types.coroutine
    def _wait(self, signal: Any) -> Generator[Any, Any, bool]:
        """Pass the source's futures on until an item is there; False when the loop is through."""
        enter, loop = self._enter, self._loop
        self._pull = _already_pulled
        is_told = False
        try:
            while signal is not READY:
                self._waits = _NEXT_TURN if signal is None else signal
                try:
                    yield signal
                except GeneratorExit:
                    self._abandon()
                    raise
                except BaseException as error:
                    if self._dropped and isinstance(error, asyncio.CancelledError):
                        is_told = True
                    signal = enter(loop.throw, error)
                else:
                    if self._dropped and not is_told:
                        is_told = True
                        signal = enter(loop.throw, asyncio.CancelledError())
                    else:
                        signal = self._step()
        except StopIteration:
            return False
        finally:
            self._waits = None
            self._pull = self._step
        if self._dropped:
            self.close()
            return False
        return True

    def _abandon(self) -> None:
        """The coroutine that waits in a pull was closed: unwind the pull without it."""
        self._dropped = True
        try:
            signal = self._enter(self._loop.throw, asyncio.CancelledError())
        except StopIteration:
            pass
        else:
            if signal is not READY:
                self._release.go_on(self._loop, signal)
        self._chain.error = None

    def close(self) -> None:
        """
        Drop the run without waiting: everything is released, once (row S7).

        A pull that another task waits in ends there without an item. What the source's ``aclose``
        really waits for goes on in a task of its own; :meth:`aclose` waits for that too.
        """
        if self._release.done:
            return
        if self._loop.gi_running:
            # An operator or the engine drops its own stream: let the step end first.
            self._pull = _nothing_more
            self._release.loop.call_soon(self.close)
        elif self._waits is not None:
            # The pull unwinds in the task that waits in it; once, since the unwinding may wait too.
            if not self._dropped:
                self._dropped = True
                cancel = getattr(self._waits, "cancel", None)
                if cancel is not None:
                    cancel()
        else:
            self._dropped = True
            self._enter(self._chain.drop)
            self._loop.close()
            self._enter(self._release)

    def abandon(self, error: BaseException) -> None:
        """The set-up of an operator behind the run raised *error*: tell its stages of that."""
        self._chain.abandon(error)

    def detach(self, enter: Enter | None = None) -> FusedRun[B]:
        """
        Take what is left of this run as a run of its own, which nobody else closes.

        For an operator that lets its source go on when it is dropped. This run is over by that.

        Args:
            enter: Runs what is left in another context; by default it stays where it was.

        Raises:
            RuntimeError: The run is being pulled.
        """
        if self._waits is not None or self._loop.gi_running:
            raise RuntimeError("a run can't be detached while it is being pulled")
        run = cast("FusedRun[B]", FusedRun.__new__(FusedRun))
        for slot in FusedRun.__slots__[1:]:
            setattr(run, slot, getattr(self, slot))
        if enter is not None:
            run._enter = enter
            run._release.context = context_of(enter)
        run._start(run._loop)
        self._chain = _NO_CHAIN
        self._release = Release.over(run._release.loop)
        self._start(cast("Loop", leftovers(self._chain, self._release)))
        return run

    async def aclose(self) -> None:
        """Drop the run, and wait until everything is released."""
        self.close()
        await self._release.wait()

    def __del__(self) -> None:
        release = getattr(self, "_release", None)
        if release is None or release.done or not hasattr(self, "_loop"):
            return
        if release.is_elsewhere():
            release.loop.call_soon_threadsafe(self.close)
        else:
            self.close()


def _pull_of(source: AsyncIterator[Any]) -> tuple[Gives, _Pull]:
    """What the source gives, and the function that gives the next of it, to be delegated to."""
    if isinstance(source, types.AsyncGeneratorType):
        return Gives.ITEMS, source.__anext__
    if isinstance(source, PulledSegment):
        return Gives.ENDS if source.is_aside else Gives.EMISSIONS, source.pull
    gives = Gives.ENDS if isinstance(source, Segment) else Gives.ITEMS
    if inspect.iscoroutinefunction(source.__anext__):
        return gives, source.__anext__

    async def pull() -> Any:
        return await anext(source)

    return gives, pull


def context_of(enter: Enter) -> contextvars.Context | None:
    """A bound ``run`` says which context it is of."""
    context = getattr(enter, "__self__", None)
    return context if isinstance(context, contextvars.Context) else None


# What a run that was detached from has instead of stages.
_NO_CHAIN = link_up(())


def _nothing_more() -> Any:
    raise StopIteration


def _already_pulled() -> Any:
    raise RuntimeError("the stream is already being pulled by another task")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
