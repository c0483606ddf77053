"""Checks of options that are numbers; each error names the option, its unit and its bounds."""

from __future__ import annotations

import math
from typing import Any

from rx_backend.errors import InvalidArgument

__all__ = ("check_seconds", "check_whole")


def check_whole(name: str, value: Any, unit: str, *, low: int, high: int | None = None) -> None:
    """
    Check that *value* is a whole number from *low* to *high*.

    Raises:
        InvalidArgument: It is something else.
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{low} to {high}"
        raise InvalidArgument(f"{name}: expected a whole number of {unit}, {bounds}, got {value!r}")


def check_seconds(name: str, value: Any, *, low: float = 0.0) -> None:
    """
    Check that *value* is a finite number, at least *low*.

    Raises:
        InvalidArgument: It is something else.
    """
    is_number = isinstance(value, float) or type(value) is int
    if not is_number or not low <= value < math.inf:
        raise InvalidArgument(
            f"{name}: expected a number of seconds, {low:g} or more, got {value!r}"
        )
