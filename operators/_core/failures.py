"""Propagating exceptions: notes on them, redacted logging, and freed tracebacks."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeAlias, cast

__all__ = (
    "SourceCancelled",
    "add_operator_note",
    "as_failure",
    "drop_top_frame",
    "is_cancellation",
    "is_only_closed",
    "none_handed_out",
    "redacted_exc_info",
    "wrong_item",
)

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


class SourceCancelled(RuntimeError):
    """A source or an operator raised a ``CancelledError`` without having been cancelled."""


def is_cancellation(error: BaseException) -> bool:
    """Return whether *error* is a ``CancelledError`` or ``GeneratorExit``, or a group with some."""
    if isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        others = [each for each in inner if not isinstance(each, Exception)]
        return bool(others) and all(map(is_cancellation, others))
    return isinstance(error, asyncio.CancelledError | GeneratorExit)


def is_only_closed(error: BaseException) -> bool:
    """Return whether *error* is a ``GeneratorExit``, or one wrapped by task groups."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_only_closed, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, GeneratorExit)


def as_failure(error: BaseException, who: str) -> BaseException:
    """Return a cancellation raised by *who* as a failure (row S6), any other error unchanged."""
    if not is_cancellation(error):
        return error
    failure = SourceCancelled(f"{who} raised {type(error).__name__}")
    failure.__cause__ = error
    return failure


def redacted_exc_info(error: BaseException) -> ExcInfo:
    """
    Return *error* as ``exc_info`` for logging, with its class and traceback but no message.

    An engine's message may contain a prompt or generated text, which must not be logged.

    >>> import traceback
    >>> try:
    ...     int("user input")
    ... except ValueError as error:
    ...     traceback.format_exception_only(*redacted_exc_info(error)[:2])[-1].strip()
    'ValueError'
    """
    kind = type(error)
    # A class of the same name: an error's own text may be made of attributes that an empty one lacks.
    silent = _class_named(kind.__name__, kind.__qualname__, kind.__module__)
    return silent, silent(), error.__traceback__


@lru_cache  # only the collector could free a class
def _class_named(name: str, qualname: str, module: str) -> type[Exception]:
    return type(name, (Exception,), {"__qualname__": qualname, "__module__": module})


def none_handed_out() -> TypeError:
    """Return the error for an operator that hands out None (row O5)."""
    return TypeError("expected an item to hand out, got None; use emit() to hand out nothing")


def wrong_item(error: BaseException, item: object) -> TypeError | None:
    """Return the error for handing out *item*, if it is no chunk and led to *error*; else None."""
    if not isinstance(error, AttributeError | TypeError):
        return None
    if hasattr(item, "token_ids") and hasattr(item, "finish_reason"):
        return None
    wrong = TypeError(f"expected a chunk to hand out, got {type(item).__name__}")
    wrong.__context__ = error
    return wrong


def drop_top_frame(error: BaseException) -> None:
    """
    Remove the frame that caught *error* from its traceback.

    That frame, or a caller's, refers to the error: a reference cycle for every stream.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def add_operator_note(error: BaseException, name: str, scope: Any = None) -> None:
    """
    Add a note to *error* that names the operator, once, and notify the scope (row O4).

    Tracebacks show the note; the message is not changed.
    """
    if not isinstance(error, Exception):
        return
    note = f"raised by the operator {name}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
        report = getattr(scope, "operator_failed", None)
        if report is not None:
            report(name, error)
