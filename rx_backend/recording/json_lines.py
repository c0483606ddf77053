"""Reading JSON Lines in bounded memory, with errors that name the field."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO, Final, TypeVar

import msgspec

from rx_backend.errors import InvalidArgument

__all__ = ("NotJson", "decode_line", "read_lines")

T = TypeVar("T")

_MAX_BYTES: Final = 64 * 2**20


class NotJson(InvalidArgument):
    """A line is not JSON, perhaps because it was truncated."""


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """
    Yield the lines of *file*, and one that is too long for `decode_line` in parts.

    A byte order mark at the beginning, which editors on Windows write, is skipped.
    """
    line = file.readline(_MAX_BYTES + 1).removeprefix(BOM_UTF8)
    while line:
        yield line
        line = file.readline(_MAX_BYTES + 1)


def decode_line(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """
    Decode one line.

    Raises:
        NotJson: It is not JSON.
        InvalidArgument: It is too long, or a type or value is wrong; the message starts with the
            path of the field.
    """
    if len(line) > _MAX_BYTES:
        raise InvalidArgument(f"expected a line of at most {_MAX_BYTES >> 20} MiB")
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).replace("`", "").partition(" - at ")
        raise InvalidArgument(f"{path or '$'}: {problem[:1].lower()}{problem[1:]}") from None
    except (ValueError, RecursionError) as error:
        raise NotJson(f"expected a JSON object, got something else: {error}") from None
