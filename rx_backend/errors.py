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

import asyncio
import pickle
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, ClassVar

from rx_backend.error_kinds import causes, exception_class, import_dynamo, kind_of, leaves

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

# How many different texts of a group are joined into one message.
_SHOWN_LEAVES = 3


def as_backend_error(exc: BaseException) -> BackendError:
    """
    Return *exc* as a typed error (rows S5, S6).

    A typed error is returned as it is. Any other exception becomes a new error with the text of
    *exc* as message (its class name when there is none) and *exc* as ``__cause__``:

    - ``ValueError`` itself is `InvalidArgument`, but not a subclass, such as a parser raises.
    - ``ConnectionRefusedError`` is `CannotConnect`; any other ``ConnectionError``, and
      ``asyncio.IncompleteReadError``, is `Disconnected`.
    - ``TimeoutError``, a passed deadline of `operators.deadlines` included, is `ResponseTimeout`.
    - A Dynamo exception has the same kind, `Unknown` where there is no counterpart. Dynamo's
      ``HttpError`` goes by its status: 408 and 504 are `ResponseTimeout`, 429 and 503
      `CannotConnect`, 502 `Disconnected`, any other 4xx `InvalidArgument`.
    - A group, nested or not, whose leaves are all of one kind is of that kind, with their texts as
      message. A ``CancelledError`` or ``GeneratorExit`` in a group counts as in `engine_failure`.
    - All others are `Unknown`.

    Raises:
        BaseException: *exc* itself when it is no ``Exception``, such as ``asyncio.CancelledError``,
            or a group that holds a ``KeyboardInterrupt`` or the like.

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
    Return what came out of an engine as a typed error (row S6).

    As `as_backend_error`, but for where neither the pulling task was cancelled nor the engine
    closed: a ``CancelledError`` or ``GeneratorExit`` is then the engine's own, and `Unknown`.

    Raises:
        BaseException: *exc* itself when it is ``KeyboardInterrupt``, ``SystemExit`` or the like.

    >>> engine_failure(asyncio.CancelledError())
    Unknown('the engine was cancelled from within')
    """
    if not isinstance(exc, _ENGINE_MADE):
        return as_backend_error(exc)
    what = "raised GeneratorExit" if isinstance(exc, GeneratorExit) else "was cancelled from within"
    error = Unknown(f"the engine {what}" + (f": {exc}" if str(exc) else ""))
    error.__cause__ = exc
    return error


def from_dynamo(exc: Exception) -> BackendError:
    """
    Return an exception of ``dynamo.llm.exceptions`` as a typed error, *exc* as its cause.

    Raises:
        ImportError: The package ``ai-dynamo-runtime`` is not installed.
    """
    import_dynamo()
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
    """Make one error of what is in a group, or raise the group."""
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
