"""The lines of a recording file, written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, convert_output
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
    A file is not a valid recording; the message says where, and what was expected.

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
    """Return the first line of a file."""
    known = {name: getattr(recording, name) for name in _HEADER}
    present = {name: value for name, value in known.items() if value is not None}
    return _encoder.encode({"format": _FORMAT, "version": _VERSION, **present}) + b"\n"


def append_chunk(buffer: bytearray, time_ms: float, chunk: LLMEngineOutput) -> None:
    """
    Append the line of a chunk to *buffer*.

    Raises:
        TypeError: The chunk contains something without a JSON form; *buffer* may end with a part
            of the line.
    """
    if (
        chunk.unknown is None
        and chunk.log_probs is None
        and chunk.cum_log_probs is None
        and chunk.top_logprobs is None
    ):
        _encoder.encode_into(TimedChunk(time_ms, chunk), buffer, -1)
    else:
        known = msgspec.to_builtins(replace(chunk, unknown=None), enc_hook=_plain)
        fields = _finite({**(chunk.unknown or {}), **known})
        _encoder.encode_into({"time_ms": time_ms, "chunk": fields}, buffer, -1)
    buffer += b"\n"


def ending_line(ending: Ending) -> bytes:
    """Return the last line of a file."""
    return _encoder.encode(ending) + b"\n"


def _finite(value: Any) -> Any:
    """Return *value* with a text, such as ``"-Infinity"``, for each number that JSON can't hold."""
    if isinstance(value, list):
        return [_finite(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if isinstance(value, FinishReason):
        return value.to_json()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"no JSON form for {type(value).__name__}")


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
    Return the recording that a file's first line begins.

    Raises:
        InvalidArgument: It is not a header, or the header of a newer version.
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


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_version = msgspec.json.Decoder(_Version)
_recording = msgspec.json.Decoder(Recording)
_line = msgspec.json.Decoder(_Line)
_ending = msgspec.json.Decoder(Ending)
