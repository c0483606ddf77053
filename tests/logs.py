"""What the library logs while a block runs, as events with their fields."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

__all__ = ("capture_logs",)

_logger = logging.getLogger("rx_backend")
_PLAIN = frozenset(vars(logging.makeLogRecord({})))


@contextmanager
def capture_logs(level: int = logging.DEBUG) -> Generator[list[dict[str, Any]]]:
    """Collect the events from *level* up: the fields of each, its ``event`` and its ``log_level``."""
    events: list[dict[str, Any]] = []
    handler = _Handler(events)
    before = _logger.level
    _logger.addHandler(handler)
    _logger.setLevel(level)
    try:
        yield events
    finally:
        _logger.removeHandler(handler)
        _logger.setLevel(before)


class _Handler(logging.Handler):
    def __init__(self, events: list[dict[str, Any]]) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        level = record.levelname.lower()
        self._events.append({"event": record.getMessage(), "log_level": level, **fields})
