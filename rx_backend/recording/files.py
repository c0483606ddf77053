"""Reading recording files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import BinaryIO

from rx_backend.checks import file_path
from rx_backend.errors import InvalidArgument
from rx_backend.logger import get_logger
from rx_backend.recording.format import RecordingError, add_line, read_header
from rx_backend.recording.json_lines import NotJson, read_lines
from rx_backend.recording.model import Recording

__all__ = ("read_recording", "read_recordings")

_log = get_logger(__name__)


def read_recording(path: str | PathLike[str]) -> Recording:
    """
    Read the recording of one stream.

    A truncated file is read up to its last complete line; ``end`` is None.

    Raises:
        InvalidArgument: *path* is not a path.
        RecordingError: The file can't be read, has a newer version, or a line is invalid; the
            message names the file, the line and what was expected.
    """
    try:
        with file_path("path", path).open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise RecordingError(path, None, f"can't be read: {error.strerror}") from error


def read_recordings(path: str | PathLike[str]) -> list[Recording]:
    """
    Read the recordings of a directory, or of one file.

    In a directory, the ``.jsonl`` files are read in the order of their paths. An empty or invalid
    file is skipped with a logged warning: a full disk or a killed process must not cost the other
    recordings.

    Raises:
        InvalidArgument: *path* is not a path.
        RecordingError: It is an invalid file, as in :func:`read_recording`, or a directory without
            ``.jsonl`` files.
    """
    folder = file_path("path", path)
    if not folder.is_dir():
        return [read_recording(path)]
    files = sorted(file for file in folder.rglob("*.jsonl") if file.is_file())
    if not files:
        raise RecordingError(path, None, "expected .jsonl files in the directory, found none")
    return [recording for file in files if (recording := _read_or_skip(file)) is not None]


def _read_or_skip(file: Path) -> Recording | None:
    try:
        return read_recording(file)
    except RecordingError as error:
        _log.warning("recording skipped", path=error.path, reason=error.message)
        return None


def _read(path: str | PathLike[str], file: BinaryIO) -> Recording:
    recording: Recording | None = None
    for number, line in enumerate(read_lines(file), 1):
        if line.isspace():
            continue
        try:
            if recording is None:
                recording = read_header(line)
            else:
                add_line(recording, line)
        except InvalidArgument as error:
            is_cut = isinstance(error, NotJson) and not line.endswith(b"\n")
            if is_cut and recording is not None:
                return recording
            raise RecordingError(path, number, error.message) from None
    if recording is None:
        raise RecordingError(path, 1, "expected the header of a recording, got an empty file")
    return recording
