"""Instruments that all users of a meter provider share."""

from __future__ import annotations

import threading
from typing import ClassVar, Self
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Meter, MeterProvider

__all__ = ("SharedInstruments",)


class SharedInstruments:
    """
    Instruments that are created once per meter provider. Thread-safe.

    Args:
        meter: Creates the instruments.
    """

    _made: ClassVar[WeakKeyDictionary[MeterProvider, Self]]
    _making: ClassVar = threading.Lock()

    def __init_subclass__(cls) -> None:
        cls._made = WeakKeyDictionary()

    def __init__(self, meter: Meter) -> None: ...

    @classmethod
    def of(cls, provider: MeterProvider | None) -> Self | None:
        """
        Return the instruments of *provider*; by default those of the global provider.

        None while no global provider is set up.
        """
        if provider is None:
            provider = metrics.get_meter_provider()
            # The API's own provider records nothing.
            if type(provider).__module__.startswith("opentelemetry.metrics"):
                return None
        with cls._making:
            made = cls._made.get(provider)
            if made is None:
                made = cls._made[provider] = cls(provider.get_meter("rx_backend"))
        return made
