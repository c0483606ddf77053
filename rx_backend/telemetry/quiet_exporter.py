"""Exporters whose failures are logged once."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any, Final

from rx_backend.telemetry.repaired_span import repaired_span
from rx_backend.telemetry.settings import hide_secrets

__all__ = ("QuietExporter", "QuietSpanExporter")

_CUT_OFF: Final = "not exported before the deadline of the shutdown"
_LONGEST_REASON: Final = 300
_RETRYING: Final = re.compile(r", retrying in [\d.]+s\b")

_logger = logging.getLogger("rx_backend.telemetry")


class QuietExporter:
    """
    Passes batches to an exporter, and logs a warning at its first failure only.

    The exporter's own logs are suppressed while it exports: they would repeat for each batch and
    each try while a receiver is down. The SDK counts what was lost.

    Args:
        exporter: One of the SDK's exporters.

    Attributes:
        has_failed: Whether an export has failed or was cut off.
    """

    items = "metric points"

    def __init__(self, exporter: Any) -> None:
        self.has_failed = False
        self._exporter = exporter
        self._is_exporting = self._is_ended = False
        self._logged: list[str] = []
        _hold_back_logs()

    def __getattr__(self, name: str) -> Any:
        # Also needed by the SDK's metric reader.
        return getattr(self._exporter, name)

    def export(self, batch: Any, *args: Any, **options: Any) -> object:
        """Export a batch; never raises."""
        logged = self._logged = []
        held = _held.set(logged)
        self._is_exporting = True
        result = None
        try:
            if not self._is_ended:
                result = self._exporter.export(batch, *args, **options)
        except Exception as error:
            logged.append(f"{type(error).__name__}: {error}")
        finally:
            self._is_exporting = False
            _held.reset(held)
        if getattr(result, "name", None) != "SUCCESS":
            self._fail()
        return result

    def shutdown(self, *_args: object, **_options: object) -> None:
        """Shut the exporter down, whatever it is doing."""
        was_ended, self._is_ended = self._is_ended, True
        if was_ended:
            return
        if self._is_exporting:
            self._fail()
        self._exporter.shutdown()

    def _fail(self) -> None:
        if self.has_failed:
            return
        self.has_failed = True
        # The first line has the cause, later ones say that it gave up.
        reason = (*self._logged, _CUT_OFF if self._is_ended else "the exporter gave no reason")[0]
        # It may quote the receiver's response, or its address with a password.
        text = _RETRYING.sub("", hide_secrets(reason))[:_LONGEST_REASON]
        shown = "".join(one if one.isprintable() else "?" for one in text)
        _logger.warning("%s are being lost: %s; this is logged once", self.items, shown)


class QuietSpanExporter(QuietExporter):
    """A quiet exporter for spans, which makes their text encodable (row P10)."""

    items = "spans"

    def export(self, batch: Any, *args: Any, **options: Any) -> object:
        """Export a batch; never raises."""
        return super().export([*map(repaired_span, batch)], *args, **options)


_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


def _hold_back(record: logging.LogRecord) -> bool:
    """Capture what exporters log during our exports, instead of logging it."""
    held = _held.get()
    if held is None or record.levelno < logging.WARNING:
        return True
    held.append(record.getMessage())
    return False


def _hold_back_logs() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("opentelemetry.exporter"):
            logger = logging.getLogger(name)
            if _hold_back not in logger.filters:
                # Before the SDK's, which drops duplicates of two exporters.
                logger.filters.insert(0, _hold_back)
