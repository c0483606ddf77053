"""A request in the form of a server with OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from rx_backend.engines.openai.server import Server, ServerKind
from rx_backend.engines.request_checks import (
    check_options,
    check_prompt,
    output_tokens,
    stop_token_ids,
)
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest

__all__ = ("chat_of", "check_request", "path_and_body")

# Fields of a chat request that are passed on unchanged.
_CHAT: Final = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "chat_template_kwargs",
)
_PLAIN: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def chat_of(request: PreprocessedRequest) -> dict[str, Any] | None:
    """Return the chat in ``extra_args``, if that has ``messages``: a request without token ids."""
    extra: object = request.extra_args
    if not isinstance(extra, Mapping) or "messages" not in extra:
        return None
    given = cast("Mapping[str, Any]", extra)
    return {name: given[name] for name in _CHAT if given.get(name) is not None}


def check_request(request: PreprocessedRequest, server: Server) -> None:
    """
    Reject a request that the server would answer wrongly.

    Raises:
        InvalidArgument: Its prompt is missing, too long or has invalid ids, or it has options that
            this kind of server does not honour; the message names each of them.
    """
    if chat_of(request) is None:
        check_prompt(request, context_length=server.context_length, vocab_size=None)
    name = f"OpenAIEngine with a server of the kind {server.kind.name!r}"
    check_options(name, request, server.kind.honours)
    refused = [option for option in _asked_for(request) if not _knows(server.kind, option)]
    if refused:
        raise InvalidArgument(f"{name} can't honour {', '.join(refused)}")


def path_and_body(
    request: PreprocessedRequest, server: Server, prompt: str | list[int]
) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request; a llama-server has an endpoint with token ids."""
    chat = chat_of(request)
    is_llama = server.kind.name == "llama-server"
    options = _options(request, server)
    if chat is None and is_llama:
        return "/completion", {"prompt": prompt, "stream": True, **options}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    head: dict[str, Any] = {"model": server.model, **stream, **options}
    if chat is None:
        return "/v1/completions", head | {"prompt": prompt}
    return "/v1/chat/completions", head | chat


def _options(request: PreprocessedRequest, server: Server) -> dict[str, Any]:
    stop, sampling = request.stop_conditions, request.sampling_options
    honours, is_llama = server.kind.honours, server.kind.name == "llama-server"
    values: dict[str, Any] = {
        name: getattr(sampling, name) for name in _PLAIN if f"sampling_options.{name}" in honours
    }
    if sampling.top_k == 0:
        values["top_k"] = -1  # some accept only one value for "all"
    values["n"] = sampling.n if (sampling.n or 1) > 1 else None
    values["stop"] = stop.stop or None
    values["min_tokens"] = stop.min_tokens or None
    values["ignore_eos"] = stop.ignore_eos or None
    values["max_tokens"] = _max_tokens(request, server)
    values["stop_token_ids"] = sorted(_own_stop_ids(request)) or None
    values |= _guided(request, server.kind)
    top = request.output_options.logprobs
    if is_llama and chat_of(request) is None:
        values["repeat_penalty"] = values.pop("repetition_penalty")
        values["return_tokens"] = True
        values["n_probs"] = None if top is None else max(top, 1)
        values["response_fields"] = _LLAMA_FIELDS
    else:
        values |= _ids_and_log_probs(server.kind, top, is_chat=chat_of(request) is not None)
    return {name: value for name, value in values.items() if value is not None}


# Without these the last event repeats the whole prompt.
_LLAMA_FIELDS: Final = (
    "content",
    "tokens",
    "index",
    "stop",
    "stop_type",
    "stopping_word",
    "tokens_evaluated",
    "tokens_predicted",
    "timings",
)


def _ids_and_log_probs(kind: ServerKind, top: int | None, *, is_chat: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if kind.name == "vllm" or (kind.name == "sglang" and not is_chat):
        values["return_token_ids"] = True
    if top is not None:
        values |= {"logprobs": True, "top_logprobs": top} if is_chat else {"logprobs": top}
        if kind.name == "vllm":
            values["return_tokens_as_token_ids"] = True
    return values


def _max_tokens(request: PreprocessedRequest, server: Server) -> int | None:
    """Return the maximum of tokens; many servers take None as 16."""
    if server.context_length is None or chat_of(request) is not None:
        return request.stop_conditions.max_tokens
    return output_tokens(request, server.context_length)


def _own_stop_ids(request: PreprocessedRequest) -> frozenset[int]:
    """Return the stop tokens other than the model's own, which the server knows."""
    return stop_token_ids(request, ()).difference(request.eos_token_ids)


def _guided(request: PreprocessedRequest, kind: ServerKind) -> dict[str, Any]:
    asked = dict(_guided_fields(request))
    values = {kind.guided[name]: value for name, value in asked.items() if name in kind.guided}
    schema = values.get("json_schema")
    if kind.name == "vllm":
        return {"structured_outputs": values} if values else {}
    if kind.name == "sglang" and schema is not None and not isinstance(schema, str):
        values["json_schema"] = msgspec.json.encode(schema).decode()
    if kind.name == "llama-server" and isinstance(schema, str):
        values["json_schema"] = msgspec.json.decode(schema)
    return values


def _guided_fields(request: PreprocessedRequest) -> Iterator[tuple[str, Any]]:
    guided = request.sampling_options.guided_decoding
    if guided is not None:
        for each in msgspec.structs.fields(guided):
            value = getattr(guided, each.name)
            if value is not None:
                yield each.name, value


def _asked_for(request: PreprocessedRequest) -> Iterator[str]:
    """Yield the options that `check_options` accepts for others, and only a server can honour."""
    if request.stop_conditions.ignore_eos:
        yield "stop_conditions.ignore_eos"
    if _own_stop_ids(request):
        yield "stop_conditions.stop_token_ids"
    if request.sampling_options.include_stop_str_in_output:
        yield "sampling_options.include_stop_str_in_output"
    if request.output_options.skip_special_tokens is False:
        yield "output_options.skip_special_tokens"
    for name, _ in _guided_fields(request):
        yield f"sampling_options.guided_decoding.{name}"


def _knows(kind: ServerKind, option: str) -> bool:
    guided = option.removeprefix("sampling_options.guided_decoding.")
    return option in kind.honours or guided in kind.guided
