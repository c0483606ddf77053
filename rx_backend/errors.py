"""
The one exception hierarchy of the library, and its way to and from Dynamo's.

Engines raise these, consumers catch them, and error items of a stream carry them. The class name is
the kind on the wire. Importing this module never imports Dynamo.

>>> str(InvalidArgument("prompt too long"))
'BackendInvalidArgument: prompt too long'
>>> EngineShutdown("gone").span_kind
'Backend(EngineShutdown)'
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

from operators import DeadlineExpired

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
    "from_dynamo",
    "to_dynamo",
)


class BackendError(Exception):
    """
    Base of every typed error: catch it, raise one of its kinds.

    Subclasses of a kind keep that kind. Pickling keeps the chain of causes; a cause that cannot be
    pickled travels as an `Unknown` with its text.

    Args:
        message: What went wrong, fit to be shown to the caller.
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
        """The kind as a span attribute writes it, for example ``Backend(Cancelled)`` (row P4)."""
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
    """A failure that fits no other kind."""

    kind = "Unknown"


class InvalidArgument(BackendError):
    """The request, or an item of an engine, does not fit; trying again cannot help."""

    kind = "InvalidArgument"


class CannotConnect(BackendError):
    """No connection to the engine could be made."""

    kind = "CannotConnect"


class Disconnected(BackendError):
    """A connection that had been made was lost."""

    kind = "Disconnected"


class ConnectionTimeout(BackendError):
    """Making a connection, or a request, took too long."""

    kind = "ConnectionTimeout"


class ResponseTimeout(BackendError):
    """The engine took the request and then said nothing for too long."""

    kind = "ResponseTimeout"


class Cancelled(BackendError):
    """The request was cancelled, for example because the client went away."""

    kind = "Cancelled"


class EngineShutdown(BackendError):
    """The engine has shut down or crashed."""

    kind = "EngineShutdown"


class StreamIncomplete(BackendError):
    """The stream broke off before its terminal."""

    kind = "StreamIncomplete"


KINDS: Mapping[str, type[BackendError]] = MappingProxyType(
    {
        error.kind: error
        for error in (
            Unknown,
            InvalidArgument,
            CannotConnect,
            Disconnected,
            ConnectionTimeout,
            ResponseTimeout,
            Cancelled,
            EngineShutdown,
            StreamIncomplete,
        )
    }
)
"""The nine kinds by their name on the wire."""

# Dynamo 1.6 has no exception for this kind; its own timeout serves both cases.
_NEAREST = {"ResponseTimeout": "ConnectionTimeout"}

_DYNAMO = "dynamo.llm.exceptions"


def as_backend_error(exc: BaseException) -> BackendError:
    """
    Return *exc* as a typed error (rows S5, S6).

    A typed error is returned as it is. A Dynamo exception gets the same kind, `Unknown` where there
    is no counterpart. A passed deadline of `operators.deadlines` becomes `ResponseTimeout`,
    ``ValueError`` becomes `InvalidArgument`, any other exception `Unknown`. A new error has the text
    of *exc* as message (its class name when there is none) and *exc* as ``__cause__``.

    Raises:
        BaseException: *exc* itself when it is no ``Exception``, for example
            ``asyncio.CancelledError`` or ``KeyboardInterrupt``.

    >>> as_backend_error(ValueError("too long"))
    InvalidArgument('too long')
    """
    if isinstance(exc, BackendError):
        return exc
    if not isinstance(exc, Exception):
        raise exc
    error = _kind_of(exc)(str(exc) or type(exc).__name__)
    error.__cause__ = exc
    return error


def from_dynamo(exc: Exception) -> BackendError:
    """
    Return an exception of ``dynamo.llm.exceptions`` as a typed error, *exc* as its cause.

    Raises:
        ImportError: The package ``ai-dynamo-runtime`` is not installed.
    """
    _import_dynamo()
    return as_backend_error(exc)


def to_dynamo(error: Exception) -> Exception:
    """
    Return *error* as an exception that the Dynamo runtime knows, *error* as its cause.

    A Dynamo exception, and an error that was made from one, come back as that exception: kinds that
    only Dynamo has keep their meaning on the way through. An untyped exception is first typed as by
    `as_backend_error`.

    Raises:
        ImportError: The package ``ai-dynamo-runtime`` is not installed.
    """
    module = _import_dynamo()
    base = _exception_class(module, "DynamoException")
    if base is None or isinstance(error, base):
        return error
    typed = as_backend_error(error)
    origin = typed.__cause__
    if (
        isinstance(origin, base)
        and type(typed) is _kind_of(origin)
        and typed.message == str(origin)
    ):
        return origin
    names = (typed.kind, _NEAREST.get(typed.kind, "Unknown"), "Unknown")
    found = next(filter(None, (_exception_class(module, name) for name in names)), base)
    result = found(typed.message)
    result.__cause__ = typed
    return result


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of *error*, the nearest first; a cycle is followed once."""
    seen = {id(error)}
    cause = error.__cause__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _kind_of(exc: Exception) -> type[BackendError]:
    """Pick the kind of an exception that is not typed yet."""
    # Somebody who raises Dynamo's exceptions has imported them, maybe by their other name.
    module = sys.modules.get(_DYNAMO) or sys.modules.get("dynamo._core")
    base = module and _exception_class(module, "DynamoException")
    if module and base and isinstance(exc, base):
        for kind, error in KINDS.items():
            counterpart = _exception_class(module, kind)
            if counterpart is not None and isinstance(exc, counterpart):
                return error
        return Unknown
    if isinstance(exc, DeadlineExpired):
        return ResponseTimeout
    return InvalidArgument if isinstance(exc, ValueError) else Unknown


def _exception_class(module: ModuleType, name: str) -> type[Exception] | None:
    """Return the exception class *name* of a module, None where this version has none."""
    found = getattr(module, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _import_dynamo() -> ModuleType:
    """Import Dynamo's exceptions, with a clear word where the package is missing."""
    try:
        __import__(_DYNAMO)
    except ImportError as exc:
        raise ImportError(
            "converting errors to or from Dynamo needs the package ai-dynamo-runtime: "
            "pip install 'rx-backend[dynamo]'"
        ) from exc
    return sys.modules[_DYNAMO]


def _blank(cls: type[BackendError], args: tuple[object, ...]) -> BackendError:
    """Make an error without its initialiser, which in a subclass may want other arguments."""
    error = cls.__new__(cls)
    error.args = args
    return error


def _portable(cause: BaseException) -> BaseException:
    """Return *cause* if it can be pickled and read back, else its text."""
    if isinstance(cause, BackendError):
        return cause
    try:
        pickle.loads(pickle.dumps(cause))  # noqa: S301  our own bytes
    except Exception:
        return Unknown(f"{type(cause).__name__}: {cause}")
    return cause
