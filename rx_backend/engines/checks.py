"""Checks of numeric parameters: each names the parameter, its bounds and its unit when it fails."""

from __future__ import annotations

import math

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest

__all__ = ("fraction", "max_tokens", "number", "text", "whole")


def whole(name: str, value: object, *, low: int, unit: str = "") -> int:
    """
    Return *value* when it is a whole number of at least *low*.

    Args:
        name: The parameter as the caller knows it.
        value: What was passed.
        low: Smallest value allowed.
        unit: Unit for the message, such as ``"tokens"``.

    Raises:
        InvalidArgument: The value is no whole number, or too small.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise InvalidArgument(f"{name} must be a whole number >= {_with(low, unit)}, got {value!r}")


def number(name: str, value: object, *, low: float, unit: str = "", above: bool = False) -> float:
    """
    Return *value* as a float when it is a finite number of at least *low*.

    Args:
        name: The parameter as the caller knows it.
        value: What was passed.
        low: Smallest value allowed.
        unit: Unit for the message, such as ``"ms"``.
        above: *low* itself is not allowed either.

    Raises:
        InvalidArgument: The value is no finite number, or too small.
    """
    bound = ">" if above else ">="
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        enough = value > low if above else value >= low
        if enough and math.isfinite(value):
            return float(value)
    raise InvalidArgument(f"{name} must be a number {bound} {_with(low, unit)}, got {value!r}")


def fraction(name: str, value: object) -> float:
    """
    Return *value* as a float when it lies between 0 and 1, both included.

    Raises:
        InvalidArgument: The value is no number, or outside.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise InvalidArgument(f"{name} must be a number from 0 to 1, got {value!r}")


def text(name: str, value: object) -> str:
    """
    Return *value* when it is a text with something in it.

    Raises:
        InvalidArgument: The value is no text, or blank.
    """
    if isinstance(value, str) and value.strip():
        return value
    raise InvalidArgument(f"{name} must be a non-empty text, got {value!r}")


def max_tokens(request: PreprocessedRequest, default: int) -> int:
    """
    Return how many tokens *request* asks for, *default* when it does not say.

    Raises:
        InvalidArgument: It asks for less than one.
    """
    wanted = request.stop_conditions.max_tokens
    if wanted is None:
        return default
    return whole("stop_conditions.max_tokens", wanted, low=1, unit="tokens")


def _with(bound: float, unit: str) -> str:
    return f"{bound:g} {unit}".rstrip()
