"""
The compiled loop of adjacent operators, driven by the consumer's pull.

The loop of a run is generated as source for its shape (the operators, and which items visit them)
and compiled once per shape, so that a chunk passes from one to the next by plain calls.
``docs/architecture.md`` shows an example.

The loop yields the engine's futures unchanged, and ``READY`` for an item. It returns when the run
has ended, was dropped, or has changed its shape.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, cast

from operators._core.failures import drop_top_frame
from operators._core.stage import Condition, StageResult, Visit

__all__ = ("READY", "Loop", "compiled")

Loop: TypeAlias = "types.GeneratorType[Any, Any, None]"

READY = object()
"""What a loop yields for an item that is in its chain's slot."""


class _Detour(BaseException):
    """Raised to leave the fast path of the loop when the chain takes over."""


@cache
def compiled(shape: tuple[Visit, ...], tells_end: bool) -> Callable[..., Loop]:
    """Compile the loop for a shape; *tells_end*: the source knows which item is the last."""
    body = _Body(shape, tells_end)
    text = _LOOP.format(names="; ".join(body.names) or "pass", body="\n".join(body.lines))
    names: dict[str, Any] = {
        "Detour": _Detour,
        "PLACES": body.places,
        "READY": READY,
        "StageResult": StageResult,
        "drop_top_frame": drop_top_frame,
    }
    exec(compile(text, f"<fused loop of {len(shape)}>", "exec"), names)  # noqa: S102
    return cast("Callable[..., Loop]", types.coroutine(names["loop"]))


class _Body:
    """
    The fast path of a loop, as generated source.

    Attributes:
        lines: Its lines.
        names: Statements that look up the stages' functions and values.
        places: The stage of each line of the loop.
    """

    def __init__(self, shape: tuple[Visit, ...], tells_end: bool) -> None:
        self.lines: list[str] = []
        self.names: list[str] = []
        self.places: dict[int, int] = {}
        self._indent = " " * 16
        if tells_end:
            self._write("if source.ended:")
            self._write("    is_last = True")
            self._write("    chain.send_last()")
        for place, visit in enumerate(shape):
            if visit is None:
                continue
            self.names.append(f"step_{place} = chain.bodies[{place}].step")
            if isinstance(visit, Condition):
                self._visit_when(place, visit)
            else:
                # False: a class, which returns an item and nothing else.
                self._write(f"item = step_{place}(item)", place)
                if visit:
                    self._take_result(place, "")
        self._write("if is_last:")
        self._write("    chain.out.append(item)")
        self._write("    raise Detour")
        self._write("chain.item = item")
        self._write("yield READY")
        self._write("continue")

    def _visit_when(self, place: int, visit: Condition) -> None:
        condition = visit.source
        for name in visit.names:
            condition = re.sub(rf"(?<![\w.]){name}\b", f"n{place}_{name}", condition)
        if visit.names:
            values = "".join(f"n{place}_{name}, " for name in visit.names)
            self.names.append(f"{values}= chain.bodies[{place}].values")
        if visit.once:
            self._write(f"if step_{place} is not None and ({condition}):", place)
            self._write(f"    step, step_{place} = step_{place}, None", place)
            self._write(f"    chain.visits[{place}] = None", place)
            self._write("    item = step(item)", place)
            self._write("    step = None")
        else:
            self._write(f"if {condition}:", place)
            self._write(f"    item = step_{place}(item)", place)
        self._take_result(place, "    ")

    def _take_result(self, place: int, indent: str) -> None:
        self._write(f"{indent}if item is None or type(item) is StageResult:")
        self._write(f"{indent}    item = chain.stage_returned({place}, item)", place)
        self._write(f"{indent}    if item is None:")
        self._write(f"{indent}        raise Detour")
        self._write(f"{indent}    is_last = True")

    def _write(self, line: str, place: int = 0) -> None:
        self.places[_FIRST_LINE + len(self.lines)] = place
        self.lines.append(self._indent + line)


# The line of an exception in the loop identifies the stage.
_LOOP = """\
def loop(chain, source, get, pull):
    if chain.has_ended:
        return
    {names}
    is_last = False
    while chain.out:
        chain.item = chain.out.pop(0)
        yield READY
    while True:
        try:
            item = yield from get()
            get = pull
        except StopAsyncIteration:
            chain.complete()
        except GeneratorExit:
            raise
        except BaseException as error:
            chain.fail_from_source(error)
        else:
            if chain.is_disturbed and chain.is_over():
                return
            try:
{body}
            except Detour:
                pass
            except GeneratorExit:
                raise
            except BaseException as error:
                place = PLACES[error.__traceback__.tb_lineno]
                drop_top_frame(error)
                chain.stage_raised(error, place, item)
        if is_last:
            chain.complete_last()
        if chain.has_ended:
            return
        while chain.out:
            chain.item = chain.out.pop(0)
            yield READY
        if chain.reshaped:
            return
"""
_FIRST_LINE = _LOOP[: _LOOP.index("{body}")].count("\n") + 1
