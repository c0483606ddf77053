"""
Record streams with their timing, keep them as files, and replay them as an engine.

- ``record``: the operator; one file of JSON lines for each stream.
- ``ReplayEngine``: plays recordings with the same chunks, gaps and end.
- ``read_recording``, ``read_recordings``, ``write_recording``: the files as ``Recording`` values.
- ``to_parquet``, ``from_parquet``: many recordings as one table; need the extra ``parquet``.

A file reads like this, times being ms since the stream's start::

    {"format":"rx-backend-recording","version":1,"request_id":"r1","model":"m","prompt_tokens":3}
    {"time_ms":15.1,"chunk":{"token_ids":[7]}}
    {"time_ms":30.2,"chunk":{"token_ids":[8],"finish_reason":"stop"}}
    {"time_ms":30.2,"end":"completed"}

Versions: files of version 1 stay readable. Keys that a reader does not know are kept within chunks
and ignored elsewhere; a change that a reader could not ignore gets a new version number. A file
without its last line is the recording of a process that was killed, and good up to there.
"""

from rx_backend.recording.files import read_recording, read_recordings, write_recording
from rx_backend.recording.format import FORMAT, VERSION, RecordingError
from rx_backend.recording.model import Ending, RecordedRequest, Recording, TimedChunk
from rx_backend.recording.parquet import from_parquet, to_parquet
from rx_backend.recording.recorder import record
from rx_backend.recording.replay_engine import ReplayEngine

__all__ = (
    "FORMAT",
    "VERSION",
    "Ending",
    "RecordedRequest",
    "Recording",
    "RecordingError",
    "ReplayEngine",
    "TimedChunk",
    "from_parquet",
    "read_recording",
    "read_recordings",
    "record",
    "to_parquet",
    "write_recording",
)
