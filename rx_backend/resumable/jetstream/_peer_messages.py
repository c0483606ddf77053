"""What processes tell each other about answers."""

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
# Entries of a message; a server takes at most 1 MiB of it.
_MOST_IN_ONE: Final = 5_000


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

encode: Final = msgspec.msgpack.Encoder().encode
"""Returns the bytes of a message."""

decode_message: Final = msgspec.msgpack.Decoder(Message).decode
"""Returns the message in bytes; raises ``msgspec.MsgspecError`` if it is none."""


def parts(readers: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield *readers* in parts that fit into a message each."""
    entries = iter(readers.items())
    while part := dict(islice(entries, _MOST_IN_ONE)):
        yield part
