"""Streams that a client can resume."""

from rx_backend.resumable._errors import StreamNotFound, TooManyStreams
from rx_backend.resumable._ids import parse_event_id
from rx_backend.resumable._metrics import ResumableStats
from rx_backend.resumable._options import MayRead, WhenAbandoned, same_owner
from rx_backend.resumable._reader import ResumableReader
from rx_backend.resumable._source import AdapterSource, OpenedStream, StreamSource
from rx_backend.resumable._streams import ResumableStreams

__all__ = (
    "AdapterSource",
    "MayRead",
    "OpenedStream",
    "ResumableReader",
    "ResumableStats",
    "ResumableStreams",
    "StreamNotFound",
    "StreamSource",
    "TooManyStreams",
    "WhenAbandoned",
    "parse_event_id",
    "same_owner",
)
