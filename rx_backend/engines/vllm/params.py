"""A request's options as vLLM's ``SamplingParams``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from rx_backend.engines.request_checks import check_options, output_tokens, stop_token_ids
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import GuidedDecodingOptions, PreprocessedRequest

__all__ = ("sampling_params",)

# Options with the same name in vLLM.
_SAMPLING: Final = (
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
)
# Options of vLLM that the wire does not name.
_MORE_SAMPLING: Final = ("allowed_token_ids", "bad_words", "logit_bias")
_OUTPUT: Final = ("logprobs", "prompt_logprobs")
_HONOURED: Final = frozenset(
    {
        *(f"sampling_options.{name}" for name in (*_SAMPLING, *_MORE_SAMPLING, "guided_decoding")),
        *(f"output_options.{name}" for name in _OUTPUT),
        "stop_conditions.min_tokens",
        "stop_conditions.max_thinking_tokens",
    }
)
_GUIDES: Final = ("json", "regex", "choice", "grammar", "structural_tag")


def sampling_params(
    request: PreprocessedRequest, defaults: Mapping[str, Any], context_length: int
) -> Any:
    """
    Return the ``SamplingParams`` for *request*.

    Args:
        request: The request.
        defaults: The model's own values for unset options.
        context_length: Maximum of prompt and output together, in tokens.

    Raises:
        InvalidArgument: An option is out of its range, or vLLM can't honour it; the message names
            it.
    """
    check_options("vLLM", request, _HONOURED)
    vllm = import_module("vllm.sampling_params")
    stop, sampling = request.stop_conditions, request.sampling_options
    more = sampling.unknown or {}
    asked = {
        **{name: getattr(sampling, name) for name in _SAMPLING},
        **{name: more.get(name) for name in _MORE_SAMPLING},
        **{name: getattr(request.output_options, name) for name in _OUTPUT},
        "min_tokens": stop.min_tokens,
        "thinking_token_budget": stop.max_thinking_tokens,
        "ignore_eos": stop.ignore_eos,
        "stop_token_ids": sorted(stop_token_ids(request, ())),
    }
    given = {**defaults, **{name: value for name, value in asked.items() if value is not None}}
    given["max_tokens"] = output_tokens(request, context_length)
    if stop.max_tokens is None and "max_tokens" in defaults:
        given["max_tokens"] = min(given["max_tokens"], defaults["max_tokens"])
    kind = vllm.RequestOutputKind.DELTA
    try:
        if sampling.guided_decoding is not None:
            given["structured_outputs"] = _guide(sampling.guided_decoding)
        return vllm.SamplingParams.from_optional(**given, output_kind=kind, detokenize=False)
    except (TypeError, ValueError, import_module("vllm.exceptions").VLLMClientError) as error:
        raise InvalidArgument(str(error)) from error


def _guide(options: GuidedDecodingOptions) -> Any:
    """Return ``StructuredOutputsParams``; options that vLLM can't honour are rejected."""
    for name in ("backend", "whitespace_pattern"):
        if getattr(options, name) is not None:
            raise InvalidArgument(f"vLLM can't honour sampling_options.guided_decoding.{name}")
    given = {name: getattr(options, name) for name in _GUIDES}
    if given["structural_tag"] is not None and not isinstance(given["structural_tag"], str):
        given["structural_tag"] = json.dumps(given["structural_tag"])
    return import_module("vllm.sampling_params").StructuredOutputsParams(**given)
