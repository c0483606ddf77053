"""One response, from the opening of its stream to the last event."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, Final, cast

from starlette.types import Receive, Send

from operators import peek_first
from rx_backend.context import RequestContext
from rx_backend.errors import Cancelled, EngineShutdown, Unknown
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import Annotated
from rx_backend.stream import ResponseStream
from rx_backend.web._client import ClientLeft, Outlet, RawHeaders, until_client_leaves
from rx_backend.web._failures import FAILURES, error_response
from rx_backend.web._formats import Format, ItemStream, Writer
from rx_backend.web._requests import is_header_safe

__all__ = ("Exchange",)

_log = get_logger(__name__)

_CUT_SHORT_S: Final = 1.0
_SHUTDOWN: Final = "the server has ended the request: it may be shutting down"


class Exchange:
    """
    Serves one response, and releases its stream in every case.

    Args:
        stream: The stream, or an awaitable that returns it.
        format: How it is written.
        context: The request's context, by which a stream that is being opened is stopped.
        headers: The headers of the response.
        keep_alive_s: The seconds without an event after which a comment is sent; None for never.
        send_timeout_s: The seconds after which a client that reads nothing counts as disconnected;
            None for never.
        headers_first: Whether to send the headers before opening the stream.
    """

    def __init__(
        self,
        stream: ItemStream | Awaitable[ItemStream],
        format: Format,
        *,
        context: RequestContext | None,
        headers: RawHeaders,
        keep_alive_s: float | None,
        send_timeout_s: float | None,
        headers_first: bool,
    ) -> None:
        self._given = stream
        self._format = format
        self._context = context
        self._headers = headers
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._headers_first = headers_first
        self._stream: ItemStream | None = None
        self._writer: Writer | None = None
        self._is_killed = False

    async def run(self, receive: Receive, send: Send) -> None:
        """Serve the response until it is complete or the client has disconnected."""
        outlet = Outlet(send)
        # A separate task: who cancels this one must not wait until the engine has closed.
        serving = asyncio.create_task(self._serve(outlet))
        leaving = asyncio.create_task(until_client_leaves(receive))
        try:
            await self._until_over(outlet, serving, leaving)
            if not serving.done():
                self._kill()
                serving.cancel()
                if not outlet.has_begun:
                    # For the server's log, and for middleware that waits for a response.
                    await self._cut_short(outlet, Cancelled("the client has disconnected"))
        except asyncio.CancelledError:
            self._kill()
            serving.cancel()
            await self._cut_short(outlet, EngineShutdown(_SHUTDOWN))
            raise
        finally:
            leaving.cancel()
            await asyncio.wait((serving, leaving))
            await self._close()
        if not serving.cancelled():
            with suppress(ClientLeft):
                serving.result()

    async def _until_over(self, outlet: Outlet, *tasks: asyncio.Task[None]) -> None:
        """Wait until the response is complete, or the client has disconnected or reads nothing."""
        limit_s = self._send_timeout_s
        while not (any(task.done() for task in tasks) or outlet.is_stuck(limit_s)):
            await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)

    async def head(self, send: Send) -> None:
        """Answer a HEAD request: the stream is opened, and nothing is pulled."""
        outlet = Outlet(send)
        try:
            with suppress(ClientLeft):
                try:
                    await self._open()
                except FAILURES as error:
                    await self._refuse(outlet, error, is_head=True)
                    return
                self._kill()
                await outlet.begin(200, self._response_headers())
                await outlet.end()
        finally:
            await self._close()

    async def _close(self) -> None:
        """Release the stream."""
        given = self._given
        if inspect.iscoroutine(given):
            given.close()
        stream = self._stream or given
        if isinstance(stream, AsyncIterator) and hasattr(stream, "aclose"):
            await cast("Any", stream).aclose()

    def _kill(self) -> None:
        """
        Stop the request, which is one abort of the engine by the A rows.

        A stream that others may read or resume outlives the response, and is only closed.
        """
        self._is_killed = True
        stream = self._stream or self._given
        if isinstance(stream, ResponseStream):
            cast("ResponseStream[Any]", stream).context.kill()
        elif self._stream is None and self._context is not None:
            self._context.kill()

    async def _serve(self, outlet: Outlet) -> None:
        first = None
        if not self._headers_first:
            try:
                first = await self._first_item()
            except FAILURES as error:
                await self._refuse(outlet, error)
                return
            if first is None and self._format.empty_status != 200:
                await outlet.begin(self._format.empty_status, self._id_header())
                await outlet.end()
                return
        try:
            await outlet.begin(200, self._response_headers())
            async with outlet.keep_alive(self._keep_alive_s):
                last = await self._write_all(outlet, first)
            await outlet.end(last)
        except ClientLeft:
            self._kill()

    async def _first_item(self) -> Annotated[Any] | None:
        """Return the first item once there is a token; raise a failure before that."""
        stream = await self._open()
        if hasattr(stream, "peek_first"):
            await cast("Any", stream).peek_first()
        else:
            self._stream = stream = await peek_first(stream, error=Unknown)
        return await anext(stream, None)

    async def _open(self) -> ItemStream:
        given = self._given
        stream = given if isinstance(given, AsyncIterator) else await given
        self._stream = stream
        if self._is_killed:
            # Opening has swallowed the cancellation.
            self._kill()
            raise asyncio.CancelledError
        self._writer = self._format.writer(stream)
        return stream

    async def _write_all(self, outlet: Outlet, first: Annotated[Any] | None) -> bytes:
        """Write the events of all items; return the last ones, which end the response."""
        try:
            stream = self._stream or await self._open()
            writer = self._writer
            assert writer is not None  # noqa: S101 - for the type checker
            if first is not None and (events := writer.item(first)):
                await outlet.write(events)
            async for item in stream:
                if events := writer.item(item):
                    await outlet.write(events)
                if writer.has_failed:
                    self._kill()
                    return b""
            return b"" if writer.has_failed else writer.end()
        except ClientLeft:
            raise
        except Exception as error:
            # An item that can't be written ends the response, though not the stream.
            self._kill()
            return self._failure(error)

    def _failure(self, error: Exception) -> bytes:
        """Return the event of a failure that is not an item of the stream."""
        if not isinstance(error, FAILURES):
            _log.error(
                "writing the stream failed", request_id=self._request_id(), **describe(error)
            )
        writer = self._writer or self._format.writer(_nothing())
        return writer.failure(error)

    async def _refuse(self, outlet: Outlet, error: Exception, *, is_head: bool = False) -> None:
        """Respond with the status of a failure."""
        response = error_response(error)
        await outlet.begin(response.status_code, response.raw_headers + self._id_header())
        await outlet.end(b"" if is_head else bytes(response.body))

    async def _cut_short(self, outlet: Outlet, error: Exception) -> None:
        """End the response with an error, without waiting for the engine or a slow client."""
        try:
            async with asyncio.timeout(_CUT_SHORT_S):
                if outlet.has_begun:
                    await outlet.end(self._failure(error))
                else:
                    await self._refuse(outlet, error)
        except Exception as failure:
            _log.debug("the last event of the stream was not sent", **describe(failure))

    def _response_headers(self) -> RawHeaders:
        return self._headers + self._id_header()

    def _id_header(self) -> RawHeaders:
        name = self._request_id()
        return [(b"x-request-id", name.encode())] if is_header_safe(name) else []

    def _request_id(self) -> str:
        context = self._context or getattr(self._stream or self._given, "context", None)
        return context.id if isinstance(context, RequestContext) else ""


async def _nothing() -> AsyncIterator[Annotated[Any]]:
    """Replace a stream that was never opened."""
    return
    yield
