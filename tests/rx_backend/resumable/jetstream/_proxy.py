"""A TCP proxy in front of NATS, which cuts connections and loses what is on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

__all__ = ("Proxy", "proxy")


class Proxy:
    """
    Forwards between clients and a server.

    Attributes:
        port: Where it listens.
        drops_answers: Whether what the server sends is thrown away.
        is_silent: Whether nothing is forwarded in either direction, as on a broken network.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.drops_answers = False
        self.is_silent = False
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            await writer.wait_closed()
            return
        ends = {writer, to_server}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, to_server, ends, answers=False))
                group.create_task(self._forward(from_server, writer, ends, answers=True))
        finally:
            self._writers -= ends
            for end in ends:
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not self.is_silent and not (answers and self.drops_answers):
                    writer.write(data)
        for end in ends:
            end.close()

    def cut(self) -> None:
        """End all connections; new ones are accepted, and whole again."""
        self.drops_answers = self.is_silent = False
        for writer in list(self._writers):
            writer.close()

    async def ended(self) -> None:
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def proxy(target: int) -> AsyncGenerator[Proxy]:
    """Listen in front of the server on port *target*."""
    made = Proxy(target)
    server = await asyncio.start_server(made.accept, "127.0.0.1")
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.ended()
        await server.wait_closed()
