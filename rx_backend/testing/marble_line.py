"""One marble line: from text to events, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = (
    "MarbleError",
    "MarbleEvent",
    "MarbleKind",
    "MarbleLine",
    "align_marbles",
    "parse_marbles",
    "render_marbles",
    "same_item",
)

MarbleKind: TypeAlias = Literal["next", "error", "completed", "subscribe", "drop"]

_KINDS: dict[str, MarbleKind] = {
    "|": "completed",
    "#": "error",
    "X": "error",
    "^": "subscribe",
    "!": "drop",
}
_SIGNS: dict[MarbleKind, str] = {kind: sign for sign, kind in _KINDS.items() if sign != "X"}
_UNKNOWN = "?"
# A word in quotes, or any character.
_SIGN = re.compile(r"'[^'\s]+'|.", re.DOTALL)


class MarbleError(ValueError):
    """A marble line that can't be read, or events that no line can show."""


@dataclass(frozen=True, slots=True)
class MarbleEvent:
    """
    What happens at one moment of a marble line.

    Attributes:
        frame: When, in whole frames; one frame is one second of virtual time.
        kind: ``next``, ``error``, ``completed``, ``subscribe`` or ``drop``.
        value: The item or the exception; None for the other kinds.
        letter: The sign it was read from; empty for what was not read. It counts for nothing when
            events are compared.
    """

    frame: int
    kind: MarbleKind
    value: Any = None
    letter: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        named = self.kind == "next" or self.value is not None
        value = f" {self.value!r}" if named else ""
        return f"{self.kind}{value} at frame {self.frame}"


@dataclass(frozen=True, slots=True)
class MarbleLine:
    """
    A marble line, read.

    Attributes:
        events: What happens, in order.
        frames: How long the line is.
    """

    events: tuple[MarbleEvent, ...]
    frames: int

    def first(self, kind: MarbleKind) -> MarbleEvent | None:
        """The first event of a kind."""
        return next((event for event in self.events if event.kind == kind), None)


def parse_marbles(
    line: str,
    values: Mapping[str, Any] | None = None,
    error: Exception | type[Exception] | None = None,
) -> MarbleLine:
    """
    Read a marble line.

    Each sign is one frame: ``-`` nothing happens, a letter or digit is an item, and so is a word in
    quotes (``'word'``), ``|`` the end, ``#`` or ``X`` an error, ``^`` the subscription, ``!`` the
    drop. Signs in parentheses happen in the same frame, in order. Blanks count for nothing; they are there to align lines.

    Args:
        line: The line.
        values: What letters and words stand for; one that is not in it stands for itself.
        error: What ``#`` stands for.

    Raises:
        MarbleError: The line can't be read; shows where.

    >>> for event in parse_marbles("-a-(b|)", {"a": 1}).events:
    ...     print(event)
    next 1 at frame 1
    next 'b' at frame 3
    completed at frame 3
    """
    values = {} if values is None else values
    clash = sorted(set(values) & set(_KINDS))
    if clash:
        raise MarbleError(f"{clash[0]!r} is a sign of its own and can't be a name in values")
    events: list[MarbleEvent] = []
    frame = 0
    in_group = False
    for match in _SIGN.finditer(line):
        sign, place = match.group(), match.start()
        if sign == " ":
            continue
        if sign == "(" and not in_group:
            in_group = True
            continue
        if sign == ")" and in_group:
            in_group = False
        elif sign in _KINDS:
            kind = _KINDS[sign]
            _check_order(events, kind, line, place)
            events.append(MarbleEvent(frame, kind, error if kind == "error" else None, sign))
        elif sign.isalnum() or len(sign) > 1:
            _check_order(events, "next", line, place)
            name = sign.strip("'")
            events.append(MarbleEvent(frame, "next", values.get(name, name), sign))
        elif sign != "-" or in_group:
            raise _unreadable(line, place, f"unexpected {sign!r}")
        frame += not in_group
    if in_group:
        raise _unreadable(line, line.index("("), "group is not closed")
    return MarbleLine(tuple(events), frame)


def _check_order(events: Sequence[MarbleEvent], kind: MarbleKind, line: str, place: int) -> None:
    kinds = {event.kind for event in events}
    if "drop" in kinds or (kind != "drop" and kinds & {"error", "completed"}):
        raise _unreadable(line, place, "nothing can follow the end of a line")
    if kind == "subscribe" and "subscribe" in kinds:
        raise _unreadable(line, place, "a line has one subscription")


def _unreadable(line: str, place: int, why: str) -> MarbleError:
    return MarbleError(f"{why} in a marble line:\n  {line}\n  {' ' * place}^")


def render_marbles(
    events: Iterable[MarbleEvent],
    values: Mapping[str, Any] | None = None,
    *,
    frames: int = 0,
    prefer: str = "",
) -> str:
    """
    Write events as a marble line.

    Args:
        events: In the order of their frames.
        values: What letters stand for. A chunk of text that has no letter is its text, where that is
            one word. Any other item that has no letter, and is none itself, is ``?``.
        frames: Make the line at least so long.
        prefer: Letters to prefer where several stand for equal items.

    >>> render_marbles([MarbleEvent(1, "next", 5), MarbleEvent(3, "completed")], {"a": 5})
    '-a-|'
    """
    values = {} if values is None else values
    letters = sorted(values, key=lambda letter: letter not in prefer)
    cells: list[str] = []
    for event in events:
        cells += [""] * (event.frame + 1 - len(cells))
        cells[event.frame] += _sign(event, values, letters)
    cells += [""] * (frames - len(cells))
    return "".join(
        cell if _SIGN.fullmatch(cell) else f"({cell})" if cell else "-" for cell in cells
    )


def _sign(event: MarbleEvent, values: Mapping[str, Any], letters: Sequence[str]) -> str:
    if event.kind != "next":
        return _SIGNS[event.kind]
    value = event.value
    for letter in letters:
        if same_item(values[letter], value):
            return letter
    if isinstance(value, str) and len(value) == 1 and value.isalnum() and value not in _KINDS:
        return _UNKNOWN if value in values else value
    word = _word(value)
    return _UNKNOWN if word is None or word in values else f"'{word}'"


def _word(item: Any) -> str | None:
    """The text of a chunk, or of the chunk in an envelope, where it is one word."""
    text = getattr(getattr(item, "data", None) or item, "text", None)
    word = text.strip() if isinstance(text, str) else ""
    return word if word and _SIGN.fullmatch(f"'{word}'") else None


def same_item(expected: object, actual: object) -> bool:
    """Whether two items are the same or equal; items that can't be compared are not."""
    try:
        return expected is actual or bool(expected == actual)
    except Exception:
        return False


def align_marbles(rows: Mapping[str, str]) -> str:
    """
    Write marble lines below each other, so that each frame is one column.

    >>> print(align_marbles({"source": "-a-b|", "result": "-(xy)-b|"}))
    source  -a   -b|
    result  -(xy)-b|
    """
    split = {name: _cells(line) for name, line in rows.items()}
    length = max(map(len, split.values()), default=0)
    widths = [
        max(len(cells[frame]) for cells in split.values() if frame < len(cells))
        for frame in range(length)
    ]
    margin = max(map(len, rows), default=0)
    return "\n".join(
        f"{name:{margin}}  "
        + "".join(
            f"{cell:{width}}" for cell, width in zip(cells, widths[: len(cells)], strict=True)
        ).rstrip()
        for name, cells in split.items()
    )


def _cells(line: str) -> list[str]:
    cells: list[str] = []
    in_group = False
    for sign in _SIGN.findall(line.replace(" ", "")):
        if in_group:
            cells[-1] += sign
        else:
            cells.append(sign)
        in_group = sign == "(" or (in_group and sign != ")")
    return cells
