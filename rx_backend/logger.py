"""The library's log call: structlog where that is configured, else standard logging."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import structlog

__all__ = ("Logger", "describe", "get_logger")


class Logger:
    """
    Logs events with fields; a failure of logging never reaches the caller.

    Where an event goes is decided when it is logged: to structlog's processors where structlog is
    configured, else to the standard library's logger of the same name. There the fields are
    attributes of the record, and are in its message too.

    Errors and tracebacks are not accepted: their text may hold what a user wrote; see `describe`.

    Args:
        name: The logger's name.
        fields: Fields of every event.
    """

    __slots__ = ("_fields", "name")

    def __init__(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self.name = name
        self._fields: dict[str, Any] = dict(fields or {})

    def bind(self, **fields: object) -> Logger:
        """Return a logger whose events have *fields* too."""
        return Logger(self.name, self._fields | fields)

    def debug(self, event: str, **fields: object) -> None:
        """Log a detail of normal work."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log normal work."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log a failure that is dealt with."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a bug."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, object]) -> None:
        merged = _Fields(self._fields | fields)
        try:
            if structlog.is_configured():
                method = logging.getLevelName(level).lower()
                getattr(structlog.get_logger(self.name), method)(event, **merged)
                return
            logger = logging.getLogger(self.name)
            if not logger.isEnabledFor(level):
                return
            file, line, function, _ = logger.findCaller(stacklevel=_TO_CALLER)
            message, args = (f"{event.replace('%', '%%')} %s", (merged,)) if merged else (event, ())
            record = logger.makeRecord(self.name, level, file, line, message, args, None, function)
            # Not as `extra`, which refuses names that the application's record factory sets.
            vars(record).update(merged, event=event)
            logger.handle(record)
        except Exception as error:
            _report_once(error)


class _Fields(dict[str, Any]):
    """Fields of an event; their text is ``key=value`` words, quoted where they have to be."""

    def __str__(self) -> str:
        return " ".join(f"{name}={_word(value)}" for name, value in self.items())


def get_logger(name: str) -> Logger:
    """Return the logger called *name*."""
    return Logger(name)


def describe(error: BaseException) -> dict[str, str]:
    """
    Return what can be logged of an error: its class, where it was raised, and the system's reason.

    Not its message, which may hold a prompt or generated text. Of a chain the first error counts.

    >>> try:
    ...     int("what a user wrote")
    ... except ValueError as error:
    ...     describe(error)["error_class"]
    'ValueError'
    """
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
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


def _word(value: object) -> str:
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
# Seen from the standard library: `_log`, `info`, and the caller.
_TO_CALLER: Final = 3
_reported: list[Exception] = []
