"""A request's context, from the headers of an HTTP request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from starlette.requests import HTTPConnection

from rx_backend.context import RequestContext

__all__ = ("context_of", "is_header_safe")

_TRACE_HEADERS: Final = ("traceparent", "tracestate")
_SANE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")


def context_of(
    request: HTTPConnection | Mapping[str, str], *, metadata: Iterable[str] = ()
) -> RequestContext:
    """
    Return the context of an HTTP request: trace headers, id, and selected other headers.

    The request's span becomes a child of the one in ``traceparent`` (row P1). A client's or a
    proxy's ``X-Request-Id`` becomes the id of the context, so that logs agree. An id longer than
    128 characters, or with characters other than letters, digits and ``._:/+=-``, is ignored.
    Clients may repeat ids, so do not use this one as a key.

    Args:
        request: The request of Starlette or FastAPI, or its headers.
        metadata: The names of other headers to copy to ``context.metadata``, for example a
            tenant's; names are in lower case there. No header is copied by default.
    """
    headers = request.headers if isinstance(request, HTTPConnection) else request
    given = {name.lower(): value for name, value in headers.items()}
    given_id = given.get("x-request-id", "")
    return RequestContext(
        given_id if is_header_safe(given_id) else None,
        {name.lower(): given[name.lower()] for name in metadata if name.lower() in given},
        trace_headers={name: given[name] for name in _TRACE_HEADERS if name in given},
    )


def is_header_safe(id: str) -> bool:
    """Return whether *id* may be read from a header and written to one."""
    return _SANE_ID.fullmatch(id) is not None
