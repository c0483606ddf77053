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
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from operators._core.chain import READY, leave_frame
from operators._core.links import LinkedChains, Links
from operators._core.release import Release
from operators._core.stage import AWAITED, Emission, Expression

__all__ = ("METHOD", "Visit", "compiled", "leftovers")

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


@cache
def compiled(shape: tuple[Visit, ...], ends_early: bool) -> Callable[..., Loop]:
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
    is_linked = False

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
        if visit is AWAITED.expression:
            write(f"item = yield from step_{place}(item)", place)
            visit = True  # noqa: PLW2901 - from here on it is like any other
            is_linked = True
        elif isinstance(visit, Expression):
            arguments += [f"n{place}_{name}" for name in visit.names]
            condition = _renamed(visit, place)
            if visit.once:
                write(f"if step_{place} is not None and ({condition}):", place)
                write(f"    step, step_{place} = step_{place}, None", place)
                write(f"    chain.leave({place})", place)
                write("    item = step(item)", place)
            else:
                write(f"if {condition}:", place)
                write(f"    item = step_{place}(item)", place)
            write("    if type(item) is Emission:")
            write(f"        chain.emitted({place}, item)", place)
            write("        raise Detour")
            continue
        else:
            write(f"item = step_{place}(item)", place)
        if visit:
            write("if type(item) is Emission:")
            write(f"    chain.emitted({place}, item)", place)
            write("else:")
            indent += "    "
    write("chain.item = item")
    write("yield READY")
    write("continue")
    source = _LOOP.format(
        arguments="".join(f", {a}" for a in arguments),
        body="\n".join(body),
        hand_out=_SETTLE if is_linked else _HAND_OUT,
    )
    names_of_loop: dict[str, Any] = {
        "Detour": _Detour,
        "Emission": Emission,
        "PLACES": places,
        "READY": READY,
        "leave_frame": leave_frame,
    }
    exec(compile(source, f"<fused loop of {len(shape)}>", "exec"), names_of_loop)  # noqa: S102
    return cast("Callable[..., Loop]", types.coroutine(names_of_loop["loop"]))


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
_FIRST_LINE = _LOOP[: _LOOP.index("{body}")].count("\n") + 1
