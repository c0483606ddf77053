"""All kinds of consumer, by name."""

from __future__ import annotations

from tests.matrix import (
    consumers_leaving,
    consumers_operators,
    consumers_pushed,
    consumers_reading,
    consumers_signals,
)
from tests.matrix.kinds import CONSUMERS

__all__ = (
    "CONSUMERS",
    "consumers_leaving",
    "consumers_operators",
    "consumers_pushed",
    "consumers_reading",
    "consumers_signals",
)
