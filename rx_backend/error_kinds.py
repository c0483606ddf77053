"""The kinds of exceptions that are not typed (row S6). Importing this does not import Dynamo."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Final

from rx_backend.extras import import_extra

__all__ = ("causes", "exception_class", "import_dynamo", "kind_of", "kind_of_status", "leaves")

_DYNAMO: Final = "dynamo.llm.exceptions"

# In this order, since `ConnectionRefusedError` is a `ConnectionError`.
_STANDARD: Final[tuple[tuple[type[Exception], str], ...]] = (
    (ConnectionRefusedError, "CannotConnect"),
    (ConnectionError, "Disconnected"),
    (asyncio.IncompleteReadError, "Disconnected"),
    (TimeoutError, "ResponseTimeout"),
)

# An overloaded or unavailable server has not begun the request: another worker may take it.
_STATUS: Final = {
    408: "ResponseTimeout",
    429: "CannotConnect",
    502: "Disconnected",
    503: "CannotConnect",
    504: "ResponseTimeout",
}


def kind_of(exc: Exception, kinds: Iterable[str]) -> str:
    """
    Return the kind of *exc*, an untyped exception that is not a group; ``Unknown`` if it has none.

    Dynamo's own exceptions are looked up by the names in *kinds*.
    """
    # Code that raises Dynamo's exceptions has imported them, under one of two names.
    module = sys.modules.get(_DYNAMO) or sys.modules.get("dynamo._core")
    if module is not None:
        base = exception_class(module, "DynamoException")
        if base is not None and isinstance(exc, base):
            return _counterpart(exc, module, kinds)
        http = exception_class(module, "HttpError")
        if http is not None and isinstance(exc, http):
            return kind_of_status(getattr(exc, "code", None))
    for standard, kind in _STANDARD:
        if isinstance(exc, standard):
            return kind
    # Not its subclasses, which parsers raise: an engine's bug is not the client's fault.
    return "InvalidArgument" if type(exc) is ValueError else "Unknown"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of *error*, the nearest first, each once."""
    seen = {id(error)}
    cause = error.__cause__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the exceptions in a group that are not groups, at any depth."""
    waiting: list[BaseException] = [group]
    while waiting:
        exc = waiting.pop()
        if isinstance(exc, BaseExceptionGroup):
            waiting.extend(reversed(exc.exceptions))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        else:
            yield exc


def exception_class(module: ModuleType, name: str) -> type[Exception] | None:
    """Return the exception class *name* of a module, or None if there is none."""
    found = getattr(module, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def import_dynamo() -> ModuleType:
    """Import Dynamo's exceptions; raise ``ImportError`` with a hint if that fails."""
    return import_extra(
        _DYNAMO,
        "dynamo",
        package="ai-dynamo-runtime",
        needed_by="converting errors to those of Dynamo",
    )


def _counterpart(exc: Exception, module: ModuleType, kinds: Iterable[str]) -> str:
    for kind in kinds:
        counterpart = exception_class(module, kind)
        if counterpart is not None and isinstance(exc, counterpart):
            return kind
    return "Unknown"


def kind_of_status(code: object) -> str:
    """Return the kind for an HTTP status; ``Unknown`` for anything unmapped."""
    if not isinstance(code, int):
        return "Unknown"
    return _STATUS.get(code, "InvalidArgument" if 400 <= code < 500 else "Unknown")
