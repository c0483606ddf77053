"""Writing and reading the lines of a recording file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike, fspath
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from operators.assembly import encodable
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import LLMEngineOutput, convert_output, to_builtins
from rx_backend.recording.json_lines import decode_line
from rx_backend.recording.model import Ending, Recording, TimedChunk, TimeMs

__all__ = (
    "RecordingError",
    "add_line",
    "append_chunk",
    "ending_line",
    "header_line",
    "read_header",
)

_FORMAT: Final = "rx-backend-recording"
_VERSION: Final = 1
_HEADER: Final = ("request_id", "model", "mode", "prompt_tokens", "prompt_token_ids")


class RecordingError(InvalidArgument):
    """
    A file is not a valid recording; the message names the place and what was expected.

    Attributes:
        path: The file.
        line: The line, counted from 1; None for the file as a whole.
    """

    path: str
    line: int | None

    def __init__(self, path: str | PathLike[str], line: int | None, problem: str) -> None:
        self.path = fspath(path)
        self.line = line
        where = f"{self.path}, line {line}" if line else self.path
        super().__init__(f"recording {where}: {problem}")


# Writing.


def header_line(recording: Recording) -> bytes:
    """Return the first line of a file; text that UTF-8 can't express is repaired (row P10)."""
    known = {name: getattr(recording, name) for name in _HEADER}
    present = {name: value for name, value in known.items() if value is not None}
    return _line_of({"format": _FORMAT, "version": _VERSION, **present})


def append_chunk(buffer: bytearray, time_ms: float, chunk: LLMEngineOutput) -> None:
    """
    Append the line of a chunk to *buffer*; text that UTF-8 can't express is repaired (row P10).

    Raises:
        TypeError: The chunk contains something without a JSON form; *buffer* may end with a part of
            the line.
    """
    begin = len(buffer)
    if (
        chunk.unknown is None
        and chunk.log_probs is None
        and chunk.cum_log_probs is None
        and chunk.top_logprobs is None
    ):
        with suppress(UnicodeEncodeError):
            _encoder.encode_into(TimedChunk(time_ms, chunk), buffer, -1)
            buffer += b"\n"
            return
        del buffer[begin:]
    known = msgspec.to_builtins(replace(chunk, unknown=None), enc_hook=to_builtins)
    fields = _writable({**(chunk.unknown or {}), **known})
    _encoder.encode_into({"time_ms": time_ms, "chunk": fields}, buffer, -1)
    buffer += b"\n"


def ending_line(ending: Ending) -> bytes:
    """Return the last line of a file; text that UTF-8 can't express is repaired (row P10)."""
    return _line_of(ending)


def _line_of(value: object) -> bytes:
    try:
        return _encoder.encode(value) + b"\n"
    except UnicodeEncodeError:
        return _encoder.encode(_writable(msgspec.to_builtins(value))) + b"\n"


def _writable(value: Any) -> Any:
    """
    Return *value* with replacements for what JSON can't represent.

    A number that is not finite becomes a text, such as ``"-Infinity"``, and a lone surrogate
    U+FFFD.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {_writable(key): _writable(item) for key, item in items}
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


# Reading. The caller adds the file and the line to an InvalidArgument raised here.


class _Version(Struct):
    format: str = ""
    version: Annotated[int, Meta(ge=1)] | None = None


class _Line(Struct):
    time_ms: TimeMs
    chunk: dict[str, Any] | None = None
    end: str | None = None


def read_header(line: bytes) -> Recording:
    """
    Return the recording for a file's first line.

    Raises:
        InvalidArgument: It is not a header, or has a newer version.
    """
    found = decode_line(line, _version)
    if found.format != _FORMAT or found.version is None:
        header = f'{{"format":"{_FORMAT}","version":{_VERSION},...}}'
        raise InvalidArgument(f"expected the header {header} of a recording")
    if found.version > _VERSION:
        raise InvalidArgument(
            f"$.version: expected at most {_VERSION}, got {found.version}: "
            "it was recorded by a newer version of rx-backend"
        )
    recording = decode_line(line, _recording)
    recording.chunks, recording.end = [], None
    return recording


def add_line(recording: Recording, line: bytes) -> None:
    """
    Add the chunk or the end on a line to *recording*.

    Raises:
        InvalidArgument: The line is not valid, or follows the end.
    """
    if recording.end is not None:
        raise InvalidArgument("expected nothing after the end")
    found = decode_line(line, _line)
    if found.chunk is not None:
        try:
            chunk = convert_output(found.chunk)
        except InvalidArgument as error:
            raise InvalidArgument(f"$.chunk{error.message.removeprefix('$')}") from None
        recording.chunks.append(TimedChunk(found.time_ms, chunk))
    elif found.end is not None:
        recording.end = decode_line(line, _ending)
    else:
        raise InvalidArgument("expected a line with chunk or end")


_encoder = msgspec.json.Encoder(enc_hook=to_builtins)
_version = msgspec.json.Decoder(_Version)
_recording = msgspec.json.Decoder(Recording)
_line = msgspec.json.Decoder(_Line)
_ending = msgspec.json.Decoder(Ending)
