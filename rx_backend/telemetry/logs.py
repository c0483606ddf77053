"""Writing the library's log to stderr, as lines to read or as JSON, where nobody else does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from rx_backend.telemetry.environment import Environment, one_of
from rx_backend.telemetry.trace_ids import add_trace_ids

__all__ = ("LOG_VARIABLES", "Logs", "configure_logs")

LOG_VARIABLES: Final = ("DYN_LOG", "DYN_LOGGING_JSONL", "DYN_LOGGING_CONSOLE_FORMAT")
"""The variables that `configure_logs` reads; they are Dynamo's."""


class Logs:
    """
    What `configure_logs` did; a context manager that undoes it.

    Its text says where the log goes, or why it was left alone.
    """

    def __init__(self, words: str, undo: ExitStack) -> None:
        self._words = words
        self._undo = undo

    def close(self) -> None:
        """Undo it; harmless when called twice."""
        self._undo.close()

    def __str__(self) -> str:
        return self._words

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Undo it."""
        self.close()


def configure_logs(
    *, level: str | None = None, json: bool | None = None, whole_process: bool = False
) -> Logs:
    """
    Write what the library logs to stderr, unless the application has set logging up.

    It has where structlog is configured, or where a handler would get the library's records: then
    nothing is done, and the events go there. A logger's level that was set is kept too.

    As JSON each event is a line with ``time`` (ISO 8601, UTC), ``level``, ``target`` and
    ``message``, named as in the lines of Dynamo's runtime; beside them the event's fields, such as
    ``request_id``, and ``trace_id``, ``span_id`` and ``trace_flags`` where there is a span.

    Args:
        level: ``debug``, ``info``, ``warn``, ``error`` or ``off``. By default what ``DYN_LOG`` says,
            a list in which loggers may have a level of their own, as in
            ``info,rx_backend.requests=off``; else ``info``.
        json: Whether to write JSON. By default what ``DYN_LOGGING_JSONL`` or
            ``DYN_LOGGING_CONSOLE_FORMAT=jsonl`` say.
        whole_process: Whether to write what other loggers tell too: for a program of one's own.

    Raises:
        InvalidArgument: *level* or a variable is none of those that are possible.

    >>> from rx_backend.telemetry import configure_logs
    >>> with configure_logs(level="warn", json=True) as logs:
    ...     print(logs)  # doctest: +SKIP
    JSON lines from warn on, to stderr
    """
    variables = Environment(os.environ)
    if level is not None:
        one_of("level", level, tuple(_LEVELS))
    as_json = _wants_json(variables) if json is None else json
    undo = ExitStack()
    if structlog.is_configured():
        return Logs("left to structlog, which is configured", undo)
    loggers = [logging.getLogger(name) for name in (_EVERYBODY if whole_process else _OURS)]
    if any(logger.hasHandlers() for logger in loggers):
        return Logs("left to the handlers of standard logging that were there", undo)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(as_json=as_json))
    for logger in loggers[:1] if whole_process else loggers:
        logger.addHandler(handler)
        undo.callback(logger.removeHandler, handler)
    levels = _levels(level or variables.text("DYN_LOG") or "")
    everybody = levels.pop("")
    for name, own in ({logger.name: everybody for logger in loggers} | levels).items():
        logger = logging.getLogger(name)
        is_ours = whole_process or name.partition(".")[0] in _OURS
        if is_ours and logger.level == (logging.NOTSET if logger.parent else logging.WARNING):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(_LEVELS[own])
    shown = levels.get(_OURS[0], everybody)
    return Logs(f"{'JSON lines' if as_json else 'lines'} from {shown} on, to stderr", undo)


def _wants_json(variables: Environment) -> bool:
    form = variables.text("DYN_LOGGING_CONSOLE_FORMAT")
    if form is not None:
        one_of("DYN_LOGGING_CONSOLE_FORMAT", form.lower(), ("readable", "jsonl"))
        return form.lower() == "jsonl"
    return bool(variables.switch("DYN_LOGGING_JSONL"))


def _levels(directives: str) -> dict[str, str]:
    """
    Give the levels in a list of Dynamo's by the name of their logger; by no name that of all others.

    What is for the runtime's own parts, or can't be read, is left to the runtime.
    """
    found = {"": _DEFAULT}
    for directive in directives.split(","):
        name, _, level = directive.strip().rpartition("=")
        if level.lower() in _LEVELS and "::" not in name:
            found[name] = level.lower()
    return found


def _formatter(*, as_json: bool) -> logging.Formatter:
    # Tracebacks are plain ones: they show no local variables, which may hold a prompt.
    rendering: list[Processor]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        rendering = [
            _readable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
                event_key="message",
                timestamp_key="time",
            ),
        ]
    return ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder(), add_trace_ids],
        processors=[_named, *rendering],
    )


def _named(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put an event's own four names in front of its fields."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    named: EventDict = {
        "time": moment.replace("+00:00", "Z"),
        "level": _DYNAMOS_NAMES.get(record.levelname, record.levelname),
        "target": record.name,
        "message": event.pop("event"),
    }
    return named | {name: value for name, value in event.items() if name not in named}


def _readable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Take out what would disturb a terminal, and name the rest as the renderer knows it."""
    for name, value in event.items():
        if isinstance(value, str) and name not in _TEXTS and not value.isprintable():
            event[name] = "".join(one if one.isprintable() else "?" for one in value)
    event["level"] = event["level"].lower()
    event["logger"] = event.pop("target")
    return event


_DEFAULT: Final = "info"
_DYNAMOS_NAMES: Final = {"WARNING": "WARN"}
# May have several lines.
_TEXTS: Final = ("message", "stack")
_OURS: Final = ("rx_backend", "operators")
_EVERYBODY: Final = ("", *_OURS)
_LEVELS: Final[Mapping[str, int]] = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
