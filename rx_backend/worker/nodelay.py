"""TCP without Nagle's algorithm, where the runtime leaves it on."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ("accept_without_delay", "listening_sockets")

_OWN_FILES = Path("/proc/self/fd")


def accept_without_delay() -> None:
    """
    Have what this process's TCP servers accept from now on send at once.

    The runtime (1.6.1) leaves Nagle's algorithm on where it takes requests. When a frontend sends
    several at once, what acknowledges the second waits until TCP has acknowledged the first, which
    the frontend's side puts off by 40 ms, and its first token is that much later. On Linux a
    connection inherits ``TCP_NODELAY`` from the socket that accepts it. Elsewhere, and where
    sockets can't be listed, nothing happens.
    """
    for listening in listening_sockets():
        with listening, suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listening_sockets() -> Iterator[socket.socket]:
    """Return a duplicate of each of this process's listening TCP sockets, to be closed."""
    try:
        numbers = [int(path.name) for path in _OWN_FILES.iterdir()]
    except OSError:
        return
    for number in numbers:
        # A file that another thread has closed in the meantime is none of ours.
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            found = socket.socket(fileno=os.dup(number))
            if _is_listening(found):
                yield found
            else:
                found.close()


def _is_listening(found: socket.socket) -> bool:
    return (
        found.family in {socket.AF_INET, socket.AF_INET6}
        and found.type == socket.SOCK_STREAM
        and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )
