"""Resumable streams over HTTP: which stream, and from where."""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection

from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest
from rx_backend.resumable import ResumableReader, ResumableStreams, parse_event_id

__all__ = ("resume", "start_or_resume")

_LAST_EVENT_ID: Final = "last-event-id"


async def resume(
    streams: ResumableStreams,
    http_request: HTTPConnection,
    id: str | None = None,
    *,
    owner: str | None = None,
) -> ResumableReader:
    """
    Return a reader for the rest of an answer, by the HTTP request's position.

    The position is that in ``Last-Event-ID``, which a browser's ``EventSource`` sends when it
    reconnects; without that header, the query parameter ``after``; without both, 0. A route::

        @app.get("/streams/{id}")
        async def stream(id: str, http_request: Request) -> Response:
            return respond(resume(streams, http_request, id), JsonItems())

    Args:
        streams: The streams.
        http_request: The request of Starlette or FastAPI.
        id: The stream's id, for example from the path; by default the one in ``Last-Event-ID``.
        owner: The owner that the stream must have.

    Raises:
        StreamNotFound: There is no such stream, or not for this owner: status 404.
        PositionDropped: Some of the rest is no longer held: 410.
        PositionUnknown: The stream does not have that many items yet: 400.
        InvalidArgument: The header or the query is malformed, or the header names another stream:
            400.
        TooManyStreams: There is no room for a stream of another process: 503.
    """
    last = http_request.headers.get(_LAST_EVENT_ID)
    if last:
        stream_id, after = parse_event_id(last)
        if id is not None and stream_id != id:
            raise InvalidArgument(
                f"Last-Event-ID: expected an event of stream {id!r}, got {last!r}"
            )
        return await streams.resume(stream_id, after, owner=owner)
    if id is None:
        raise InvalidArgument(
            "Last-Event-ID: expected <stream id>:<position>, the header is missing"
        )
    text = http_request.query_params.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidArgument(f"after: expected a number of items, 0 or more, got {text[:80]!r}")
    return await streams.resume(id, int(text), owner=owner)


async def start_or_resume(
    streams: ResumableStreams,
    http_request: HTTPConnection,
    request: PreprocessedRequest,
    context: RequestContext | None = None,
    *,
    owner: str | None = None,
) -> ResumableReader:
    """
    Resume the answer that ``Last-Event-ID`` names; without that header, start one to *request*.

    So a client that has lost its connection repeats its request, with the id of the last event.

    Raises:
        BackendError: As ``ResumableStreams.start``, and as :func:`resume`.
        PositionDropped, PositionUnknown: As :func:`resume`.
    """
    if http_request.headers.get(_LAST_EVENT_ID):
        return await resume(streams, http_request, owner=owner)
    return await streams.start(request, context, owner=owner)
