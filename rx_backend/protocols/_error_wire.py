"""The wire form of a typed error: its kind, its message and its chain of causes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, cast

from operators import DeadlineExpired
from rx_backend.errors import KINDS, BackendError, InvalidArgument, Unknown, causes

__all__ = ("error_from_wire", "error_to_wire")

# The runtime writes every error twice: by its older type, and by class and reason.
_CLASSES: Final = {
    "Unknown": ("Internal", "backend.unknown"),
    "InvalidArgument": ("InvalidRequest", "backend.invalid_argument"),
    "CannotConnect": ("Unavailable", "backend.cannot_connect"),
    "Disconnected": ("Unavailable", "backend.disconnected"),
    "ConnectionTimeout": ("DeadlineExceeded", "backend.connection_timeout"),
    "ResponseTimeout": ("DeadlineExceeded", "backend.response_timeout"),
    "Cancelled": ("Cancelled", "backend.cancelled"),
    "EngineShutdown": ("Unavailable", "backend.engine_shutdown"),
    "StreamIncomplete": ("Unavailable", "backend.stream_incomplete"),
}
# The client gets status 504, and no other worker is tried; the kind is kept.
_DEADLINE_REASON: Final = "request.deadline_exceeded"
_REASONS: Final = {reason: kind for kind, (_, reason) in _CLASSES.items()}
_MAX_CAUSES: Final = 16


def error_to_wire(error: BackendError) -> dict[str, Any]:
    """
    Return the wire form of *error* and of at most 16 causes, the nearest first.

    As in the runtime, the message of an `InvalidArgument` is marked as safe for the client.
    """
    chain = [error, *islice(causes(error), _MAX_CAUSES)]
    wire: dict[str, Any] = {}
    for link in reversed(chain):
        wire = {**_one(link), **({"caused_by": wire} if wire else {})}
    return wire


def _one(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, BackendError):
        text = f"{type(error).__name__}: {error}"
        return {
            "error_type": "Unknown",
            "class": "Internal",
            "reason": "runtime.unclassified",
            "message": text,
            "diagnostic": text,
        }
    # The runtime drops an item whose error has an unknown kind.
    kind = error.kind if error.kind in _CLASSES else "Unknown"
    canonical, reason = _CLASSES[kind]
    if kind == "ResponseTimeout" and _is_final(error.__cause__):
        reason = _DEADLINE_REASON
    wire: dict[str, Any] = {
        "error_type": {"Backend": kind},
        "class": canonical,
        "reason": reason,
        "message": error.message,
        "diagnostic": error.message,
    }
    if isinstance(error, InvalidArgument):
        wire["public"] = {"type": "message", "message": error.message}
    return wire


def _is_final(cause: BaseException | None) -> bool:
    return isinstance(cause, DeadlineExpired) and not cause.retry


def error_from_wire(value: object, where: str) -> BackendError:
    """
    Return a typed error from its wire form; an unknown kind becomes `Unknown`.

    Raises:
        InvalidArgument: *value*, or one of its causes, is not a mapping; names its path.
    """
    first: BackendError | None = None
    last: BackendError | None = None
    while value is not None:
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"{where}: expected an object, got {type(value).__name__}")
        wire = cast("Mapping[str, object]", value)
        error = _kind(wire)(str(wire.get("message") or wire.get("diagnostic") or ""))
        if last is not None:
            last.__cause__ = error
        first, last = first or error, error
        value, where = wire.get("caused_by"), f"{where}.caused_by"
    return first or Unknown("")


def _kind(wire: Mapping[str, object]) -> type[BackendError]:
    """Return the kind of an error of a backend, of the runtime, or of an older runtime."""
    stated = wire.get("error_type")
    if isinstance(stated, Mapping):
        stated = cast("Mapping[str, object]", stated).get("Backend")
    for name in (stated, _REASONS.get(str(wire.get("reason"))), wire.get("class")):
        if isinstance(name, str) and (kind := KINDS.get(name)):
            return kind
    return Unknown
