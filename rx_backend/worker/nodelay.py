"""Disabling Nagle's algorithm, which the runtime leaves enabled."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress

__all__ = ("accept_without_delay", "listening_sockets")

_OWN_FILES = "/proc/self/fd"


def accept_without_delay() -> None:
    """
    Set ``TCP_NODELAY`` on this process's listening sockets, for the connections that they accept.

    The runtime (1.6.1) leaves Nagle's algorithm enabled on incoming request connections. When a
    frontend sends several requests at once, the acknowledgement of the second waits until TCP has
    acknowledged the first, which the frontend's side delays by 40 ms; this also delays its first
    token. On Linux an accepted connection inherits the option. Elsewhere this does nothing.
    """
    for listening in listening_sockets():
        with listening, suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listening_sockets() -> Iterator[socket.socket]:
    """Yield a duplicate of each of this process's listening TCP sockets; the caller closes it."""
    try:
        numbers = [int(name) for name in os.listdir(_OWN_FILES)]  # noqa: PTH208 - names only
    except OSError:
        return
    for number in numbers:
        # Another thread may close a file in the meantime.
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
