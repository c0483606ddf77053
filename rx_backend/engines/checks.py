"""Checks of parameters; each failure names the parameter, its bound and its unit."""

from __future__ import annotations

import math

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest

__all__ = ("fraction", "max_tokens", "number", "text", "whole")


def whole(name: str, value: object, *, low: int, unit: str = "") -> int:
    """Return *value* if it is an ``int`` >= *low*, else raise `InvalidArgument`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise InvalidArgument(f"{name} must be a whole number >= {_with(low, unit)}, got {value!r}")


def number(name: str, value: object, *, low: float, unit: str = "", above: bool = False) -> float:
    """Return a finite *value* >= *low* (> *low* if *above*), else raise `InvalidArgument`."""
    bound = ">" if above else ">="
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        enough = value > low if above else value >= low
        if enough and math.isfinite(value):
            return float(value)
    raise InvalidArgument(f"{name} must be a number {bound} {_with(low, unit)}, got {value!r}")


def fraction(name: str, value: object) -> float:
    """Return *value* if it is between 0 and 1, both included, else raise `InvalidArgument`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise InvalidArgument(f"{name} must be a number from 0 to 1, got {value!r}")


def text(name: str, value: object) -> str:
    """Return *value* if it is a string that is not blank, else raise `InvalidArgument`."""
    if isinstance(value, str) and value.strip():
        return value
    raise InvalidArgument(f"{name} must be a non-empty text, got {value!r}")


def max_tokens(request: PreprocessedRequest, default: int) -> int:
    """Return how many tokens *request* allows; raise `InvalidArgument` if it is less than 1."""
    wanted = request.stop_conditions.max_tokens
    if wanted is None:
        return default
    return whole("stop_conditions.max_tokens", wanted, low=1, unit="tokens")


def _with(bound: float, unit: str) -> str:
    return f"{bound:g} {unit}".rstrip()
