"""Writing the library's log to stderr, as text or JSON, unless something else handles it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.settings import is_true, one_of
from rx_backend.telemetry.trace_ids import add_trace_ids

__all__ = ("configure_logs", "error_line")

_OURS: Final = ("rx_backend", "operators")
_LEVELS: Final[Mapping[str, int]] = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}


def configure_logs(*, whole_process: bool = False) -> ExitStack:
    """
    Write the library's log to stderr, unless the application has set up logging.

    If a handler already receives the library's records, nothing is done. A logger's level that was
    set is also kept; otherwise it is that of ``DYN_LOG``, in whose list directives with a target
    are for the runtime, or ``info``.

    With ``DYN_LOGGING_JSONL`` or ``DYN_LOGGING_CONSOLE_FORMAT=jsonl`` each event is a line of JSON
    with ``time`` (ISO 8601, UTC), ``level``, ``target`` and ``message``, named as in the lines of
    Dynamo's runtime, with the event's fields, such as ``request_id``, and within a span
    ``trace_id``, ``span_id`` and ``trace_flags``.

    Args:
        whole_process: Whether to write the logs of all other loggers too: for programs, not
            libraries.

    Returns:
        A context manager that undoes it, at its exit or by ``close()``.

    Raises:
        InvalidArgument: A variable has an invalid value.
    """
    as_json = _wants_json()
    done = ExitStack()
    loggers = [logging.getLogger(name) for name in (("", *_OURS) if whole_process else _OURS)]
    if any(logger.hasHandlers() for logger in loggers):
        return done
    level = _level_of(os.environ.get("DYN_LOG", ""))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(as_json=as_json))
    for logger in loggers[:1] if whole_process else loggers:
        logger.addHandler(handler)
        done.callback(logger.removeHandler, handler)
    for logger in loggers:
        if logger.level == (logging.NOTSET if logger.parent else logging.WARNING):
            done.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
    return done


def error_line(program: str, message: str) -> str:
    """Return the line with which *program* reports an error on stderr, in the form of its log."""
    message = " ".join(message.split())
    try:
        as_json = _wants_json()
    except InvalidArgument:
        as_json = False
    if not as_json:
        return f"{program}: error: {message}"
    record = logging.LogRecord(_OURS[0], logging.ERROR, "", 0, message, None, None)
    return _formatter(as_json=True).format(record)


def _wants_json() -> bool:
    form = os.environ.get("DYN_LOGGING_CONSOLE_FORMAT", "").strip().lower()
    if form:
        one_of("DYN_LOGGING_CONSOLE_FORMAT", form, ("readable", "jsonl"))
        return form == "jsonl"
    return is_true("DYN_LOGGING_JSONL", os.environ.get("DYN_LOGGING_JSONL", ""))


def _level_of(directives: str) -> int:
    """Return the level in ``DYN_LOG`` without a target; other directives are the runtime's."""
    words = directives.lower().replace(" ", "").split(",")
    return next((_LEVELS[word] for word in reversed(words) if word in _LEVELS), logging.INFO)


def _formatter(*, as_json: bool) -> logging.Formatter:
    # Plain tracebacks: they show no local variables, which may hold a prompt.
    rendering: list[Processor] = [
        _printable,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
            sort_keys=False,
            event_key="message",
            timestamp_key="time",
        ),
    ]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder(), add_trace_ids], processors=[_named, *rendering]
    )


def _named(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put the four names of Dynamo's lines before an event's fields."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    named: EventDict = {
        "time": moment.replace("+00:00", "Z"),
        "level": "WARN" if record.levelname == "WARNING" else record.levelname,
        "target": record.name,
        "message": event.pop("event"),
    }
    return named | {name: value for name, value in event.items() if name not in named}


def _printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace control characters, and use the names that the renderer knows."""
    for name, value in event.items():
        # These two may have several lines.
        if isinstance(value, str) and name not in {"message", "stack"}:
            event[name] = "".join(one if one.isprintable() else "?" for one in value)
    event["level"] = event["level"].lower()
    event["logger"] = event.pop("target")
    return event
