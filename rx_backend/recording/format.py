"""The lines of a recording file: how they are written, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, convert_output
from rx_backend.recording.model import Ending, RecordedRequest, TimedChunk, TimeMs

__all__ = (
    "FORMAT",
    "VERSION",
    "RecordingError",
    "append_chunk",
    "check_version",
    "chunk_json",
    "chunk_of",
    "ending_line",
    "header_line",
    "read_chunk",
    "read_ending",
    "read_header",
)

FORMAT: Final = "rx-backend-recording"
VERSION: Final = 1

S = TypeVar("S", bound=Struct)


class RecordingError(InvalidArgument):
    """
    A file that should hold recordings does not; says where, and what was expected.

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


class _ChunkLine(Struct, gc=False):
    time_ms: float
    chunk: object


def header_line(request: RecordedRequest) -> bytes:
    """Return the first line of a file."""
    known = {name: getattr(request, name) for name in RecordedRequest.__struct_fields__}
    given = {name: value for name, value in known.items() if value is not None}
    return _encoder.encode({"format": FORMAT, "version": VERSION, **given}) + b"\n"


def append_chunk(
    buffer: bytearray, time_ms: float, chunk: LLMEngineOutput | Mapping[str, Any]
) -> None:
    """
    Append the line of a chunk to *buffer*.

    Raises:
        TypeError: Something in the chunk has no JSON form; the buffer may end with a part of it.
    """
    _encoder.encode_into(_ChunkLine(time_ms, _encodable(chunk)), buffer, -1)
    buffer += b"\n"


def ending_line(ending: Ending) -> bytes:
    """Return the last line of a file."""
    return _encoder.encode(ending) + b"\n"


def chunk_json(chunk: LLMEngineOutput) -> bytes:
    """
    Return the JSON of a chunk, without what is not set.

    Raises:
        TypeError: Something in the chunk has no JSON form.
    """
    return _encoder.encode(_encodable(chunk))


def _encodable(chunk: LLMEngineOutput | Mapping[str, Any]) -> object:
    """
    Return what the JSON of a chunk is made from: for an ordinary one, itself.

    Keys that this version does not know stand beside the others, as they came. JSON has no
    infinity, which log probabilities may well be: there it is a text, such as ``"-Infinity"``.
    """
    if not isinstance(chunk, LLMEngineOutput) or (
        chunk.unknown is None
        and chunk.log_probs is None
        and chunk.cum_log_probs is None
        and chunk.top_logprobs is None
    ):
        return chunk
    known = msgspec.to_builtins(replace(chunk, unknown=None), enc_hook=_plain)
    for name in _LOG_PROBS & known.keys():
        known[name] = _map_floats(known[name], _finite)
    return {**(chunk.unknown or {}), **known}


def _plain(value: object) -> object:
    if isinstance(value, FinishReason):
        return value.to_json()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"no JSON form for {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


# Reading. What raises InvalidArgument here says what was expected; the caller knows where.


def read_header(fields: Mapping[str, Any]) -> RecordedRequest:
    """
    Read the first line.

    Raises:
        InvalidArgument: It is no header, or one of a newer version.
    """
    if fields.get("format") != FORMAT:
        raise InvalidArgument(f'expected the header {{"format":"{FORMAT}",...}} of a recording')
    check_version(fields.get("version"))
    return _convert(fields, RecordedRequest)


def check_version(version: object) -> None:
    """
    Do nothing when this library can read a recording of *version*.

    Raises:
        InvalidArgument: It is too new, or no version.
    """
    if type(version) is not int or version < 1:
        raise InvalidArgument(f"$.version: expected a whole number from 1, got {version!r}")
    if version > VERSION:
        raise InvalidArgument(
            f"$.version: expected at most {VERSION}, got {version}: "
            "it was recorded by a newer version of rx-backend"
        )


def read_chunk(fields: Mapping[str, Any]) -> TimedChunk:
    """
    Read the line of a chunk.

    Raises:
        InvalidArgument: It does not fit.
    """
    time_ms = _convert(fields, _Time).time_ms
    chunk = fields["chunk"]
    if not isinstance(chunk, dict):
        raise InvalidArgument(f"$.chunk: expected an object, got {type(chunk).__name__}")
    try:
        return TimedChunk(time_ms, chunk_of(cast("dict[str, Any]", chunk)))
    except InvalidArgument as error:
        raise InvalidArgument(f"$.chunk{error.message.removeprefix('$')}") from None


def read_ending(fields: Mapping[str, Any]) -> Ending:
    """
    Read the last line.

    Raises:
        InvalidArgument: It does not fit.
    """
    return _convert(fields, Ending)


def chunk_of(fields: dict[str, Any]) -> LLMEngineOutput:
    """
    Make a chunk of its JSON form.

    Raises:
        InvalidArgument: It does not fit.
    """
    for name in _LOG_PROBS & fields.keys():
        fields[name] = _map_floats(fields[name], _revived)
    return convert_output(fields)


class _Time(Struct):
    time_ms: TimeMs


def _convert(fields: Mapping[str, Any], cls: type[S]) -> S:
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).replace("`", "").partition(" - at ")
        raise InvalidArgument(f"{path or '$'}: {problem[:1].lower()}{problem[1:]}") from None


# Log probabilities that are no finite numbers.

_LOG_PROBS: Final = frozenset({"cum_log_probs", "log_probs", "top_logprobs"})
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _map_floats(value: Any, change: Any) -> Any:
    """Change the numbers in a field of log probabilities, which are at most in lists and objects."""
    if isinstance(value, list):
        return [_map_floats(item, change) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {**fields, "logprob": change(fields["logprob"])} if "logprob" in fields else fields
    return change(value)


def _finite(value: object) -> object:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _revived(value: object) -> object:
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
