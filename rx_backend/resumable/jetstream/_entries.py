"""The entries of an answer's log: one JetStream message each, as MessagePack."""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from operators.assembly import OpenAnswers, answer_in, encodable_data, is_terminal
from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument, Unknown
from rx_backend.protocols import (
    Annotated,
    LLMEngineOutput,
    PreprocessedRequest,
    convert_annotated,
    convert_request,
    to_builtins,
)

__all__ = ("Batch", "Entry", "Item", "Record", "Release", "TakeOver", "decode", "encode", "to_wire")

Item: TypeAlias = Annotated[LLMEngineOutput]


class Record(msgspec.Struct, frozen=True, tag="record"):
    """
    The first entry of an answer: the request, and the process that produces the answer.

    Attributes:
        writer: A random name for one process's part in one answer.
        process: The process that produces the answer.
        request: The request's wire form.
        owner: The answer's owner.
        created: When it was started, in seconds since the epoch.
        context_id, metadata, trace_headers: From the request's context.
    """

    writer: str
    process: str
    request: Any
    owner: str | None
    created: float
    context_id: str
    metadata: dict[str, str]
    trace_headers: dict[str, str]

    first: ClassVar[int] = 0
    size: ClassVar[int] = 0

    def open_request(self) -> PreprocessedRequest:
        """Return the request; raise `InvalidArgument` if an incompatible version wrote it."""
        return convert_request(self.request)

    def open_context(self) -> RequestContext:
        """Return a context like the request's, for a process that has not seen the request."""
        return RequestContext(self.context_id, self.metadata, trace_headers=self.trace_headers)


class Batch(msgspec.Struct, frozen=True, tag="items"):
    """
    Items of the answer.

    Attributes:
        writer: The writer that appended it.
        first: How many items came before.
        items: Their wire form.
        is_end: Whether the answer is over.
    """

    writer: str
    first: int
    items: list[Any]
    is_end: bool

    @property
    def size(self) -> int:
        """The number of items."""
        return len(self.items)

    def open_items(self) -> list[Item]:
        """Return the items."""
        return [convert_annotated(item) for item in self.items]

    def end(self, answers: OpenAnswers) -> None:
        """Record which of *answers* the items end; an error ends all of them."""
        for item in self.items:
            chunk = item.get("data")
            if item.get("event") == "error":
                answers.ended.update(answers.left)
            elif is_terminal(chunk):
                answers.end(answer_in(chunk))


class TakeOver(msgspec.Struct, frozen=True, tag="takeover"):
    """From here on another process produces the answer, because the previous one is gone."""

    writer: str
    first: int
    process: str

    size: ClassVar[int] = 0


class Release(msgspec.Struct, frozen=True, tag="release"):
    """The process that produced the answer has shut down; another may take over at once."""

    writer: str
    first: int

    size: ClassVar[int] = 0


Entry: TypeAlias = Record | Batch | TakeOver | Release
"""In each, ``first`` is how many items came before it, and ``size`` how many it has."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """
    Return the bytes of an entry; text that UTF-8 can't express is repaired (row P10).

    Raises:
        InvalidArgument: A value inside has no wire form.
    """
    try:
        return _encoder.encode(entry)
    except UnicodeEncodeError:
        return _encoder.encode(encodable_data(msgspec.to_builtins(entry)))
    except (TypeError, OverflowError) as error:
        raise InvalidArgument(
            f"item or request: expected plain data, which JetStream can store: {error}"
        ) from error


def to_wire(value: Item | PreprocessedRequest) -> Any:
    """
    Return the wire form of an item or a request.

    Raises:
        InvalidArgument: A value inside has no wire form.
    """
    try:
        return to_builtins(value)
    except TypeError as error:
        raise InvalidArgument(
            f"item or request: expected plain data, which JetStream can store: {error}"
        ) from error


def decode(data: bytes, where: str) -> Entry:
    """
    Return the entry in *data*.

    Raises:
        Unknown: It is not an entry; names *where* it was found.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Unknown(f"{where}: expected an entry of an answer: {error}") from error
