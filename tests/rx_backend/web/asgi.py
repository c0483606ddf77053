"""A client of an ASGI application, without a server between them, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message

__all__ = ("Client", "lines_of")


class Client:
    """
    Makes one request, and notes what it gets and when.

    Args:
        headers: Of the request.
        method: Of the request.
        reads: How many messages it takes before it reads no more; all by default.
        fails: Whether a client that has left makes the server's ``send`` fail.

    Attributes:
        status: Of the response; None before it.
        headers: Of the response.
        body: What came so far.
        times: The loop's time of each part of the body.
        is_complete: Whether the response has ended.
        late: How many messages came behind its end.
    """

    def __init__(
        self,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        path: str = "/",
        reads: int | None = None,
        fails: bool = False,
    ) -> None:
        path, _, query = path.partition("?")
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": raw,
        }
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.times: list[float] = []
        self.is_complete = False
        self.late = 0
        self._parts = 0
        self._reads = reads
        self._fails = fails
        self._has_sent = False
        self._gone = asyncio.Event()
        self._room = asyncio.Event()

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    async def ask(self, app: ASGIApp) -> Client:
        """Make the request, and return when the application has."""
        await app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            if self._fails:
                raise BrokenPipeError("no client")
            return
        if message["type"] == "http.response.start":
            assert self.status is None, "the headers came twice"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert self.status is not None, "a body without headers"
        if self.is_complete:
            self.late += 1
            return
        if message.get("body"):
            self.times.append(asyncio.get_running_loop().time())
            self.body += message["body"]
        self.is_complete = not message.get("more_body", False)
        self._parts += 1
        if self._parts == self._reads:
            await self._room.wait()


def lines_of(body: bytes) -> list[str]:
    """Return the lines of a body that are not empty."""
    return [line for line in body.decode().split("\n") if line]
