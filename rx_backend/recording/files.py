"""Recording files as values."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeAlias

from rx_backend.errors import InvalidArgument
from rx_backend.logger import get_logger
from rx_backend.recording.format import (
    RecordingError,
    add_line,
    append_chunk,
    ending_line,
    header_line,
    read_header,
)
from rx_backend.recording.json_lines import NotJson, read_lines
from rx_backend.recording.model import Recording

__all__ = ("Source", "read_recording", "read_recordings", "write_recording")

Source: TypeAlias = Recording | str | PathLike[str] | Iterable[Recording | str | PathLike[str]]
"""Where recordings come from: one, a file, a directory, or an iterable of these."""

_log = get_logger(__name__)


def read_recording(path: str | PathLike[str]) -> Recording:
    """
    Read the recording of one stream.

    A file that breaks off within a line, or has no last line, is read up to there; ``end`` is None.

    Raises:
        RecordingError: The file can't be read, is of a newer version, or a line is not valid; the
            message names the file, the line and what was expected.
    """
    try:
        with Path(path).open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise RecordingError(path, None, f"can't be read: {error.strerror}") from error


def read_recordings(source: Source) -> list[Recording]:
    """
    Read any number of recordings.

    Args:
        source: A recording, which is returned as it is; a file; a directory, whose ``.jsonl`` files
            are read in the order of their paths; or an iterable of these. In a directory, a file
            that is empty or not a valid recording is skipped, with a warning in the log that names
            it: a full disk or a killed process must not cost the other recordings.

    Raises:
        RecordingError: A file that *source* names is not valid, as in :func:`read_recording`; or a
            directory contains no ``.jsonl`` file.
    """
    if isinstance(source, Recording):
        return [source]
    if not isinstance(source, str | PathLike):
        return [recording for part in source for recording in read_recordings(part)]
    folder = Path(source)
    if not folder.is_dir():
        return [read_recording(source)]
    files = sorted(path for path in folder.rglob("*.jsonl") if path.is_file())
    if not files:
        raise RecordingError(source, None, "expected .jsonl files in the directory, found none")
    return [recording for file in files if (recording := _read_or_skip(file)) is not None]


def write_recording(recording: Recording, path: str | PathLike[str]) -> None:
    """
    Write a recording to a file, replacing an existing one.

    Raises:
        OSError: The file can't be written.
        TypeError: A chunk contains something without a JSON form; nothing is written then.
    """
    lines = bytearray(header_line(recording))
    for timed in recording.chunks:
        append_chunk(lines, timed.time_ms, timed.chunk)
    if recording.end is not None:
        lines += ending_line(recording.end)
    Path(path).write_bytes(lines)


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
