"""What a marble picture shows: rows of events, and what the items in them are called."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from rx_backend.testing import MarbleEvent, align_marbles, render_marbles

__all__ = ("Marble", "MarbleRow", "marble_of", "rows_as_text")

# As long as what still reads well in a picture.
_LONGEST = 14
# What a marble line has for an item without a letter.
_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class MarbleRow:
    """
    One row of a marble picture.

    Attributes:
        name: What it is called.
        kind: What it is: what went in (``source``, and ``input`` for others), what came out
            (``result``), or what an operator did besides (``effect``).
        events: What happened, in order. A ``drop`` is where it was left before its end; an effect
            without an item has the value None.
        busy: From when to when, in frames: a source while it was asked for an item, a consumer
            while it had one in hand. Only pulled runs know. Infinite where that did not end.
    """

    name: str
    kind: Literal["source", "input", "result", "effect"]
    events: tuple[MarbleEvent, ...] = ()
    busy: tuple[tuple[float, float], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Marble:
    """
    How an item is shown.

    Attributes:
        parts: The letters or token ids in it: none, one, or several.
        ending: Its finish reason, for the terminal of a stream.
        fault: The kind of the error that it carries, if it carries one.
        wrapped: Whether it came in an envelope.
    """

    parts: tuple[str, ...] = ()
    ending: str = ""
    fault: str = ""
    wrapped: bool = False

    def __str__(self) -> str:
        said = " ".join(filter(None, [*self.parts, self.ending, self.fault])) or "empty"
        return f"[{said}]" if self.wrapped else said


def marble_of(item: object, values: Mapping[str, Any] | None = None) -> Marble:
    """
    Say how an item is shown: a chunk by its token ids, a list by its items, others by their text.

    Args:
        item: The item. In an envelope, which has ``data``, the chunk in it counts.
        values: What letters stand for; what is not a chunk is shown by its letter.

    >>> from rx_backend import LLMEngineOutput
    >>> print(marble_of(LLMEngineOutput(token_ids=[7, 8])), marble_of(("a", "b")), sep=", ")
    7 8, a b
    >>> marble_of(LLMEngineOutput.stop())
    Marble(parts=(), ending='stop', fault='', wrapped=False)
    """
    error = getattr(item, "error", None)
    if isinstance(error, BaseException):
        return Marble(fault=type(error).__name__, wrapped=True)
    chunk = getattr(item, "data", item)
    token_ids = getattr(chunk, "token_ids", None)
    if token_ids is not None:
        reason = getattr(chunk, "finish_reason", None)
        ending = "" if reason is None else str(getattr(reason, "kind", reason))
        return Marble(tuple(map(str, token_ids)), ending, wrapped=chunk is not item)
    for letter, value in (values or {}).items():
        if type(value) is type(item) and value == item:
            return Marble((letter,))
    if isinstance(item, list | tuple):
        items = cast("Iterable[object]", item)
        return Marble(tuple(part for inner in items for part in marble_of(inner, values).parts))
    text = str(item)
    return Marble((text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…",))


def rows_as_text(rows: Iterable[MarbleRow], values: Mapping[str, Any]) -> str:
    """
    Write rows as marble lines, each frame one column; below, what letters stand for.

    Items that no letter stands for get a capital of their own; an effect without an item is ``!``.
    """
    rows = [replace(row, events=tuple(map(_bare, row.events))) for row in rows]
    items = [event.value for row in rows for event in row.events if event.kind == "next"]
    named, shown = dict(values), dict[str, str]()
    taken = {*named, "X", *(_letter(item, {}) for item in items)}
    free = [letter for letter in string.ascii_uppercase if letter not in taken]
    for item in items:
        letter = _letter(item, named)
        if letter == _UNKNOWN and free:
            letter = free.pop(0)
            named[letter] = item
        if letter != (text := str(marble_of(item))):
            shown[letter] = text
    frames = 1 + max((event.frame for row in rows for event in row.events), default=0)
    lines = {
        row.name: render_marbles(row.events, named, frames=frames if _is_open(row) else 0)
        for row in rows
    }
    legend = ", ".join(f"{letter} = {text}" for letter, text in shown.items())
    return "\n".join([align_marbles(lines), f"({legend})"][: 2 if legend else 1])


def _letter(item: object, values: Mapping[str, Any]) -> str:
    return render_marbles([MarbleEvent(0, "next", item)], values)


def _is_open(row: MarbleRow) -> bool:
    return row.kind != "effect" and all(event.kind == "next" for event in row.events)


def _bare(event: MarbleEvent) -> MarbleEvent:
    is_bare = event.kind == "next" and event.value is None
    return replace(event, kind="drop") if is_bare else event
