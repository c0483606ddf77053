"""How items are written as server-sent events, and our own JSON form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from operators.assembly import encodable_data
from rx_backend.protocols import Annotated, to_builtins
from rx_backend.web._failures import error_code, public_error

__all__ = ("Format", "ItemStream", "JsonItems", "Writer", "event", "json_of")

ItemStream: TypeAlias = AsyncIterator[Annotated[Any]]
"""A stream of annotated items: a ``ResponseStream``, a ``ResumableReader``, or any other."""


class Writer(Protocol):
    """
    Writes the events of one response.

    Attributes:
        has_failed: Whether an error was written; nothing follows it.
    """

    has_failed: bool

    def item(self, item: Annotated[Any]) -> bytes:
        """Return the events of an item; empty if it is not sent."""
        ...

    def failure(self, error: Exception) -> bytes:
        """Return the event of a failure."""
        ...

    def end(self) -> bytes:
        """Return what follows the last item if the stream has not failed."""
        ...


class Format(Protocol):
    """
    How a stream is written.

    Attributes:
        empty_status: The status of a stream without items, for example when a client that resumes
            has them all.
    """

    @property
    def empty_status(self) -> int:
        """The status of a stream without items."""
        ...

    def writer(self, stream: ItemStream) -> Writer:
        """Return the writer of one response, before anything is pulled from *stream*."""
        ...


_encode: Final = msgspec.json.Encoder().encode


def json_of(value: object) -> bytes:
    """
    Return the JSON of a struct or of plain data.

    A detokenizer that splits a character yields half of a surrogate pair, which UTF-8 can't encode.
    It is written as U+FFFD.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(encodable_data(msgspec.to_builtins(value)))


def event(data: bytes, *, name: str | None = None, id: str | None = None) -> bytes:
    """
    Return the bytes of an event.

    Args:
        data: The data, on one line.
        name: The event's name; browsers call an event without one ``message``.
        id: What a client returns as ``Last-Event-ID``. An id that can't be written is omitted.
    """
    head = f"id: {id}\n" if id is not None and _is_line(id) else ""
    if name is not None and _is_line(name):
        head += f"event: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def _is_line(text: str) -> bool:
    return text.isprintable() and text.isascii()


@dataclass(frozen=True)
class JsonItems:
    """
    Each item as the JSON of an `Annotated`: ``data``, ``event``, ``comment``, ``error`` and ``id``.

    An error item becomes an event named ``error``, whose ``error`` has the same ``code`` as an
    error response; other events keep their names. A stream that has not failed ends with an event
    ``done``, so that a client can tell the end from a lost connection. A stream without items is
    answered with 204, at which a browser's ``EventSource`` stops reconnecting.
    """

    empty_status = 204

    def writer(self, stream: ItemStream) -> Writer:
        """Return the writer of one response."""
        return _JsonWriter()


class _JsonWriter:
    has_failed = False

    def item(self, item: Annotated[Any]) -> bytes:
        if item.error is not None:
            return self.failure(item.error, item.id)
        return event(json_of(to_builtins(item)), name=item.event, id=item.id)

    def failure(self, error: Exception, id: str | None = None) -> bytes:
        self.has_failed = True
        item = Annotated.from_error(public_error(error))
        item.id = id
        wire = to_builtins(item)
        wire["error"]["code"] = error_code(error)
        return event(json_of(wire), name="error", id=id)

    def end(self) -> bytes:
        return event(b"{}", name="done")
