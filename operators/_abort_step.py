"""The steps of a request's abort."""

from __future__ import annotations

from enum import Enum

__all__ = ("AbortStep",)


class AbortStep(Enum):
    """
    What ``deferred_abort`` reports: first ``REQUESTED``, then at most one of the others.

    Attributes:
        REQUESTED: The stop signal has come.
        CALLED_IMMEDIATELY: The abort was called at once.
        CALLED_AFTER_DEFERRAL: The abort was called after waiting for the first token.
        SUPPRESSED: The stream ended before its first token, so the abort is not called.
    """

    REQUESTED = "requested"
    CALLED_IMMEDIATELY = "immediate"
    CALLED_AFTER_DEFERRAL = "deferred"
    SUPPRESSED = "suppressed"
