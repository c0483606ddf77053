"""What a client gets for a failure: the status, and OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse

from operators import PositionDropped, PositionUnknown
from operators.assembly import encodable
from rx_backend.errors import KINDS, BackendError, InvalidArgument, Unknown, as_backend_error
from rx_backend.resumable import StreamNotFound, TooManyStreams

__all__ = (
    "FAILURES",
    "error_code",
    "error_object",
    "error_response",
    "public_error",
    "status_of",
)

FAILURES: Final = (BackendError, PositionDropped, PositionUnknown)
"""Failures with their own status; any other exception is a fault of the service."""

_STATUS: Final[Mapping[str, int]] = {
    "InvalidArgument": 400,
    "Cancelled": 499,
    "Unknown": 500,
    "Disconnected": 502,
    "StreamIncomplete": 502,
    "CannotConnect": 503,
    "EngineShutdown": 503,
    "ConnectionTimeout": 504,
    "ResponseTimeout": 504,
}

# Of resumable streams; these classes say more than their kinds.
_OWN_STATUS: Final[Mapping[type[Exception], int]] = {
    StreamNotFound: 404,
    PositionUnknown: 400,
    PositionDropped: 410,
    TooManyStreams: 503,
}

_STOCK: Final[Mapping[str, str]] = {
    "CannotConnect": "the engine can't be reached",
    "ConnectionTimeout": "the engine can't be reached in time",
    "Disconnected": "the connection to the engine was lost",
    "ResponseTimeout": "the engine did not answer in time",
}

_RETRY_AFTER_S: Final = 1


def status_of(error: BaseException) -> int:
    """
    Return the HTTP status of a failure before the first token (row S6).

    By the kind of the error:

    - 400: `InvalidArgument`
    - 499: `Cancelled`
    - 500: `Unknown`
    - 502: `Disconnected`, `StreamIncomplete`
    - 503: `CannotConnect`, `EngineShutdown`
    - 504: `ConnectionTimeout`, `ResponseTimeout`

    For resumable streams also: 404 `StreamNotFound`, 410 `PositionDropped`, 400 `PositionUnknown`,
    503 `TooManyStreams`.

    >>> status_of(TimeoutError()), status_of(ValueError("max_tokens: expected at least 1"))
    (504, 400)
    """
    own = _own_class(error)
    return _OWN_STATUS[own] if own else _STATUS.get(as_backend_error(error).kind, 500)


def public_error(error: BaseException) -> BackendError:
    """
    Return the typed error that a client may see, without its causes.

    A typed error keeps its message, which is written for the caller. The text of any other
    exception is only logged, except that of a ``ValueError``, which is about the request.

    >>> public_error(KeyError("/srv/secret"))
    Unknown('the engine failed')
    """
    for failure in (error, error.__cause__):
        if isinstance(failure, PositionDropped | PositionUnknown):
            return InvalidArgument(str(failure))
    typed = as_backend_error(error)
    kind = KINDS.get(typed.kind, Unknown)
    if typed.kind != "InvalidArgument" and _is_text_of(typed.message, typed.__cause__):
        return kind(_STOCK.get(typed.kind, "the engine failed"))
    return kind(typed.message)


def error_object(error: BaseException) -> dict[str, Any]:
    """Return OpenAI's error object; its ``code`` is the kind of the error or its class's name."""
    public = public_error(error)
    is_clients = isinstance(public, InvalidArgument)
    return {
        "error": {
            "message": encodable(public.message),
            "type": "invalid_request_error" if is_clients else "server_error",
            "param": None,
            "code": error_code(error),
        }
    }


def error_code(error: BaseException) -> str:
    """Return the kind of an error, or the name of its class if that says more."""
    own = _own_class(error)
    return own.__name__ if own else public_error(error).kind


def error_response(
    error: BaseException, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """
    Return the response to a request that failed: a status by kind, and OpenAI's error object.

    For failures outside :func:`respond`, as an exception handler::

        app.add_exception_handler(BackendError, lambda request, error: error_response(error))
    """
    # A retry may soon succeed.
    own = {"retry-after": str(_RETRY_AFTER_S)} if isinstance(error, TooManyStreams) else {}
    return JSONResponse(error_object(error), status_of(error), headers={**own, **(headers or {})})


def _own_class(error: BaseException) -> type[Exception] | None:
    """Return the class of a failure of a resumable stream; None for any other."""
    # Peeking raises a typed error, with the failure as its cause.
    found = (own for own in _OWN_STATUS if own in {type(error), type(error.__cause__)})
    return next(found, None)


def _is_text_of(message: str, cause: BaseException | None) -> bool:
    """Return whether *message* comes from an exception that is not typed."""
    if cause is None or isinstance(cause, BackendError):
        return False
    if isinstance(cause, BaseExceptionGroup):
        return True
    return message == (str(cause) or type(cause).__name__)
