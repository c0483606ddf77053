"""Receivers that misbehave, on sockets of loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

__all__ = ("MISBEHAVING", "misbehaving")

_OK = b"HTTP/1.1 200 OK\r\n"


def _silent(client: socket.socket) -> None:
    while client.recv(65_536):
        pass


def _fails(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 500 Internal Server Error\x1b[2J\r\nContent-Length: 0\r\n\r\n")


def _endless_body(client: socket.socket) -> None:
    client.sendall(_OK + b"\r\n")
    while True:
        client.sendall(b"x" * 1_000_000)


def _endless_headers(client: socket.socket) -> None:
    client.sendall(_OK)
    while True:
        client.sendall(b"a: b\r\n" * 100_000)


def _slow_body(client: socket.socket) -> None:
    client.sendall(_OK + b"Content-Length: 1000\r\n\r\n")
    while client.recv(65_536):
        client.sendall(b"x")


def _garbage(client: socket.socket) -> None:
    while True:
        client.sendall(b"\xff\x00\x1b[2J\r\n" * 100_000)


MISBEHAVING: dict[str, Callable[[socket.socket], None]] = {
    "silent": _silent,
    "fails": _fails,
    "endless-body": _endless_body,
    "endless-headers": _endless_headers,
    "slow-body": _slow_body,
    "garbage": _garbage,
}


@contextmanager
def misbehaving(how: str) -> Generator[str]:
    """Run a receiver that answers each connection in its way, or ``refuses`` all; its address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how != "refuses":
            server.listen(64)
            threading.Thread(target=_accept, args=[server, MISBEHAVING[how]], daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_serve, args=[client, answer], daemon=True).start()


def _serve(client: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    # What the client sends is read first, for closing would reset the connection.
    with client, suppress(OSError):
        client.recv(65_536)
        answer(client)
