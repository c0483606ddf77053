"""
The library's exceptions, and their conversion to and from Dynamo's.

Engines raise them, consumers catch them, and error items of a stream carry them. The class name is
the kind on the wire. Importing this module does not import Dynamo.

>>> str(InvalidArgument("prompt too long"))
'BackendInvalidArgument: prompt too long'
>>> EngineShutdown("gone").span_kind
'Backend(EngineShutdown)'
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, ClassVar

from rx_backend.error_kinds import (
    causes,
    exception_class,
    import_dynamo,
    kind_of,
    kind_of_status,
    leaves,
)

__all__ = (
    "KINDS",
    "BackendError",
    "Cancelled",
    "CannotConnect",
    "ConnectionTimeout",
    "Disconnected",
    "EngineShutdown",
    "InvalidArgument",
    "ResponseTimeout",
    "StreamIncomplete",
    "Unknown",
    "as_backend_error",
    "causes",
    "engine_failure",
    "error_of_status",
    "to_dynamo",
)


class BackendError(Exception):
    """
    Base of the typed errors: catch this one, raise one of its kinds.

    Subclasses of a kind keep that kind. Pickling keeps the chain of causes; a cause that cannot be
    pickled is replaced by an `Unknown` with its text.

    Args:
        message: The cause of the failure, suitable for the caller.
    """

    kind: ClassVar[str] = "Unknown"
    message: str

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"Backend{self.kind}: {self.message}"

    @property
    def span_kind(self) -> str:
        """The kind as written on a span, for example ``Backend(Cancelled)`` (row P4)."""
        return f"Backend({self.kind})"

    def __reduce__(self) -> tuple[object, ...]:
        state = {**self.__dict__, "__causes__": tuple(_portable(cause) for cause in causes(self))}
        return _blank, (type(self), self.args), state

    def __setstate__(self, state: dict[str, Any] | None, /) -> None:
        attributes = dict(state or {})
        link: BaseException = self
        for cause in attributes.pop("__causes__", ()):
            link.__cause__ = cause
            link = cause
        self.__dict__.update(attributes)


class Unknown(BackendError):
    """A failure of no other kind."""

    kind = "Unknown"


class InvalidArgument(BackendError):
    """The request, or a chunk of an engine, is malformed; a retry cannot help."""

    kind = "InvalidArgument"


class CannotConnect(BackendError):
    """The connection to the engine could not be established."""

    kind = "CannotConnect"


class Disconnected(BackendError):
    """An established connection was lost."""

    kind = "Disconnected"


class ConnectionTimeout(BackendError):
    """Establishing a connection, or sending a request, took too long."""

    kind = "ConnectionTimeout"


class ResponseTimeout(BackendError):
    """The engine accepted the request, and was then silent for too long."""

    kind = "ResponseTimeout"


class Cancelled(BackendError):
    """The request was cancelled, for example because the client disconnected."""

    kind = "Cancelled"


class EngineShutdown(BackendError):
    """The engine has shut down or crashed."""

    kind = "EngineShutdown"


class StreamIncomplete(BackendError):
    """The stream ended before its terminal."""

    kind = "StreamIncomplete"


KINDS: Mapping[str, type[BackendError]] = MappingProxyType(
    {error.kind: error for error in BackendError.__subclasses__()}
)
"""The nine kinds, by their name on the wire."""

# Dynamo 1.6 has no exception for this kind, and uses its one timeout for both.
_NEAREST = {"ResponseTimeout": "ConnectionTimeout"}

# How many texts of a group are joined into one message.
_SHOWN_LEAVES = 3


def as_backend_error(exc: BaseException) -> BackendError:
    """
    Return *exc* as a typed error (rows S5, S6).

    A typed error is returned unchanged. Any other exception becomes a new error with the text of
    *exc* as message (its class name if there is none) and *exc* as ``__cause__``:

    - ``ValueError`` itself is `InvalidArgument`, but its subclasses, which parsers raise, are not.
    - ``ConnectionRefusedError`` is `CannotConnect`; any other ``ConnectionError``, and
      ``asyncio.IncompleteReadError``, is `Disconnected`.
    - ``TimeoutError``, including those of `operators.deadlines`, is `ResponseTimeout`.
    - A Dynamo exception keeps its kind, or is `Unknown` without a counterpart. Dynamo's ``HttpError``
      is mapped by status, as `error_of_status` does.
    - A group, nested or not, whose leaves are all of one kind has that kind, and their messages. A
      ``CancelledError`` or ``GeneratorExit`` in it counts as in `engine_failure`.
    - All others are `Unknown`.

    Raises:
        BaseException: *exc* itself if it is not an ``Exception``, such as ``asyncio.CancelledError``,
            or is a group that contains a ``KeyboardInterrupt`` or the like.

    >>> as_backend_error(ValueError("too long"))
    InvalidArgument('too long')
    >>> as_backend_error(ExceptionGroup("tasks", [Disconnected("gone")]))
    Disconnected('gone')
    """
    if isinstance(exc, BackendError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        error = _merge_leaves(exc)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(exc, Exception):
        error = _class_of(exc)(str(exc) or type(exc).__name__)
    else:
        raise exc
    error.__cause__ = exc
    return error


def engine_failure(exc: BaseException) -> BackendError:
    """
    Return an exception that left an engine as a typed error (row S6).

    Like `as_backend_error`, for an engine that was not closed, in a task that was not cancelled: a
    ``CancelledError`` or ``GeneratorExit`` is then the engine's own, and `Unknown`.

    Raises:
        BaseException: *exc* itself if it is ``KeyboardInterrupt``, ``SystemExit`` or the like.

    >>> engine_failure(asyncio.CancelledError())
    Unknown('the engine was cancelled from within')
    """
    if not isinstance(exc, _ENGINE_MADE):
        return as_backend_error(exc)
    what = "raised GeneratorExit" if isinstance(exc, GeneratorExit) else "was cancelled from within"
    error = Unknown(f"the engine {what}" + (f": {exc}" if str(exc) else ""))
    error.__cause__ = exc
    return error


def error_of_status(status: object, message: str) -> BackendError:
    """
    Return the typed error for an HTTP status with which a server refused a request (row S6).

    408 and 504 are `ResponseTimeout`, 429 and 503 `CannotConnect`, 502 is `Disconnected`, any other
    4xx `InvalidArgument`, and anything else, even a non-number, `Unknown`.

    >>> error_of_status(429, "overloaded")
    CannotConnect('overloaded')
    """
    return KINDS[kind_of_status(status)](message)


def to_dynamo(error: Exception) -> Exception:
    """
    Return *error* as an exception that the Dynamo runtime knows, with *error* as its cause.

    A Dynamo exception, and an error made from one, is returned as that exception, so kinds that
    only Dynamo has are kept. An untyped exception is converted by `as_backend_error` first.

    Raises:
        ImportError: The package ``ai-dynamo-runtime`` is not installed.
    """
    module = import_dynamo()
    base = exception_class(module, "DynamoException")
    if base is None or isinstance(error, base):
        return error
    typed = as_backend_error(error)
    origin = typed.__cause__
    if (
        isinstance(origin, base)
        and type(typed) is _class_of(origin)
        and typed.message == str(origin)
    ):
        return origin
    names = (typed.kind, _NEAREST.get(typed.kind, "Unknown"), "Unknown")
    found = next(filter(None, (exception_class(module, name) for name in names)), base)
    result = found(typed.message)
    result.__cause__ = typed
    return result


_ENGINE_MADE = (asyncio.CancelledError, GeneratorExit)


def _class_of(exc: Exception) -> type[BackendError]:
    return KINDS.get(kind_of(exc, KINDS), Unknown)


def _merge_leaves(group: BaseExceptionGroup[BaseException]) -> BackendError:
    """Return one error for the leaves of a group, or raise the group."""
    kinds: set[str] = set()
    messages: dict[str, None] = {}
    for leaf in leaves(group):
        if not isinstance(leaf, (Exception, *_ENGINE_MADE)):
            raise group
        error = engine_failure(leaf)
        kinds.add(error.kind)
        messages[error.message] = None
    kind = kinds.pop() if len(kinds) == 1 else "Unknown"
    shown = list(islice(messages, _SHOWN_LEAVES)) + ["..."] * (len(messages) > _SHOWN_LEAVES)
    return KINDS.get(kind, Unknown)("; ".join(shown))


def _blank(cls: type[BackendError], args: tuple[object, ...]) -> BackendError:
    """Return an error without calling its initialiser, whose arguments a subclass may change."""
    error = cls.__new__(cls)
    error.args = args
    return error


def _portable(cause: BaseException) -> BaseException:
    """Return *cause* if it can be pickled and unpickled, else its text as an error."""
    if isinstance(cause, BackendError):
        return cause
    try:
        pickle.loads(pickle.dumps(cause))  # noqa: S301  our own bytes
    except Exception:
        return Unknown(f"{type(cause).__name__}: {cause}")
    return cause
