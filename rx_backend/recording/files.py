"""Recording files as values: read one or many, write one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from rx_backend.errors import InvalidArgument
from rx_backend.recording.format import (
    RecordingError,
    append_chunk,
    ending_line,
    header_line,
    read_chunk,
    read_ending,
    read_header,
)
from rx_backend.recording.model import Recording

__all__ = ("AnyPath", "Source", "read_recording", "read_recordings", "write_recording")

AnyPath: TypeAlias = str | PathLike[str]

Source: TypeAlias = Recording | AnyPath | Iterable[Recording | AnyPath]
"""Where recordings come from: one, a file, a directory, or any number of these."""


def read_recording(path: AnyPath) -> Recording:
    """
    Read the recording of one stream.

    A file that breaks off within a line, or has no end, gives what there is up to there; its
    ``end`` is None.

    Raises:
        RecordingError: It can't be read, is of a newer version, or a line does not fit; names the
            file, the line and what was expected.
    """
    try:
        with Path(path).open("rb") as lines:
            return _read(path, lines)
    except OSError as error:
        raise RecordingError(path, None, f"can't be read: {error.strerror}") from error


def read_recordings(source: Source) -> list[Recording]:
    """
    Read any number of recordings.

    Args:
        source: A recording, which is taken as it is; a file; a directory, of which all ``.jsonl``
            files are read, in the order of their names; or an iterable of these.

    Raises:
        RecordingError: As in :func:`read_recording`; or a directory has no such file.
    """
    if isinstance(source, Recording):
        return [source]
    if not isinstance(source, str | PathLike):
        return [recording for part in source for recording in read_recordings(part)]
    folder = Path(source)
    if not folder.is_dir():
        return [read_recording(source)]
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise RecordingError(source, None, "expected .jsonl files in the directory, found none")
    return [read_recording(file) for file in files]


def write_recording(recording: Recording, path: AnyPath) -> None:
    """
    Write a recording as a file, replacing what is there.

    Raises:
        OSError: It can't be written.
        TypeError: A chunk holds something that has no JSON form; nothing is written then.
    """
    lines = bytearray(header_line(recording))
    for timed in recording.chunks:
        append_chunk(lines, timed.time_ms, timed.chunk)
    if recording.end is not None:
        lines += ending_line(recording.end)
    Path(path).write_bytes(lines)


def _read(path: AnyPath, lines: Iterable[bytes]) -> Recording:
    recording: Recording | None = None
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            fields = _fields(line)
            if recording is None:
                recording = Recording(**msgspec.structs.asdict(read_header(fields)))
            else:
                _add(recording, fields)
        except InvalidArgument as error:
            is_cut = isinstance(error, _NotJson) and not line.endswith(b"\n")
            if is_cut and recording is not None:
                return recording
            raise RecordingError(path, number, error.message) from None
    if recording is None:
        raise RecordingError(path, 1, "expected the header of a recording, got an empty file")
    return recording


def _add(recording: Recording, fields: Mapping[str, Any]) -> None:
    if recording.end is not None:
        raise InvalidArgument("expected nothing after the end")
    if "chunk" in fields:
        recording.chunks.append(read_chunk(fields))
    elif "end" in fields:
        recording.end = read_ending(fields)
    else:
        raise InvalidArgument("expected a line with chunk or end")


class _NotJson(InvalidArgument):
    """A line that may be cut short."""


def _fields(line: bytes) -> Mapping[str, Any]:
    try:
        fields = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        raise _NotJson(f"expected a JSON object, got something else: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidArgument(f"expected a JSON object, got {type(fields).__name__}")
    return cast("dict[str, Any]", fields)
