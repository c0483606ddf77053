"""Checks of options; each error names the option, what was expected and what was given."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path

from rx_backend.errors import InvalidArgument

__all__ = ("file_path", "fraction", "function", "instance", "integer", "number", "text")

# An `int` above this can't be a `float`.
_LARGEST = sys.float_info.max


def integer(
    name: str, value: object, *, low: int | None = None, high: int | None = None, unit: str = ""
) -> int:
    """Return *value* if it is an ``int`` from *low* to *high*, else raise `InvalidArgument`."""
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    bounds = "" if low is None else f", {low} or more" if high is None else f", {low} to {high}"
    raise InvalidArgument(f"{name}: expected a whole number{_of(unit)}{bounds}, got {value!r}")


def number(
    name: str, value: object, *, low: float | None = None, unit: str = "", above: bool = False
) -> float:
    """Return a finite *value* >= *low* (> *low* if *above*), else raise `InvalidArgument`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        fits = low is None or value > low or (value == low and not above)
        if fits and -_LARGEST <= value <= _LARGEST:
            return float(value)
    bounds = "finite" if low is None else f"more than {low:g}" if above else f"{low:g} or more"
    raise InvalidArgument(f"{name}: expected a number{_of(unit)}, {bounds}, got {value!r}")


def fraction(name: str, value: object) -> float:
    """Return *value* if it is between 0 and 1, inclusive, else raise `InvalidArgument`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise InvalidArgument(f"{name}: expected a number from 0 to 1, got {value!r}")


def text(name: str, value: object) -> str:
    """Return *value* if it is a string that is not blank, else raise `InvalidArgument`."""
    if isinstance(value, str) and value.strip():
        return value
    raise InvalidArgument(f"{name}: expected a non-blank string, got {value!r}")


def file_path(name: str, value: object) -> Path:
    """Return *value* as a path, if it can be one, else raise `InvalidArgument`."""
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{name}: expected a path, got {value!r}") from None


def function(name: str, value: object) -> None:
    """Raise `InvalidArgument` unless *value* is callable and not async."""
    if not callable(value) or inspect.iscoroutinefunction(value):
        raise InvalidArgument(f"{name}: expected a function that is not async, got {value!r}")


def instance(name: str, value: object, kind: type[object]) -> None:
    """Raise `InvalidArgument` unless *value* is a *kind*."""
    if not isinstance(value, kind):
        raise InvalidArgument(f"{name}: expected a {kind.__name__}, got {value!r}")


def _of(unit: str) -> str:
    return f" of {unit}" if unit else ""
