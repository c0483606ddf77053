"""What becomes of a request's abort."""

from __future__ import annotations

from enum import Enum

__all__ = ("AbortStep",)


class AbortStep(Enum):
    """
    What ``deferred_abort`` reports: first a request, then at most one of the others.

    Attributes:
        REQUESTED: The stop signal has come.
        MADE: It was called at once.
        MADE_DEFERRED: It was called, having waited for the first token.
        SUPPRESSED: The stream ended before its first token, so it is not called.
    """

    REQUESTED = "requested"
    MADE = "immediate"
    MADE_DEFERRED = "deferred"
    SUPPRESSED = "suppressed"
