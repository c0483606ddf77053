"""The ids of streams, and of the events of a stream."""

from __future__ import annotations

import re
import secrets
from typing import Final, cast

from rx_backend.errors import InvalidArgument

__all__ = ("check_text", "event_id", "new_stream_id", "parse_event_id")

_EVENT_ID: Final = re.compile(r"([A-Za-z0-9_-]{1,128}):([0-9]{1,15})")
_LONGEST_SHOWN: Final = 80


def new_stream_id() -> str:
    """Return an unguessable id: 128 bits of the system's entropy, as 22 characters."""
    return secrets.token_urlsafe(16)


def event_id(stream_id: str, position: int) -> str:
    """Return the id of the event after which *position* items of a stream have been read."""
    return f"{stream_id}:{position}"


def parse_event_id(text: str) -> tuple[str, int]:
    """
    Return the stream id and the position in an event's id, as in ``Last-Event-ID``.

    Raises:
        InvalidArgument: It is not the id of an event.

    >>> parse_event_id("gX2S0mgDGyLEnp9FeXUTMw:17")
    ('gX2S0mgDGyLEnp9FeXUTMw', 17)
    """
    given = cast("object", text)
    found = _EVENT_ID.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        if isinstance(given, str) and len(given) > _LONGEST_SHOWN:
            given = f"{given[:_LONGEST_SHOWN]}..."
        raise InvalidArgument(f"event id: expected <stream id>:<position>, got {given!r}")
    return found[1], int(found[2])


def check_text(name: str, text: object) -> None:
    """
    Check that *text* is a string.

    Raises:
        InvalidArgument: It is not; names the argument.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"{name}: expected a string, got {text!r}")
