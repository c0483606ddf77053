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
    Return the context of an HTTP request: its trace headers, its id, and chosen headers.

    The request's span becomes a child of the one in ``traceparent`` (row P1). A client's or a
    proxy's ``X-Request-Id`` becomes the id of the context, so that logs agree; one that is longer
    than 128 characters, or has others than letters, digits and ``._:/+=-``, is ignored. Ids need not
    be unique then: nothing may be looked up by this one.

    Args:
        request: The request of Starlette or FastAPI, or its headers.
        metadata: The names of further headers that engines and operators may read in
            ``context.metadata``, such as that of a tenant; names are in lower case there. No header
            is passed on by itself.
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
    """Return whether *id* is fit to be read from a header and written to one."""
    return _SANE_ID.fullmatch(id) is not None
