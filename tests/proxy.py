"""A TCP proxy in threads, which loses its connections and what is on the way, or is out of reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from tests.rx_backend.worker._processes import free_port

__all__ = ("Proxy", "proxy")


class Proxy:
    """
    Forwards connections to a server.

    Args:
        target: The server's port.
        scheme: Of its URL.

    Attributes:
        url: Where it listens.
        drops_answers: Whether what the server sends is thrown away.
        is_silent: Whether nothing is forwarded in either direction, as on a broken network.
    """

    def __init__(self, target: int, scheme: str) -> None:
        self._port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self._port}"
        self.drops_answers = False
        self.is_silent = False
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def listen(self) -> None:
        """Accept connections."""
        self._listener = listener = socket.create_server(("127.0.0.1", self._port))
        self._run(lambda: self._accept(listener))

    def close(self) -> None:
        """Accept none any more, and lose those that there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Lose the connections that there are; new ones are accepted, and whole again."""
        self.drops_answers = self.is_silent = False
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until nothing runs any more."""
        for thread in self._threads:
            thread.join()

    def _run(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=function)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._run(lambda client=client: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            ends = {client, server}
            self._open |= ends
            answers = threading.Thread(target=self._forward, args=(server, client, True))
            answers.start()
            self._forward(client, server, answers=False)
            answers.join()
            self._open -= ends

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if not self.is_silent and not (answers and self.drops_answers):
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: int, scheme: str = "http") -> Generator[Proxy]:
    """Listen in front of the server on port *target*."""
    made = Proxy(target, scheme)
    made.listen()
    try:
        yield made
    finally:
        made.close()
        made.join()
