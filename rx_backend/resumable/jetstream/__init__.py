"""Resumable streams on several machines, over NATS JetStream (extra ``jetstream``)."""

from rx_backend.extras import import_extra

import_extra("nats.js", "jetstream", package="nats-py", needed_by="rx_backend.resumable.jetstream")

from rx_backend.resumable.jetstream._errors import EntryTooLarge, LogRemoved, StreamFull
from rx_backend.resumable.jetstream._source import JetStreamSource

__all__ = ("EntryTooLarge", "JetStreamSource", "LogRemoved", "StreamFull")
