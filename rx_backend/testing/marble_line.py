"""Marble lines: parsing and rendering."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeAlias

from operators.assembly import CHECKED, check_arguments
from operators.authoring import AtLeast

__all__ = (
    "SIGNS",
    "Failure",
    "MarbleError",
    "MarbleEvent",
    "MarbleKind",
    "MarbleLine",
    "Values",
    "align_marbles",
    "parse_marbles",
    "render_marbles",
    "same_item",
)

MarbleKind: TypeAlias = Literal["next", "error", "completed", "subscribe", "drop"]
"""The kinds of events in a marble line."""

Values: TypeAlias = Annotated[Mapping[str, Any], CHECKED]
"""The items that letters stand for."""

Failure: TypeAlias = Annotated[Exception, CHECKED] | Annotated[type[Exception], CHECKED]
"""What ``#`` stands for: an exception, or the type of any."""

_KINDS: dict[str, MarbleKind] = {
    "|": "completed",
    "#": "error",
    "^": "subscribe",
    "!": "drop",
}
SIGNS: dict[MarbleKind, str] = {kind: sign for sign, kind in _KINDS.items()}
"""The sign of each kind of event but an item, whose sign is its letter."""

_UNKNOWN = "?"
# A word in quotes, or any character.
_SIGN = re.compile(r"'[^'\s]+'|.", re.DOTALL)


class MarbleError(ValueError):
    """A marble line is invalid, or events can't be shown in a line."""


@dataclass(frozen=True, slots=True)
class MarbleEvent:
    """
    An event in a marble line.

    Attributes:
        frame: The time in whole frames; one frame is one second of virtual time.
        kind: ``next``, ``error``, ``completed``, ``subscribe`` or ``drop``.
        value: The item or the exception; None for the other kinds.
    """

    frame: int
    kind: MarbleKind
    value: Any = None

    def __str__(self) -> str:
        named = self.kind == "next" or self.value is not None
        value = f" {self.value!r}" if named else ""
        return f"{self.kind}{value} at frame {self.frame}"


@dataclass(frozen=True, slots=True)
class MarbleLine:
    """
    A parsed marble line.

    Attributes:
        events: The events, in order.
        frames: The length of the line.
    """

    events: tuple[MarbleEvent, ...]
    frames: int

    def first(self, kind: MarbleKind) -> MarbleEvent | None:
        """Return the first event of a kind."""
        return next((event for event in self.events if event.kind == kind), None)


def parse_marbles(
    line: str, values: Values | None = None, error: Failure | None = None
) -> MarbleLine:
    """
    Parse a marble line.

    Each sign is one frame: ``-`` is empty, a letter, digit or word in quotes (``'word'``) is an
    item, ``|`` the end, ``#`` an error, ``^`` the subscription, ``!`` the drop. Signs in
    parentheses share a frame, in order. Blanks are ignored; they align lines.

    Args:
        line: The line.
        values: The items that letters and words stand for; others stand for themselves.
        error: The exception for ``#``.

    Raises:
        MarbleError: The line is invalid; the message points at the place.
        TypeError: An argument is invalid; the message names it.

    >>> for event in parse_marbles("-a-(b|)", {"a": 1}).events:
    ...     print(event)
    next 1 at frame 1
    next 'b' at frame 3
    completed at frame 3
    """
    check_arguments(parse_marbles, line, values, error)
    values = values or {}
    for sign in values.keys() & _KINDS.keys():
        raise MarbleError(f"{sign!r} is the sign of {_KINDS[sign]!r}, and no name for values")
    events: list[MarbleEvent] = []
    frame = 0
    group: int | None = None
    for match in _SIGN.finditer(line):
        sign, place = match.group(), match.start()
        if sign == " ":
            continue
        if sign == "(" and group is None:
            group = place
        elif sign == ")" and group is not None:
            group = None
        elif sign in _KINDS or sign.isalnum() or len(sign) > 1:
            kind = _KINDS.get(sign, "next")
            name = sign.strip("'")
            value = {"next": values.get(name, name), "error": error}.get(kind)
            _check_order([event.kind for event in events], kind, line, place)
            events.append(MarbleEvent(frame, kind, value))
        elif sign != "-" or group is not None:
            raise _unreadable(line, place, f"unexpected {sign!r}")
        frame += group is None
    if group is not None:
        raise _unreadable(line, group, "group is not closed")
    return MarbleLine(tuple(events), frame)


def _check_order(kinds: Sequence[MarbleKind], kind: MarbleKind, line: str, place: int) -> None:
    if "drop" in kinds or (kind != "drop" and not {"error", "completed"}.isdisjoint(kinds)):
        raise _unreadable(line, place, "nothing can follow the end of a line")
    if kind == "subscribe" and "subscribe" in kinds:
        raise _unreadable(line, place, "a line has one subscription")


def _unreadable(line: str, place: int, why: str) -> MarbleError:
    return MarbleError(f"{why} in a marble line:\n  {line}\n  {' ' * place}^")


def render_marbles(
    events: Annotated[Iterable[MarbleEvent], CHECKED],
    values: Values | None = None,
    *,
    frames: Annotated[int, AtLeast(0)] = 0,
) -> str:
    """
    Write events as a marble line.

    Args:
        events: In the order of their frames.
        values: The items that letters stand for. Without a letter, a chunk whose text is one word
            is shown as that word, and any other item that is not a letter as ``?``.
        frames: The minimum length of the line.

    Raises:
        TypeError, ValueError: An argument is invalid; the message names it.

    >>> render_marbles([MarbleEvent(1, "next", 5), MarbleEvent(3, "completed")], {"a": 5})
    '-a-|'
    """
    check_arguments(render_marbles, events, values, frames=frames)
    values = {} if values is None else values
    cells: list[str] = []
    for event in events:
        cells += [""] * (event.frame + 1 - len(cells))
        cells[event.frame] += _sign(event, values)
    cells += [""] * (frames - len(cells))
    return "".join(
        cell if _SIGN.fullmatch(cell) else f"({cell})" if cell else "-" for cell in cells
    )


def _sign(event: MarbleEvent, values: Mapping[str, Any]) -> str:
    if event.kind != "next":
        return SIGNS[event.kind]
    value = event.value
    for letter, meant in values.items():
        if same_item(meant, value):
            return letter
    if isinstance(value, str) and len(value) == 1 and value.isalnum() and value not in _KINDS:
        return _UNKNOWN if value in values else value
    word = _word(value)
    return _UNKNOWN if word is None or word in values else f"'{word}'"


def _word(item: Any) -> str | None:
    """Return the text of a chunk, or of the chunk in an item, if it is one word."""
    text = getattr(getattr(item, "data", None) or item, "text", None)
    word = text.strip() if isinstance(text, str) else ""
    return word if word and _SIGN.fullmatch(f"'{word}'") else None


def same_item(expected: object, actual: object) -> bool:
    """Return whether two items are the same or equal; items that can't be compared are not."""
    try:
        return expected is actual or bool(expected == actual)
    except Exception:
        return False


def align_marbles(rows: Annotated[Mapping[str, str], CHECKED]) -> str:
    """
    Write marble lines below each other, so that each frame is one column.

    Raises:
        TypeError: *rows* is not a mapping.

    >>> print(align_marbles({"source": "-a-b|", "result": "-(xy)-b|"}))
    source  -a   -b|
    result  -(xy)-b|
    """
    check_arguments(align_marbles, rows)
    split = {name: _cells(line) for name, line in rows.items()}
    widths = [max(map(len, column)) for column in zip_longest(*split.values(), fillvalue="")]
    margin = max(map(len, rows), default=0)
    lines: list[str] = []
    for name, cells in split.items():
        padded = "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        lines.append(f"{name:{margin}}  {padded.rstrip()}")
    return "\n".join(lines)


def _cells(line: str) -> list[str]:
    return re.findall(r"\((?:'[^'\s]+'|[^)])*\)?|'[^'\s]+'|.", line.replace(" ", ""), re.DOTALL)
