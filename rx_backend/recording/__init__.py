"""
Record streams with their timing in files, and replay them with an engine.

A file looks like this, with times in ms since the stream's start::

    {"format":"rx-backend-recording","version":1,"request_id":"r1","model":"m","prompt_tokens":3}
    {"time_ms":15.1,"chunk":{"token_ids":[7]}}
    {"time_ms":30.2,"chunk":{"token_ids":[8],"finish_reason":"stop"}}
    {"time_ms":30.2,"end":"completed"}

It also loads as a table: ``polars.read_ndjson(path)``, or ``pandas.read_json(path, lines=True)``.

Files of version 1 stay readable. Unknown keys are kept within chunks and ignored elsewhere; a
change that a reader must not ignore gets a new version number. A file without a last line comes
from a killed process, and is valid up to that point.
"""

from rx_backend.recording.files import read_recording, read_recordings
from rx_backend.recording.format import RecordingError
from rx_backend.recording.model import Ending, Recording, TimedChunk
from rx_backend.recording.recorder import record
from rx_backend.recording.replay_engine import ReplayEngine

__all__ = (
    "Ending",
    "Recording",
    "RecordingError",
    "ReplayEngine",
    "TimedChunk",
    "read_recording",
    "read_recordings",
    "record",
)
