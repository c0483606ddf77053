"""The library's log call: structlog, whose events become records of standard logging."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from typing import Any, Final

from structlog.stdlib import BoundLogger, filter_by_level
from structlog.typing import EventDict

from rx_backend.error_kinds import causes

__all__ = ("Logger", "describe", "get_logger")


class Logger(BoundLogger):
    """
    structlog's logger over one of standard logging; its failure never reaches the caller.

    It has its own processors, and ignores ``structlog.configure``. Standard logging decides where
    records go: to its handlers, or warnings to stderr without any. Don't log exceptions and
    tracebacks, whose text may contain user input; see `describe`.
    """

    def _proxy_to_logger(self, method_name: str, *args: Any, **fields: Any) -> None:
        try:
            super()._proxy_to_logger(method_name, *args, **fields)
        except Exception as error:
            _report_once(error)


def get_logger(name: str) -> Logger:
    """
    Return the logger called *name*: ``bind(**fields)`` it, or log ``(event, **fields)``.

    ``debug`` is for details of normal operation, ``info`` for normal operation, ``warning`` for a
    handled failure, ``error`` for a bug.
    """
    return Logger(logging.getLogger(name), [filter_by_level, _as_record], {})


def describe(error: BaseException) -> dict[str, str]:
    """
    Return the loggable facts of an error: its class, where it was raised, and the system's reason.

    Not its message, which may contain a prompt or generated text. Of a chain, the root cause.

    >>> try:
    ...     int("user input")
    ... except ValueError as error:
    ...     describe(error)["error_class"]
    'ValueError'
    """
    *_, error = error, *causes(error)
    described = {"error_class": type(error).__qualname__}
    if isinstance(error, OSError) and error.errno is not None:
        described["reason"] = os.strerror(error.errno)
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "?")
        described["raised_at"] = f"{module}:{traceback.tb_lineno}"
    return described


def _as_record(
    _logger: object, _method: str, event: EventDict
) -> tuple[tuple[str], dict[str, Any]]:
    """Make a record's message, which includes the fields, and its attributes: the fields again."""
    words = [f"{name}={_word(value)}" for name, value in event.items() if name != "event"]
    # Standard logging refuses names that the application's record factory sets.
    taken = vars(logging.makeLogRecord({}))
    extra = {name: value for name, value in event.items() if name not in taken}
    return (" ".join([event["event"], *words]),), {"extra": extra, "stacklevel": _TO_CALLER}


def _word(value: object) -> str:
    """Return a field's text, quoted if it could be mistaken for several words or lines."""
    if not isinstance(value, str):
        return str(value)
    is_word = value.isprintable() and value and not _QUOTED.intersection(value)
    return value if is_word else json.dumps(value)


def _report_once(error: Exception) -> None:
    """Report on stderr that logging fails."""
    if not _reported:
        _reported.append(error)
        with suppress(Exception):
            sys.stderr.write(f"rx_backend: logging failed, reported once: {error!r}\n")


_QUOTED: Final = frozenset(' "=\\')
# Frames to the caller: the logger's method, and `_proxy_to_logger` of three classes.
_TO_CALLER: Final = 5
_reported: list[Exception] = []
