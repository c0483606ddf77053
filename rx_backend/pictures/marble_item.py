"""Labels of a stream's items, in pictures and text."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from rx_backend.pictures import style
from rx_backend.testing import MarbleEvent, align_marbles, render_marbles
from rx_backend.testing.marble_line import same_item

__all__ = ("Marble", "MarbleRow", "marble_of", "rows_as_text")


@dataclass(frozen=True, slots=True)
class MarbleRow:
    """
    One row of a marble picture.

    Attributes:
        name: Its name.
        kind: The input (``source``, and ``input`` for others), the output (``result``), or an
            operator's calls (``effect``).
        events: The events, in order. A ``drop`` means that the row was dropped before its end; an
            effect without an item has the value None.
    """

    name: str
    kind: Literal["source", "input", "result", "effect"]
    events: tuple[MarbleEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Marble:
    """How an item is shown."""

    content: str = ""
    """Its letter, token ids or text."""
    ending: str = ""
    """Its finish reason, or the type of its error."""
    is_fault: bool = False
    is_wrapped: bool = False
    """Whether it is an envelope around a chunk."""

    def __str__(self) -> str:
        text = f"{self.content} {self.ending}".strip() or "empty"
        return f"[{text}]" if self.is_wrapped else text


def marble_of(item: object, values: Mapping[str, Any] | None = None) -> Marble:
    """
    Return how an item is shown.

    A chunk is shown by its token ids or, without them, by its text or parts (row F1), a list by its
    items, and anything else by its text. For an envelope, which has ``data``, its chunk is shown.

    Other items are shown by their letter in *values*, if they have one.

    >>> from rx_backend import LLMEngineOutput
    >>> for item in LLMEngineOutput([7, 8]), LLMEngineOutput(text=" the"), ("a", "b"):
    ...     print(marble_of(item))
    7 8
    the
    a b
    """
    error = getattr(item, "error", None)
    if isinstance(error, BaseException):
        return Marble("", type(error).__name__, is_fault=True, is_wrapped=True)
    chunk: Any = getattr(item, "data", item)
    if hasattr(chunk, "token_ids"):
        reason = getattr(chunk, "finish_reason", None)
        ending = "" if reason is None else str(getattr(reason, "kind", reason))
        return Marble(_content(chunk), ending, is_wrapped=chunk is not item)
    for letter, value in (values or {}).items():
        if type(value) is type(item) and same_item(value, item):
            return Marble(letter)
    if isinstance(item, list | tuple):
        items = cast("Iterable[object]", item)
        return Marble(" ".join(marble_of(inner, values).content for inner in items))
    return Marble(_one_line(str(item)))


def _content(chunk: Any) -> str:
    if chunk.token_ids:
        return " ".join(map(str, chunk.token_ids))
    parts = getattr(chunk, "content_parts", None) or ()
    text = getattr(chunk, "text", None) or " ".join(
        part.get("text") or str(part.get("type")) for part in parts
    )
    return _one_line(text) if text else ""


def _one_line(text: str) -> str:
    return style.one_line(text) or "␣"  # white space alone stays visible


def rows_as_text(rows: Iterable[MarbleRow], values: Mapping[str, Any]) -> str:
    """
    Return rows as marble lines, one column per frame, and below them a legend of letters.

    Items without a letter are assigned a capital; an effect without an item is ``!``. An error that
    is not from a source is named.
    """
    rows = [_with_bare_effects(row) if row.kind == "effect" else row for row in rows]
    items = [event.value for row in rows for event in row.events if event.kind == "next"]
    named, shown = dict(values), dict[str, str]()
    taken = {*named, *(_letter(item, {}) for item in items)}
    free = [letter for letter in reversed(string.ascii_uppercase) if letter not in taken]
    for item in items:
        letter = _letter(item, named)
        if letter == "?" and free:
            letter = free.pop()
            named[letter] = item
        if letter.strip("'") != (text := str(marble_of(item))):
            shown[letter] = text
    sent, came = _errors(rows, {"source", "input"}), _errors(rows, {"result"})
    for error in came:
        if error not in sent:
            shown["#"] = repr(error)
    frames = 1 + max((event.frame for row in rows for event in row.events), default=0)
    lines = {
        row.name: render_marbles(row.events, named, frames=frames if _is_open(row) else 0)
        for row in rows
    }
    legend = ", ".join(f"{letter} = {text}" for letter, text in shown.items())
    return align_marbles(lines) + (f"\n({legend})" if legend else "")


def _errors(rows: Iterable[MarbleRow], kinds: Collection[str]) -> list[object]:
    rows = [row for row in rows if row.kind in kinds]
    return [event.value for row in rows for event in row.events if event.kind == "error"]


def _letter(item: object, values: Mapping[str, Any]) -> str:
    return render_marbles([MarbleEvent(0, "next", item)], values)


def _is_open(row: MarbleRow) -> bool:
    return row.kind != "effect" and all(event.kind == "next" for event in row.events)


def _with_bare_effects(row: MarbleRow) -> MarbleRow:
    events = [
        replace(event, kind="drop") if event.kind == "next" and event.value is None else event
        for event in row.events
    ]
    return replace(row, events=tuple(events))
