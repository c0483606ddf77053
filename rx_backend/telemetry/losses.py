"""What did not reach its receiver: counted, and told once."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

__all__ = ("CUT_OFF", "LOST", "Losses", "export_failure")

LOST: Final = "rx_backend.telemetry.lost"
"""The metric that counts what was lost, by ``rx_backend.signal``."""

CUT_OFF: Final = "not exported before the deadline of the shutdown"
"""Why things are lost that were still under way at the end."""

_SIGNAL: Final = "rx_backend.signal"
_THINGS: Final = {"traces": "spans", "metrics": "metric points"}
_RETRYING: Final = re.compile(r", retrying in [\d.]+s\b")

_logger = logging.getLogger("rx_backend.telemetry")


class Losses:
    """
    Counts spans and metric points that were lost, and warns of the first of each signal.

    Safe to use from several threads, and where the garbage collector ends a span in between.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lost = dict.fromkeys(_THINGS, 0)
        self._told: set[str] = set()

    @property
    def lost(self) -> dict[str, int]:
        """How many spans (``traces``) and points (``metrics``) were lost so far."""
        with self._lock:
            return dict(self._lost)

    def add(self, signal: str, count: int, reason: str | None) -> None:
        """Count what was lost, and warn when it is the first; never where *reason* is None."""
        with self._lock:
            self._lost[signal] += count
            is_first = reason is not None and signal not in self._told
            if is_first:
                self._told.add(signal)
        if is_first:
            _logger.warning(
                "%s are being lost: %s; %s counts them, and this is said once",
                _THINGS[signal],
                reason,
                LOST,
            )

    def observe_in(self, provider: MeterProvider) -> None:
        """Have the counts collected with the metrics of *provider*."""
        provider.get_meter("rx_backend").create_observable_counter(
            LOST, [self._observe], "{item}", "Spans and metric points that could not be exported"
        )

    def after_fork(self) -> None:
        """Start anew in a forked process."""
        self._lock = threading.RLock()
        self._lost = dict.fromkeys(self._lost, 0)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {_SIGNAL: signal}) for signal, count in self.lost.items()]


class _Hush(logging.Filter):
    """Holds back what is warned of on a thread that exports for us."""

    def filter(self, record: logging.LogRecord) -> bool:
        said: list[str] | None = getattr(_here, "said", None)
        if said is None or record.levelno < logging.WARNING:
            return True
        said.append(CUT_OFF if _here.is_cut_off() else record.getMessage())
        return False


def export_failure(export: Callable[[], bool], is_cut_off: Callable[[], bool]) -> str | None:
    """
    Call an exporter; say why it failed, None when it did not.

    What it warns of meanwhile is held back: while a receiver is down, exporters repeat it for each
    batch and each try.

    Args:
        export: Exports, and tells whether that went well.
        is_cut_off: Tells whether the exporter was ended, and fails because of that.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("opentelemetry.exporter"):
            logger = logging.getLogger(name)
            if _hush not in logger.filters:
                # Before those that would swallow what both signals say alike.
                logger.filters.insert(0, _hush)
    said: list[str] = []
    _here.said, _here.is_cut_off = said, is_cut_off
    try:
        if export():
            return None
    except Exception as error:
        said.append(CUT_OFF if is_cut_off() else f"{type(error).__name__}: {error}")
    finally:
        del _here.said, _here.is_cut_off
    # The first has the cause, later ones that it was given up.
    return _RETRYING.sub("", said[0]) if said else "the exporter failed, and said nothing"


_here = threading.local()
_hush = _Hush()
