"""The steps of a request's abort."""

from __future__ import annotations

from enum import Enum

__all__ = ("AbortStep",)


class AbortStep(Enum):
    """
    What ``deferred_abort`` reports: first ``REQUESTED``, then at most one of the others.

    Attributes:
        REQUESTED: The stop signal has come.
        MADE: The abort was called at once.
        MADE_DEFERRED: The abort was called after waiting for the first token.
        SUPPRESSED: The stream ended before its first token, so the abort is not called.
    """

    REQUESTED = "requested"
    MADE = "immediate"
    MADE_DEFERRED = "deferred"
    SUPPRESSED = "suppressed"
