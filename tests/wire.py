"""What goes over the wire, to JSON and back."""

from __future__ import annotations

import msgspec

from rx_backend import Annotated, LLMEngineOutput, PreprocessedRequest
from rx_backend.protocols import convert_annotated, convert_output, convert_request, to_builtins

__all__ = ("decode_annotated", "decode_output", "decode_request", "encode")


def encode(value: object) -> bytes:
    return msgspec.json.encode(to_builtins(value))


def decode_request(data: bytes | str) -> PreprocessedRequest:
    return convert_request(msgspec.json.decode(data))


def decode_output(data: bytes | str) -> LLMEngineOutput:
    return convert_output(msgspec.json.decode(data))


def decode_annotated(data: bytes | str) -> Annotated[LLMEngineOutput]:
    return convert_annotated(msgspec.json.decode(data))
