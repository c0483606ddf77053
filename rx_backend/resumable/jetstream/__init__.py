"""Resumable streams on several machines, over NATS JetStream (extra ``jetstream``)."""

from rx_backend.resumable.jetstream._errors import EntryTooLarge, LogGone, StreamFull
from rx_backend.resumable.jetstream._source import JetStreamSource

__all__ = ("EntryTooLarge", "JetStreamSource", "LogGone", "StreamFull")
