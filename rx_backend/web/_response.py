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

# No cache may keep an answer or change it, and no proxy may collect it: nginx reads the last one.
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

    A failure ahead of the first token is answered with a status of its own and OpenAI's error object
    (`status_of`), a later one is an event, and the end of the response. A client that leaves, at any
    moment, stops the request, which is one abort of the engine by the A rows; a stream that is no
    ``ResponseStream``, such as one that a client can come back to, is only closed. A server
    that cancels the response, as some do when they shut down, stops the request too, and the client
    gets a last event that says so. An item is pulled when the one before is sent, so a slow client slows its engine down.

    The response has ``X-Request-Id``: the id of the context. It can be sent once.

    Args:
        stream: The stream; or what returns it when awaited, such as ``adapter.generate(...)`` itself.
            Then a client that leaves while the engine sets up is noticed too, and a failure of the
            set-up has its status.
        format: `ChatChunks`, `CompletionChunks`, `JsonItems` or one of your own.
        context: The context of a request whose stream is still to be opened.
        keep_alive_s: After how many seconds without an event a comment is sent, which clients skip;
            None for never. It begins when the headers are out.
        send_timeout_s: After how many seconds, up to twice as many, a client that takes nothing of
            what is sent counts as one that has left; None for never.
        headers_first: Send the headers at once, with status 200, and not with the first token: for a
            long prefill behind a proxy that does not wait. All failures are events then.
        headers: Further headers, or others.
        background: Runs when the response is complete.

    Raises:
        InvalidArgument: *keep_alive_s* or *send_timeout_s* is no positive number, or *stream* is no
            stream.
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
        # Not by Response, which would add the length of a body that is complete.
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
