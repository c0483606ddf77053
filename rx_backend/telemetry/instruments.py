"""Instruments that all users of a meter provider share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Meter, MeterProvider

__all__ = ("SharedInstruments",)

T = TypeVar("T")


class SharedInstruments(Generic[T]):
    """
    Instruments that are made once for each meter provider. Thread-safe.

    Args:
        make: Makes them from a meter.
    """

    def __init__(self, make: Callable[[Meter], T]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[MeterProvider, T] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, provider: MeterProvider | None) -> T | None:
        """
        Return those of *provider*; of the global provider when left out.

        None as long as no global provider is set up.
        """
        if provider is None:
            provider = metrics.get_meter_provider()
            # What the API has by itself records nothing.
            if type(provider).__module__.startswith("opentelemetry.metrics"):
                return None
        with self._lock:
            made = self._made.get(provider)
            if made is None:
                made = self._made[provider] = self._make(provider.get_meter("rx_backend"))
        return made
