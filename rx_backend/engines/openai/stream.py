"""Server-sent events: the data of events, from bytes in arbitrary pieces."""

from __future__ import annotations

from rx_backend.errors import Unknown

__all__ = ("EventReader",)


class EventReader:
    r"""
    Splits a byte stream into the data of its events.

    Lines may end with LF, CRLF or CR. Comments and all fields except ``data`` are skipped.

    Args:
        max_event_bytes: Maximum size of an event.

    >>> reader = EventReader(1024)
    >>> reader.feed(b": hello\n\ndata: 1\r\n\r\nda")
    [b'1']
    >>> reader.feed(b"ta: 2\n")
    []
    >>> reader.end()
    [b'2']
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._rest = b""
        self._ends_in_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """
        Return the data of the events that *data* completes.

        Raises:
            Unknown: An event is larger than allowed.
        """
        if self._ends_in_cr:
            # The LF of a CRLF may be in the next piece.
            data = data.removeprefix(b"\n")
        self._ends_in_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, self._rest = (self._rest + data).split(b"\n\n")
        if len(self._rest) > self._max:
            raise Unknown(f"the server sent an event of more than {self._max} bytes (max)")
        return [found for event in events if (found := _data_of(event))]

    def end(self) -> list[bytes]:
        """Return the data of the last event, if the stream ended without an empty line after it."""
        return self.feed(b"\n\n")


def _data_of(event: bytes) -> bytes:
    if b"\n" not in event:
        return event[5:].strip() if event.startswith(b"data:") else b""
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
