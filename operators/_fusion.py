"""
Fusion: neighbouring operators become one loop that the consumer's pull drives.

The loop of a run is written out as source for its shape (which operators are there, and which items
visit them) and compiled once per shape, so that a chunk passes from one to the next by plain calls.
For an operator that every item visits, and one with a condition, it reads in essence::

    while True:
        item = yield from pull()
        item = step_0(item)
        if type(item) is Emission: ...          # anything but one item for one
        else:
            if item.finish_reason is not None:  # the condition
                item = step_1(item)
            chain.item = item
            yield READY                         # the item is in the slot
            continue
        ...                                     # the chain decides: more items, the end, a new shape

The loop yields the futures that the engine waits for as they are, and ``READY`` for an item.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import inspect
import operator
import types
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, cast

from operators._operator import Operator
from operators._release import Release, Segment
from operators._stage import Chain, Emission, Expression, leave_frame

__all__ = ("Enter", "FusedRun")

B = TypeVar("B", covariant=True)

READY = object()
_NEXT_TURN = object()

if TYPE_CHECKING:
    _Loop = types.GeneratorType[Any, Any, None]
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
        operators: Sequence[Operator[Any, Any]],
        *,
        enter: Enter = operator.call,
        on_end: Callable[[], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._enter = enter
        self._waits: Any = None
        self._dropped = False
        self._chain = Chain(operators)
        # A bound `run` says which context it is of.
        context = getattr(enter, "__self__", None)
        own = context if isinstance(context, contextvars.Context) else None
        self._release = Release(source, on_end, own, loop)
        if self._chain.ended:
            self._start(cast("_Loop", _leftovers(self._chain, self._release)))
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
        shape: list[_Visit] = []
        for step, condition in zip(chain.steps, chain.conditions, strict=True):
            if step is None:
                shape.append(None)
                continue
            arguments.append(step)
            if condition is None:
                shape.append(type(step) is _METHOD)
            else:
                shape.append(condition.expression)
                arguments += condition.values
        loop = _compiled(tuple(shape), isinstance(source, Segment))
        self._start(loop(chain, source, _pull_of(source), self._release, *arguments))

    def _start(self, loop: _Loop) -> None:
        self._loop = loop
        self._step = self._pull = partial(self._enter, self._loop.send, None)

    @property
    def ended(self) -> bool:
        """Whether the item handed out last was the last one."""
        chain = self._chain
        return chain.ended and not chain.out and chain.error is None

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
        is_cancelled = False
        try:
            while signal is not READY:
                self._waits = _NEXT_TURN if signal is None else signal
                try:
                    yield signal
                except GeneratorExit:
                    self._abandon()
                    raise
                except BaseException as error:
                    is_cancelled = is_cancelled or isinstance(error, asyncio.CancelledError)
                    signal = enter(loop.throw, error)
                else:
                    if self._dropped and not is_cancelled:
                        is_cancelled = True
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
            self._chain.out.clear()
            self._enter(self._chain.close)
            self._loop.close()
            self._enter(self._release)

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


_METHOD = types.BuiltinMethodType


class _Detour(BaseException):
    """A stage that few items visit took over: leaves the straight path of the loop."""


_Visit: TypeAlias = Expression | bool | None
"""
How items visit one stage, as a part of a loop's shape: under a condition, all of them (and whether
the stage may answer with an Emission: a generator may, an applied function can't), or none.
"""


@cache
def _compiled(shape: tuple[_Visit, ...], ends_early: bool) -> Callable[..., _Loop]:
    """
    Compile the loop for a shape.

    Args:
        shape: How items visit each stage.
        ends_early: The source says with an item whether it is the last.
    """
    body: list[str] = []
    places: dict[int, int] = {}
    arguments: list[str] = []
    indent = " " * 16

    def write(line: str, place: int = 0) -> None:
        places[_FIRST_LINE + len(body)] = place
        body.append(indent + line)

    if ends_early:
        write("if source.ended:")
        write("    chain.push_last(item)")
        write("else:")
        indent += "    "
    for place, visit in enumerate(shape):
        if visit is None:
            continue
        arguments.append(f"step_{place}")
        if isinstance(visit, Expression):
            arguments += [f"n{place}_{name}" for name in visit.names]
            condition = _renamed(visit, place)
            if visit.once:
                write(f"if step_{place} is not None and ({condition}):", place)
                write(f"    step, step_{place} = step_{place}, None", place)
                write(f"    chain.steps[{place}] = None", place)
                write("    item = step(item)", place)
            else:
                write(f"if {condition}:", place)
                write(f"    item = step_{place}(item)", place)
            write("    if type(item) is Emission:")
            write(f"        chain.emitted({place}, item)", place)
            write("        raise Detour")
            continue
        write(f"item = step_{place}(item)", place)
        if visit:
            write("if type(item) is Emission:")
            write(f"    chain.emitted({place}, item)", place)
            write("else:")
            indent += "    "
    write("chain.item = item")
    write("yield READY")
    write("continue")
    source = _LOOP.format(arguments="".join(f", {a}" for a in arguments), body="\n".join(body))
    names_of_loop: dict[str, Any] = {
        "Detour": _Detour,
        "Emission": Emission,
        "PLACES": places,
        "READY": READY,
        "leave_frame": leave_frame,
    }
    exec(compile(source, f"<fused loop of {len(shape)}>", "exec"), names_of_loop)  # noqa: S102
    return cast("Callable[..., _Loop]", types.coroutine(names_of_loop["loop"]))


def _renamed(expression: Expression, place: int) -> str:
    """The expression with its names made the stage's own."""
    tree = ast.parse(expression.source, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in expression.names:
            node.id = f"n{place}_{node.id}"
    return ast.unparse(tree)


def _leftovers(chain: Chain, release: Release) -> Generator[Any, Any, None]:
    """The loop of a run that an operator ended before it began."""
    release()
    while chain.out:
        chain.item = chain.out.pop(0)
        yield READY


# The line of an exception in the loop tells which stage it came from.
_LOOP = """\
def loop(chain, source, pull, release{arguments}):
    while True:
        try:
            item = yield from pull()
        except StopAsyncIteration:
            chain.complete()
        except GeneratorExit:
            raise
        except BaseException as error:
            leave_frame(error)
            chain.fail(error)
        else:
            try:
{body}
            except Detour:
                pass
            except GeneratorExit:
                raise
            except BaseException as error:
                place = PLACES[error.__traceback__.tb_lineno]
                leave_frame(error)
                chain.interrupted(error, place)
        if chain.ended:
            release()
        while chain.out:
            chain.item = chain.out.pop(0)
            yield READY
        if chain.ended or chain.reshaped:
            return
"""
_FIRST_LINE = _LOOP[: _LOOP.index("{body}")].count("\n") + 1


def _pull_of(source: AsyncIterator[Any]) -> _Pull:
    """The function that gives the source's next item as something a generator can delegate to."""
    if isinstance(source, types.AsyncGeneratorType) or inspect.iscoroutinefunction(
        source.__anext__
    ):
        return source.__anext__

    async def pull() -> Any:
        return await anext(source)

    return pull


def _nothing_more() -> Any:
    raise StopIteration


def _already_pulled() -> Any:
    raise RuntimeError("the stream is already being pulled by another task")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
