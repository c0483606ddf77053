"""The messages between processes about answers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, TypeAlias

import msgspec

__all__ = (
    "NO_READERS",
    "Call",
    "Reply",
    "decode_message",
    "encode",
    "parts",
)

NO_READERS: Final = -1
# Entries per message; a server accepts at most 1 MiB.
_MOST_IN_ONE: Final = 5_000


class Call(msgspec.Struct, frozen=True, tag="call"):
    """
    The positions of a process's readers.

    Attributes:
        process: The calling process.
        wants_reply: Whether the recipient has to reply.
        readers: The position of the fastest reader of each answer; -1 without readers.
        stops: The answers to stop; True for those to kill.
    """

    process: str
    wants_reply: bool
    readers: dict[str, int]
    stops: dict[str, bool]


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """
    Shows that a process is alive.

    Attributes:
        process: The replying process.
        sequences: The last sequence number of each answer that it writes.
        unknown: The answers in the call that it does not write.
    """

    process: str
    sequences: dict[str, int]
    unknown: list[str]


Message: TypeAlias = Call | Reply

encode: Final = msgspec.msgpack.Encoder().encode
"""Returns the bytes of a message."""

decode_message: Final = msgspec.msgpack.Decoder(Message).decode
"""Returns the message in bytes; raises ``msgspec.MsgspecError`` if invalid."""


def parts(readers: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield *readers* in parts that each fit into a message."""
    entries = iter(readers.items())
    while part := dict(islice(entries, _MOST_IN_ONE)):
        yield part
