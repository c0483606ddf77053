"""A limit on the load that retries and hedges add."""

from __future__ import annotations

from typing import Annotated

from operators.assembly import check_arguments
from operators.authoring import AtLeast

__all__ = ("RetryBudget",)


class RetryBudget:
    """
    Limit the load that retries and hedges add: a token bucket of extra calls.

    The bucket holds *burst* and starts full. Each request adds *ratio*, each extra call takes 1, so
    extra calls are at most *ratio* of all requests plus *burst*. Engines of one event loop may share
    a budget.

    Args:
        ratio: Extra calls per request in the long run, at least 0.
        burst: Maximum burst of extra calls, at least 0.

    Raises:
        ValueError, TypeError: An argument is invalid.

    >>> budget = RetryBudget(ratio=0.5, burst=1)
    >>> budget.withdraw(), budget.withdraw()
    (True, False)
    >>> budget.add_request()
    >>> budget.add_request()
    >>> budget.withdraw()
    True
    """

    __slots__ = ("_burst", "_left", "_ratio")

    def __init__(
        self,
        ratio: Annotated[float, AtLeast(0)] = 0.1,
        burst: Annotated[float, AtLeast(0)] = 10.0,
    ) -> None:
        check_arguments(RetryBudget, ratio, burst)
        self._ratio = ratio
        self._burst = burst
        self._left = burst

    def add_request(self) -> None:
        """Count a request."""
        self._left = min(self._burst, self._left + self._ratio)

    def withdraw(self) -> bool:
        """Take one extra call; return whether one was left."""
        # In floating point, ten times 0.1 is a little less than 1.
        if self._left < 1.0 - 1e-9:
            return False
        self._left -= 1.0
        return True
