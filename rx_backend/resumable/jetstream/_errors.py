"""The errors of JetStream."""

from __future__ import annotations

from rx_backend.errors import CannotConnect, Unknown

__all__ = ("EntryTooLarge", "Fenced", "LogRemoved", "StreamFull")


class StreamFull(CannotConnect):
    """The JetStream stream has reached ``max_bytes``, or its server is out of space."""


class EntryTooLarge(Unknown):
    """One entry is larger than the server, or the JetStream stream, allows."""


class LogRemoved(Unknown):
    """The entries of an answer were removed, by ``max_age_s`` or a purge."""


class Fenced(Exception):
    """Another process has appended to the answer, so this one no longer writes it."""
