"""What goes wrong between a process and JetStream."""

from __future__ import annotations

from rx_backend.errors import CannotConnect, Unknown

__all__ = ("EntryTooLarge", "Fenced", "LogGone", "StreamFull")


class StreamFull(CannotConnect):
    """The JetStream stream has reached ``max_bytes``, or its server has no room left."""


class EntryTooLarge(Unknown):
    """One entry is larger than the server, or the JetStream stream, allows."""


class LogGone(Unknown):
    """What was written of an answer is not there any more: ``max_age_s`` or a purge removed it."""


class Fenced(Exception):
    """Another process has appended to the answer, so this one does not make it any more."""
