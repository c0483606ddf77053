"""
The loop that neighbouring operators become, driven by the consumer's pull.

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

For an asynchronous step it reads ``item = yield from step_2(item)``. The loop yields the futures that
the engine, or such a step, waits for as they are, and ``READY`` for an item.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Generator
from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from operators._core.chain import READY, leave_frame
from operators._core.links import LinkedChains, Links
from operators._core.release import Release
from operators._core.stage import AWAITED, AWAITED_VERDICT, Emission, Expression

__all__ = ("METHOD", "Gives", "Visit", "compiled", "leftovers")

if TYPE_CHECKING:
    Loop = types.GeneratorType[Any, Any, None]

METHOD = types.BuiltinMethodType


class _Detour(BaseException):
    """A stage that few items visit took over: leaves the straight path of the loop."""


Visit: TypeAlias = Expression | bool | None
"""
How items visit one stage, as a part of a loop's shape: under a condition (that of ``AWAITED`` for an
asynchronous step), all of them (and whether the stage may answer with an Emission: a generator may,
an applied function can't), or none.
"""


class Gives(Enum):
    """What the source of a run gives, as a part of its loop's shape."""

    ITEMS = auto()
    ENDS = auto()
    """It says with an item whether it is the last."""
    EMISSIONS = auto()
    """There may be emissions among its items."""


@cache
def compiled(shape: tuple[Visit, ...], source: Gives) -> Callable[..., Loop]:
    """
    Compile the loop for a shape.

    Args:
        shape: How items visit each stage.
        source: What the source gives.
    """
    body = _Body(source)
    for place, visit in enumerate(shape):
        body.visit(place, visit)
    body.hand_out()
    text = _LOOP.format(
        arguments="".join(f", {a}" for a in body.arguments),
        body="\n".join(body.lines),
        hand_out=_SETTLE if _AWAITED & set(shape) else _HAND_OUT,
    )
    names_of_loop: dict[str, Any] = {
        "Detour": _Detour,
        "Emission": Emission,
        "PLACES": body.places,
        "READY": READY,
        "leave_frame": leave_frame,
    }
    exec(compile(text, f"<fused loop of {len(shape)}>", "exec"), names_of_loop)  # noqa: S102
    return cast("Callable[..., Loop]", types.coroutine(names_of_loop["loop"]))


class _Body:
    """
    The straight path of a loop, as it is written.

    Attributes:
        lines: Its lines.
        places: For each line of the loop the stage that it belongs to.
        arguments: The loop's parameters for the stages.
    """

    def __init__(self, source: Gives) -> None:
        self.lines: list[str] = []
        self.places: dict[int, int] = {}
        self.arguments: list[str] = []
        self._indent = " " * 16
        if source is Gives.EMISSIONS:
            self._write("if type(item) is Emission:")
            self._write("    source.take(item, chain)")
            self._write("    raise Detour")
        elif source is Gives.ENDS:
            self._write("if source.ended:")
            self._write("    chain.push_last(item)")
            self._else()

    def visit(self, place: int, visit: Visit) -> None:
        """Write how items visit the stage at *place*."""
        if visit is None:
            return
        self.arguments.append(f"step_{place}")
        if visit is AWAITED.expression:
            self._write(f"item = yield from step_{place}(item)", place)
        elif visit is AWAITED_VERDICT.expression:
            self._write(f"if not (yield from step_{place}(item)):", place)
            self._write("    raise Detour")
            return
        elif isinstance(visit, Expression):
            self._visit_if(place, visit)
            return
        else:
            self._write(f"item = step_{place}(item)", place)
        if visit:
            self._write("if type(item) is Emission:")
            self._write(f"    chain.emitted({place}, item)", place)
            self._else()

    def hand_out(self) -> None:
        """Write the end of the path."""
        self._write("chain.item = item")
        self._write("yield READY")
        self._write("continue")

    def _visit_if(self, place: int, visit: Expression) -> None:
        self.arguments += [f"n{place}_{name}" for name in visit.names]
        condition = _renamed(visit, place)
        if visit.once:
            self._write(f"if step_{place} is not None and ({condition}):", place)
            self._write(f"    step, step_{place} = step_{place}, None", place)
            self._write(f"    chain.leave({place})", place)
            self._write("    item = step(item)", place)
        else:
            self._write(f"if {condition}:", place)
            self._write(f"    item = step_{place}(item)", place)
        self._write("    if type(item) is Emission:")
        self._write(f"        chain.emitted({place}, item)", place)
        self._write("        raise Detour")

    def _write(self, line: str, place: int = 0) -> None:
        self.places[_FIRST_LINE + len(self.lines)] = place
        self.lines.append(self._indent + line)

    def _else(self) -> None:
        self._write("else:")
        self._indent += "    "


def _renamed(expression: Expression, place: int) -> str:
    """The expression with its names made the stage's own."""
    tree = ast.parse(expression.source, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in expression.names:
            node.id = f"n{place}_{node.id}"
    return ast.unparse(tree)


def leftovers(chain: Links, release: Release) -> Generator[Any, Any, None]:
    """The loop of a run that an operator ended before it began."""
    if isinstance(chain, LinkedChains):
        yield from chain.settle(release)
        return
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
{hand_out}
        if chain.ended or chain.reshaped:
            return
"""
_HAND_OUT = """\
        if chain.ended:
            release()
        while chain.out:
            chain.item = chain.out.pop(0)
            yield READY"""
_SETTLE = """\
        yield from chain.settle(release)"""
_AWAITED = {AWAITED.expression, AWAITED_VERDICT.expression}
_FIRST_LINE = _LOOP[: _LOOP.index("{body}")].count("\n") + 1
