"""The hand-off from a prefill engine to its decode peer, without a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import to_builtins

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest

__all__ = ("hand_off", "take_over")

_WHERE = "prefill_result.disaggregated_params"


def hand_off(engine: str, request: PreprocessedRequest, request_id: str) -> dict[str, Any]:
    """Return the ``disaggregated_params`` of a prefill terminal, for the same kind of engine."""
    prompt_tokens = len(request.token_ids)
    return {"engine": engine, "prefill_id": request_id, "prompt_tokens": prompt_tokens}


def take_over(engine: str, request: PreprocessedRequest) -> None:
    """
    Check that *request* carries the result of `hand_off` for the same prompt.

    Raises:
        InvalidArgument: There is no hand-off, or it belongs to another engine or prompt; the message
            names the field.
    """
    result: object = request.prefill_result
    if result is None:
        raise InvalidArgument("prefill_result is missing: decode mode needs a prefill worker's")
    params = _mapping(_mapping(result, "prefill_result").get("disaggregated_params"), _WHERE)
    if params.get("engine") != engine:
        raise InvalidArgument(f"{_WHERE}.engine must be {engine!r}, got {params.get('engine')!r}")
    expected = len(request.token_ids)
    if params.get("prompt_tokens") != expected:
        raise InvalidArgument(
            f"{_WHERE}.prompt_tokens is {params.get('prompt_tokens')!r}, "
            f"but the request has {expected} prompt tokens"
        )


def _mapping(value: object, where: str) -> Mapping[str, object]:
    plain: object = to_builtins(value)
    if isinstance(plain, dict):
        return cast("dict[str, object]", plain)
    raise InvalidArgument(f"{where} must be an object, got {plain!r}")
