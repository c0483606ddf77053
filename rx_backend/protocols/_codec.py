"""Conversion between the types, plain data and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan
from struct import unpack
from typing import Any, cast
from uuid import UUID

import msgspec
from msgspec.structs import replace

from rx_backend.errors import BackendError, InvalidArgument
from rx_backend.protocols._annotated import Annotated
from rx_backend.protocols._error_wire import error_from_wire, error_to_wire
from rx_backend.protocols._finish_reason import FinishReason, read_finish_word
from rx_backend.protocols._output import LLMEngineOutput
from rx_backend.protocols._request import PreprocessedRequest
from rx_backend.protocols._wire import convert, plain, to_wire

__all__ = (
    "convert_annotated",
    "convert_output",
    "convert_request",
    "to_builtins",
)


def to_builtins(value: object) -> Any:
    """
    Return *value*, a type of this package or plain data, as dicts, lists and scalars.

    JSON has only finite numbers: ``msgspec.json.encode`` writes null for others.

    Raises:
        TypeError: A value inside has no JSON form.

    >>> to_builtins(LLMEngineOutput.stop())["finish_reason"]
    'stop'
    """
    if isinstance(value, LLMEngineOutput):
        return _output_to_wire(value)
    if isinstance(value, Annotated):
        return _annotated_to_wire(cast("Annotated[object]", value))
    if isinstance(value, msgspec.Struct):
        return to_wire(value)
    if isinstance(value, BackendError):
        return error_to_wire(value)
    return plain(value)


def convert_request(request: Mapping[str, Any] | PreprocessedRequest) -> PreprocessedRequest:
    """
    Return a request from a plain mapping; a request is returned unchanged.

    Unknown keys are kept in ``unknown``. Frontends that run with ``DYN_TOKEN_IDS_AS_BYTES`` send
    token ids as bytes, 4 little-endian ones per token, and the id of a hand-off as 16 bytes.

    Raises:
        InvalidArgument: A field is invalid; the message names its path and what was expected:
            ``$.token_ids[1]: expected int >= 0, got -1``.
    """
    if isinstance(request, Mapping):
        packed = request.get("token_ids")
        if isinstance(packed, (bytes, bytearray, memoryview)):
            request = {**request, "token_ids": _unpack(bytes(cast("bytes", packed)))}
        meeting = request.get("bootstrap_info")
        if isinstance(meeting, Mapping):
            typed = cast("Mapping[str, Any]", meeting)
            request = {**request, "bootstrap_info": _with_text_id(typed)}
    return convert(request, PreprocessedRequest)


def convert_output(output: Mapping[str, Any] | LLMEngineOutput) -> LLMEngineOutput:
    """
    Return a chunk from a plain mapping, as Dynamo's Python engines yield it (row E2).

    ``finish_reason`` is read by `FinishReason.parse`. An unknown word is also kept in
    ``stop_reason``, unless that is set; empty text means no reason. A null among the log
    probabilities is minus infinity. A chunk is returned unchanged, or as a copy if its reason had
    to be parsed.

    Raises:
        InvalidArgument: A field is invalid; as in `convert_request`.

    >>> convert_output({"token_ids": [1], "finish_reason": "abort"})
    LLMEngineOutput(token_ids=[1], finish_reason=FinishReason.CANCELLED)
    >>> convert_output({"token_ids": [1], "finish_reason": "tool_calls"})
    LLMEngineOutput(token_ids=[1], finish_reason=FinishReason.STOP, stop_reason='tool_calls')
    """
    return _to_output(output)


def convert_annotated(item: Mapping[str, Any]) -> Annotated[LLMEngineOutput]:
    """
    Return an item of a stream from a plain mapping.

    Raises:
        InvalidArgument: A field is invalid; as in `convert_request`.
    """
    fields = convert(item, _Envelope)
    data = None if fields.data is None else _to_output(fields.data, "$.data")
    error = None if fields.error is None else error_from_wire(fields.error, "$.error")
    if error is None:
        return Annotated(data, fields.id, fields.event, fields.comment)
    result: Annotated[LLMEngineOutput] = Annotated.from_error(error)
    result.data, result.id, result.event = data, fields.id, fields.event
    result.comment = fields.comment
    return result


class _Envelope(msgspec.Struct, kw_only=True):
    """The wire form of an item."""

    data: Any = None
    id: str | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: Any = None
    unknown: dict[str, Any] | None = None


def _to_output(value: object, where: str = "$") -> LLMEngineOutput:
    if type(value) is dict or isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        text: object = fields.get("finish_reason")
        if isinstance(text, str):
            fields = {**fields, **_read_text(text, fields.get("stop_reason"))}
        try:
            return convert(fields, LLMEngineOutput, where)
        except InvalidArgument:
            return convert(_with_numbers(fields), LLMEngineOutput, where)
    if isinstance(value, LLMEngineOutput):
        return _with_reason(value)
    raise InvalidArgument(
        f"{where}: expected an object, got {type(value).__name__}: "
        "a chunk is an LLMEngineOutput, or a mapping of its shape"
    )


_NOT_FINITE: dict[object, float] = {None: -inf, "-Infinity": -inf, "Infinity": inf, "NaN": nan}


def _with_numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return *fields* with minus infinity for each log probability that is null in JSON."""
    names = {"cum_log_probs", "log_probs", "top_logprobs"} & fields.keys()
    return {**fields, **{name: fields[name] and _numbers_in(fields[name]) for name in names}}


def _numbers_in(value: Any, depth: int = 2) -> Any:
    if isinstance(value, list) and depth:
        return [_numbers_in(item, depth - 1) for item in cast("list[Any]", value)]
    if isinstance(value, dict) and "logprob" in value:
        entry = cast("dict[str, Any]", value)
        return {**entry, "logprob": _numbers_in(entry["logprob"], 0)}
    if value is None or isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    return cast("object", value)


def _with_reason(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return *chunk* with its finish reason as a `FinishReason`."""
    reason: Any = chunk.finish_reason
    if reason is None or isinstance(reason, FinishReason):
        return chunk
    if isinstance(reason, str):
        return replace(chunk, **_read_text(reason, chunk.stop_reason))
    return replace(chunk, finish_reason=FinishReason.parse(reason))


def _read_text(text: str, stop_reason: object) -> dict[str, Any]:
    # Some engines write "" on every chunk but the last.
    reason, word = read_finish_word(text) if text else (None, None)
    return {"finish_reason": reason, "stop_reason": word if stop_reason is None else stop_reason}


# The runtime writes these fields on every chunk, even if they are null.
_ALWAYS: dict[str, Any] = {
    "token_ids": None,
    "tokens": None,
    "text": None,
    "output_type": "text",
    "cum_log_probs": None,
    "log_probs": None,
    "top_logprobs": None,
    "finish_reason": None,
    "index": None,
}


def _output_to_wire(output: LLMEngineOutput) -> dict[str, Any]:
    # Without a finish reason no hook is needed, which halves the time.
    ordinary = output.finish_reason is None and output.unknown is None
    wire = _ALWAYS | (msgspec.to_builtins(output) if ordinary else to_wire(output))
    if wire["token_ids"] is None:
        wire["token_ids"] = []
    return wire


def _annotated_to_wire(item: Annotated[object]) -> dict[str, Any]:
    wire: dict[str, Any] = {}
    if item.data is not None:
        wire["data"] = to_builtins(item.data)
    if item.id is not None:
        wire["id"] = item.id
    if item.event is not None:
        wire["event"] = item.event
    if item.comment is not None:
        wire["comment"] = item.comment
    if item.error is not None:
        wire["error"] = error_to_wire(item.error)
    return wire


def _with_text_id(meeting: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the bootstrap info of a hand-off with its id as text."""
    packed = meeting.get("handoff_id")
    if not isinstance(packed, bytes) or len(packed) != 16:
        return meeting
    return {**meeting, "handoff_id": str(UUID(bytes=packed))}


def _unpack(packed: bytes) -> list[int]:
    count, rest = divmod(len(packed), 4)
    if rest:
        raise InvalidArgument(
            f"$.token_ids: expected 4 bytes per packed token, got {len(packed)} bytes"
        )
    return list(unpack(f"<{count}I", packed))
