"""What is logged of a failure that nobody can be told of."""

from __future__ import annotations

from types import TracebackType
from typing import TypeAlias

__all__ = ("drop_top_frame", "without_message")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


def without_message(error: BaseException) -> ExcInfo:
    """
    Give *error* as logging takes it, with its class and traceback and without its message.

    An engine's message may hold a prompt or generated text, which belong in no log.

    >>> import traceback
    >>> try:
    ...     int("what somebody wrote")
    ... except ValueError as error:
    ...     traceback.format_exception_only(*without_message(error)[:2])[-1].strip()
    'ValueError'
    """
    kind: type[BaseException] = type(error)
    try:
        silent = kind.__new__(kind)
    except TypeError:
        kind, silent = Exception, Exception()
    return kind, silent, error.__traceback__


def drop_top_frame(error: BaseException) -> None:
    """
    Take the frame that caught *error* out of its traceback.

    That frame, or one that called it, refers to the error: a cycle that only the garbage collector
    would free, for every stream.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
