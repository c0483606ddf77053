"""How a request ended, in the same words on its span, in metrics and in the log."""

from __future__ import annotations

from operators import Outcome
from operators import span_names as names
from operators.assembly import error_type_of
from rx_backend.errors import as_backend_error

__all__ = ("error_type", "finish_reason")

FAILED = "failed"


def error_type(outcome: Outcome) -> str | None:
    """
    OpenTelemetry's ``error.type``: the kind of an error, ``ErrorTerminal``, ``Dropped``, or None.

    The kinds are those of `rx_backend.errors`.
    """
    return error_type_of(outcome) if outcome.error is None else as_backend_error(outcome.error).kind


def finish_reason(outcome: Outcome) -> str:
    """Return the terminal's kind, such as ``stop``; ``failed`` after an error, else ``dropped``."""
    if outcome.error is not None:
        return FAILED
    reason = outcome.finish_reason
    return names.DROPPED.lower() if reason is None else str(getattr(reason, "kind", reason))
