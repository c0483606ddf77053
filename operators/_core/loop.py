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
    body = _Body(shape, source)
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

    What one stage's condition has found to be false, the conditions of the stages behind it are not
    asked again, as long as no other stage has seen the item. Where that saves something, the path
    is written twice: for items that visit that stage, and for those that pass it by.

    Args:
        shape: How items visit each stage.
        source: What the source gives.

    Attributes:
        lines: Its lines.
        places: For each line of the loop the stage that it belongs to.
        arguments: The loop's parameters for the stages.
    """

    def __init__(self, shape: tuple[Visit, ...], source: Gives) -> None:
        self.lines: list[str] = []
        self.places: dict[int, int] = {}
        self.arguments = _arguments(shape)
        self._shape = shape
        self._indent = " " * 16
        if source is Gives.EMISSIONS:
            self._write("if type(item) is Emission:")
            self._write("    source.take(item, chain)")
            self._write("    raise Detour")
        elif source is Gives.ENDS:
            self._write("if source.ended:")
            self._write("    chain.push_last(item)")
            self._else()
        self._path(0, may_fork=True)

    def _path(
        self, start: int, *, may_fork: bool = False, known: frozenset[str] = frozenset()
    ) -> None:
        """Write the path from a stage on, for items of which some terms are known to be false."""
        for place in range(start, len(self._shape)):
            visit = self._shape[place]
            if visit is None:
                continue
            if not isinstance(visit, Expression) or visit in _AWAITED:
                self._visit(place, visit)
                known = frozenset()
                continue
            terms = _terms(visit)
            asked = [
                _renamed(term, visit, place) for term in terms if ast.unparse(term) not in known
            ]
            if not asked:
                continue
            found = frozenset(ast.unparse(term) for term in terms if _is_plain(term))
            if may_fork and not visit.once and found & self._terms_behind(place):
                indent = self._indent
                self._visit_if(place, visit, asked)
                self._indent = indent + "    "
                self._path(place + 1)
                self._indent = indent
                self._else()
                self._path(place + 1, known=found)
                return
            self._visit_if(place, visit, asked)
            known = frozenset()
        self._write("chain.item = item")
        self._write("yield READY")
        self._write("continue")

    def _visit(self, place: int, visit: Expression | bool) -> None:
        if visit is AWAITED_VERDICT.expression:
            self._write(f"if not (yield from step_{place}(item)):", place)
            self._write("    raise Detour")
            return
        waits = "yield from " if visit is AWAITED.expression else ""
        self._write(f"item = {waits}step_{place}(item)", place)
        if visit:
            self._write("if type(item) is Emission:")
            self._write(f"    chain.emitted({place}, item)", place)
            self._else()

    def _visit_if(self, place: int, visit: Expression, asked: list[str]) -> None:
        condition = " or ".join(f"({term})" for term in asked)
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

    def _terms_behind(self, place: int) -> set[str]:
        """What the conditions ask up to the first stage that all items visit."""
        asked: set[str] = set()
        for visit in self._shape[place + 1 :]:
            if isinstance(visit, Expression) and visit not in _AWAITED:
                asked.update(map(ast.unparse, _terms(visit)))
            elif visit is not None:
                break
        return asked

    def _write(self, line: str, place: int = 0) -> None:
        self.places[_FIRST_LINE + len(self.lines)] = place
        self.lines.append(self._indent + line)

    def _else(self) -> None:
        self._write("else:")
        self._indent += "    "


def _arguments(shape: tuple[Visit, ...]) -> list[str]:
    """The loop's parameters: each stage's step, and the values of its condition."""
    arguments: list[str] = []
    for place, visit in enumerate(shape):
        if visit is not None:
            arguments.append(f"step_{place}")
        if isinstance(visit, Expression):
            arguments += [f"n{place}_{name}" for name in visit.names]
    return arguments


def _terms(expression: Expression) -> list[ast.expr]:
    """The terms of which one must hold."""
    tree = ast.parse(expression.source, mode="eval").body
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.Or):
        return tree.values
    return [tree]


def _is_plain(term: ast.expr) -> bool:
    """Whether a term asks about the item alone, and asking twice gives the same."""
    nodes = list(ast.walk(term))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return (
        {"item"} <= names <= {"item", "len"}
        and all(isinstance(node, _PLAIN) for node in nodes)
        and all(isinstance(call.func, ast.Name) for call in calls)
    )


_PLAIN = (
    *(ast.Compare, ast.cmpop, ast.UnaryOp, ast.unaryop, ast.Constant),
    *(ast.Attribute, ast.Name, ast.Call, ast.expr_context),
)


def _renamed(term: ast.expr, expression: Expression, place: int) -> str:
    """A term with its names made the stage's own."""
    for node in ast.walk(term):
        if isinstance(node, ast.Name) and node.id in expression.names:
            node.id = f"n{place}_{node.id}"
    return ast.unparse(term)


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
