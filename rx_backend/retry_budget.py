"""A bound on the load that retries and hedges add."""

from __future__ import annotations

import math

__all__ = ("RetryBudget",)


class RetryBudget:
    """
    Bound the load that retries and hedges add: a token bucket of extra calls.

    The bucket holds *burst* and starts full. Each request adds *ratio*, each extra call takes 1, so
    extra calls are at most *ratio* of all requests plus *burst*. Engines of one event loop may share
    a budget.

    Args:
        ratio: Extra calls per request in the long run, 0 or more.
        burst: Extra calls at once, 0 or more.

    Raises:
        ValueError: An argument does not fit.

    >>> budget = RetryBudget(ratio=0.5, burst=1)
    >>> budget.withdraw(), budget.withdraw()
    (True, False)
    >>> budget.add_request()
    >>> budget.add_request()
    >>> budget.withdraw()
    True
    """

    __slots__ = ("_burst", "_left", "_ratio")

    def __init__(self, ratio: float = 0.1, burst: float = 10.0) -> None:
        for name, value in (("ratio", ratio), ("burst", burst)):
            check_number(f"RetryBudget: {name}", value, "a number")
        self._ratio = ratio
        self._burst = burst
        self._left = burst

    def add_request(self) -> None:
        """Count a request."""
        self._left = min(self._burst, self._left + self._ratio)

    def withdraw(self) -> bool:
        """Take one extra call; return whether one was left."""
        # Ten times 0.1 is a little less than 1.
        if self._left < 1.0 - 1e-9:
            return False
        self._left -= 1.0
        return True


def check_number(option: str, value: object, what: str) -> None:
    """Raise ValueError, naming the option, unless *value* is a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{option}: expected {what}, 0 or more, got {value!r}")
