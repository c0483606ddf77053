"""A TCP proxy in a thread, which loses its connections and can be out of reach for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from tests.rx_backend.worker._processes import free_port

__all__ = ("Proxy", "proxy")


class Proxy:
    """
    Forwards connections to a server.

    Args:
        target: The server's port.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Accept connections."""
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self._run(self._accept, listener)

    def close(self) -> None:
        """Accept none any more, and lose those that there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Lose the connections that there are."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until nothing runs any more."""
        for thread in self._threads:
            thread.join()

    def _run(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments)  # pyright: ignore[reportArgumentType]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                self._run(self._serve, listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            ends = {client, server}
            self._open |= ends
            answers = threading.Thread(target=_forward, args=(server, client))
            answers.start()
            _forward(client, server)
            answers.join()
            self._open -= ends


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: int) -> Generator[Proxy]:
    """Listen in front of the server on port *target*."""
    made = Proxy(target)
    made.listen()
    try:
        yield made
    finally:
        made.close()
        made.join()
