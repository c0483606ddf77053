"""The response that writes a stream as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, cast

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rx_backend.checks import number
from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument
from rx_backend.web._exchange import Exchange
from rx_backend.web._formats import Format, ItemStream

__all__ = ("respond",)

# No cache may store or change an answer, and no proxy may buffer it: nginx reads the last one.
_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
    }
)


def respond(
    stream: ItemStream | Awaitable[ItemStream],
    format: Format,
    *,
    context: RequestContext | None = None,
    keep_alive_s: float | None = 15.0,
    send_timeout_s: float | None = 60.0,
    headers_first: bool = False,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> Response:
    """
    Return the response that writes *stream* as server-sent events, one item at a time.

    A failure before the first token is answered with an error status (`status_of`) and OpenAI's
    error object; a later one is an event that ends the response. If the client disconnects, the
    request is stopped, which is one abort of the engine by the A rows; a stream that is not a
    ``ResponseStream``, such as a resumable one, is only closed. If the server cancels the response,
    for example at shutdown, the request is also stopped, and a last event tells the client. An item
    is pulled once the previous one was sent, so a slow client slows down its engine.

    The response has the header ``X-Request-Id``, the id of the context. It can be sent once.

    Args:
        stream: The stream, or an awaitable that returns it, such as ``adapter.generate(...)``
            itself. Then a client that disconnects while the engine sets up is also noticed, and a
            failure of the set-up gets its status.
        format: `ChatChunks`, `CompletionChunks`, `JsonItems` or your own `Format`.
        context: The request's context, if *stream* is an awaitable.
        keep_alive_s: The seconds without an event after which a comment, which clients skip, is
            sent; None for never. They count from the headers on.
        send_timeout_s: The seconds (up to twice as many) after which a client that reads nothing
            counts as disconnected; None for never.
        headers_first: Send the headers, with status 200, at once instead of with the first token:
            for a long prefill behind a proxy that would time out. All failures are then events.
        headers: Additional headers, which override the default ones.
        background: Runs when the response is complete.

    Raises:
        InvalidArgument: *keep_alive_s* or *send_timeout_s* is not a positive number, or *stream* is
            neither a stream nor an awaitable.
    """
    for name, value in (("keep_alive_s", keep_alive_s), ("send_timeout_s", send_timeout_s)):
        if value is not None:
            number(name, value, low=0, above=True, unit="seconds (or None)")
    if not isinstance(cast("Any", stream), AsyncIterator | Awaitable):
        raise InvalidArgument(
            "stream: expected an asynchronous iterator of items, or an awaitable that returns "
            f"one, got {type(stream).__name__}"
        )
    exchange = partial(
        Exchange,
        stream,
        format,
        context=context,
        keep_alive_s=keep_alive_s,
        send_timeout_s=send_timeout_s,
        headers_first=headers_first,
    )
    return _EventStreamResponse(exchange, headers or {}, background)


class _EventStreamResponse(Response):
    media_type = "text/event-stream"

    def __init__(
        self,
        exchange: Callable[..., Exchange],
        headers: Mapping[str, str],
        background: BackgroundTask | None,
    ) -> None:
        # Without Response's own, which would add the length of a complete body.
        self.status_code = 200
        self.background = background
        self.init_headers({**_HEADERS, **{n.lower(): v for n, v in headers.items()}})
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange(headers=self.raw_headers)
        if scope["method"] == "HEAD":
            await exchange.head(send)
        else:
            await exchange.run(receive, send)
        if self.background is not None:
            await self.background()
