"""The library's loggers: to structlog where that is configured, to standard logging else."""

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
    Takes events with fields, and hands them to what the application logs with.

    That is decided event by event: structlog's processors where structlog is configured, else the
    standard library's logger of the same name. There the fields are attributes of the record, as if
    given as ``extra``, and are in its message too. Where logging fails, the caller is not disturbed.

    Errors and tracebacks are not taken: their texts may hold what a user wrote; see `describe`.

    Args:
        name: The logger's name.
        fields: What every event has.
    """

    __slots__ = ("_fields", "name")

    def __init__(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self.name = name
        self._fields: dict[str, Any] = dict(fields or {})

    def bind(self, **fields: object) -> Logger:
        """Give a logger whose events have *fields* too."""
        return Logger(self.name, self._fields | fields)

    def debug(self, event: str, **fields: object) -> None:
        """Log for who looks for a bug."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what goes as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what went wrong, and is dealt with."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a bug."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, object]) -> None:
        try:
            if structlog.is_configured():
                bound = structlog.get_logger(self.name, **self._fields)
                getattr(bound, logging.getLevelName(level).lower())(event, **fields)
            else:
                self._log_with_stdlib(level, event, fields)
        except Exception as error:
            _complain(error)

    def _log_with_stdlib(self, level: int, event: str, fields: dict[str, object]) -> None:
        logger = logging.getLogger(self.name)
        if not logger.isEnabledFor(level):
            return
        told = _Fields(self._fields | fields)
        message, given = event, ()
        if told:
            message, given = f"{event.replace('%', '%%')} %s", (told,)
        file, line, function, _ = logger.findCaller(stacklevel=_TO_CALLER)
        record = logger.makeRecord(self.name, level, file, line, message, given, None, function)
        # Not as `extra`: that refuses names which the application's own record factory has set.
        vars(record).update(told, event=event)
        logger.handle(record)


class _Fields(dict[str, Any]):
    """Fields of an event; as text they are ``key=value`` words."""

    def __str__(self) -> str:
        return " ".join(f"{name}={_word(value)}" for name, value in self.items())


def get_logger(name: str) -> Logger:
    """Give the logger called *name*; a module asks once, by its own name."""
    return Logger(name)


def describe(error: BaseException) -> dict[str, str]:
    """
    What can be logged of an error: its class, where it was raised, and the system's reason.

    Not its message, which may hold a prompt or generated text. Of a chain the first error counts.

    >>> try:
    ...     int("what somebody wrote")
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
    if traceback is not None:
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        module = traceback.tb_frame.f_globals.get("__name__", "?")
        described["raised_at"] = f"{module}:{traceback.tb_lineno}"
    return described


def _word(value: object) -> str:
    """A value as one word: quoted and escaped where it would not be one as it is."""
    if not isinstance(value, str):
        return str(value)
    is_word = value.isprintable() and value and not _QUOTED.intersection(value)
    return value if is_word else json.dumps(value)


def _complain(error: Exception) -> None:
    """Say once that logging fails: on stderr, as logging is no way to say it."""
    if not _complained:
        _complained.append(repr(error))
        with suppress(Exception):
            sys.stderr.write(f"rx_backend: logging failed, said once: {error!r}\n")


_QUOTED: Final = frozenset(' "=\\')
# Seen from the standard library: `_log_with_stdlib`, `_log`, `info`, and the caller.
_TO_CALLER: Final = 4
_complained: list[str] = []
