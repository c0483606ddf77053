"""What processes tell each other about answers, and what an answer is to that."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol, TypeAlias

import msgspec

__all__ = (
    "NO_READERS",
    "Call",
    "Followed",
    "Reply",
    "Written",
    "decode_message",
    "encode",
    "parts",
)

NO_READERS: Final = -1
# Entries of a message; a server takes at most 1 MiB of it.
_MOST_IN_ONE: Final = 5_000


class Written(Protocol):
    """An answer that this process writes."""

    id: str

    @property
    def sequence(self) -> int:
        """The sequence number of its last entry."""
        ...

    def reader_at(self, process: str, position: int) -> None:
        """Another process's fastest reader is at *position*."""

    def reader_left(self, process: str) -> None:
        """Another process has no reader any more, or is gone."""

    def stop_asked(self, *, kill: bool) -> None:
        """Another process wants the answer to be stopped."""


class Followed(Protocol):
    """An answer that another process writes."""

    id: str

    @property
    def writer_process(self) -> str:
        """The process that writes it."""
        ...

    def position(self) -> int | None:
        """Return where the fastest reader is; None without readers."""
        ...

    def stop_wanted(self) -> bool | None:
        """Return None unless the answer is to be stopped, then whether it is to be killed."""
        ...

    def writer_at(self, sequence: int) -> None:
        """The writer's last entry has this sequence number."""

    def writer_lost(self) -> None:
        """The process has been silent for ``lease_s``, or does not write the answer any more."""


class Call(msgspec.Struct, frozen=True, tag="call"):
    """
    Where the readers of a process are.

    Attributes:
        process: Who calls.
        wants_reply: Whether the one that is called has to answer.
        readers: The position of the fastest reader of each answer; -1 without readers.
        stops: The answers to be stopped; True for those to be killed.
    """

    process: str
    wants_reply: bool
    readers: dict[str, int]
    stops: dict[str, bool]


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """
    Says that a process is alive.

    Attributes:
        process: Who replies.
        sequences: The last sequence number of each answer that it writes.
        unknown: The answers that it was asked about and does not write.
    """

    process: str
    sequences: dict[str, int]
    unknown: list[str]


Message: TypeAlias = Call | Reply

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Return the message in *data*; raise ``msgspec.MsgspecError`` if it is none."""
    return _decoder.decode(data)


def parts(readers: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield *readers* in parts that fit into a message each."""
    entries = iter(readers.items())
    while part := dict(islice(entries, _MOST_IN_ONE)):
        yield part
