"""Kinds of servers with OpenAI's API, and their abilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw, Struct, field

from rx_backend.context import RequestContext
from rx_backend.engines.openai.client import OpenAIClient
from rx_backend.errors import InvalidArgument

__all__ = ("KINDS", "Server", "ServerKind", "ask_server")


class ServerKind(Struct, frozen=True):
    """
    A kind of server.

    Attributes:
        name: Its name.
        honours: The options that it honours, as ``sampling_options.top_k``.
        takes_ids: Whether a prompt may be token ids; None if that must be tried.
        guided: The fields of ``guided_decoding`` that it honours, with its names for them.
    """

    name: str
    honours: frozenset[str]
    takes_ids: bool | None = False
    guided: dict[str, str] = {}


class Server(Struct, frozen=True):
    """
    A server that has responded.

    Attributes:
        kind: Its kind.
        model: The model's name on the server.
        takes_ids: Whether a prompt may be token ids.
        context_length: Maximum of prompt and output together, in tokens; None if unknown.
        slots: How many requests it works on at a time; None if unknown.
    """

    kind: ServerKind
    model: str
    takes_ids: bool
    context_length: int | None = None
    slots: int | None = None


_BASIC: Final = frozenset(f"sampling_options.{name}" for name in ("temperature", "top_p", "seed"))
_OPENAI: Final = _BASIC | {
    "sampling_options.n",
    "sampling_options.presence_penalty",
    "sampling_options.frequency_penalty",
}
_OPEN_WEIGHTS: Final = _OPENAI | {
    "sampling_options.top_k",
    "sampling_options.min_p",
    "sampling_options.repetition_penalty",
    "sampling_options.guided_decoding",
    "stop_conditions.ignore_eos",
}
# With only token ids, the frontend makes the text and cuts it.
_GIVES_IDS: Final = _OPEN_WEIGHTS | {
    "stop_conditions.min_tokens",
    "stop_conditions.stop_token_ids",
    "sampling_options.include_stop_str_in_output",
    "output_options.skip_special_tokens",
}
_STRUCTURED: Final = ("json", "regex", "choice", "grammar", "structural_tag", "whitespace_pattern")

KINDS: Final[Mapping[str, ServerKind]] = {
    kind.name: kind
    for kind in (
        ServerKind(
            "vllm",
            _GIVES_IDS | {"output_options.logprobs"},
            takes_ids=True,
            guided={name: name for name in _STRUCTURED},
        ),
        ServerKind(
            "sglang",
            _GIVES_IDS,
            takes_ids=True,
            guided={"json": "json_schema", "regex": "regex", "grammar": "ebnf"},
        ),
        ServerKind(
            "llama-server",
            _OPEN_WEIGHTS | {"output_options.logprobs"},
            takes_ids=True,
            guided={"json": "json_schema", "grammar": "grammar"},
        ),
        ServerKind(
            "tgi",
            _BASIC | {"sampling_options.frequency_penalty", "sampling_options.repetition_penalty"},
        ),
        ServerKind("ollama", _OPENAI - {"sampling_options.n"}),
        ServerKind("openai", _OPENAI, takes_ids=None),
    )
}
"""The kinds of servers, by name; ``openai`` is any other."""

_OWNERS: Final = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server"}


async def ask_server(
    client: OpenAIClient, kind: str | None, model: str | None, context_length: int | None
) -> Server:
    """
    Detect a server's kind and limits.

    Args:
        client: The client for it.
        kind: A key of `KINDS`; None to detect it.
        model: The model's name on the server; None for the first one listed.
        context_length: Maximum of prompt and output together, in tokens; None to detect it.

    Raises:
        BackendError: It could not be reached.
        InvalidArgument: It lists no model, and none is given.
    """
    listed = await client.get("/v1/models", _Models)
    models = (listed and listed.data) or []
    entry = next((each for each in models if model in {None, each.id}), _Model())
    name = model or entry.id
    if not name:
        raise InvalidArgument(f"{client.url} lists no model at /v1/models: pass its name as model")
    found = KINDS[kind or await _kind_of(client, entry)]
    length, slots = entry.max_model_len, None
    if found.name == "llama-server" and (props := await client.get("/props", _Props)):
        length, slots = props.default_generation_settings.n_ctx, props.total_slots
    elif found.name == "tgi" and (info := await client.get("/info", _TgiInfo)):
        length = info.max_total_tokens
    takes_ids = found.takes_ids
    if takes_ids is None:
        takes_ids = await _takes_ids(client, name)
    return Server(found, name, takes_ids, context_length or length, slots)


class _Model(Struct):
    id: str = ""
    owned_by: str | None = None
    max_model_len: int | None = None


class _Models(Struct):
    data: list[_Model] | None = None


class _Generation(Struct):
    n_ctx: int | None = None


class _Props(Struct):
    default_generation_settings: _Generation = field(default_factory=_Generation)
    total_slots: int | None = None


class _TgiInfo(Struct):
    max_total_tokens: int


async def _kind_of(client: OpenAIClient, entry: _Model) -> str:
    if entry.owned_by in _OWNERS:
        return _OWNERS[entry.owned_by]
    if await client.get("/info", _TgiInfo):
        return "tgi"
    return "ollama" if await client.get("/api/version", Raw) else "openai"


async def _takes_ids(client: OpenAIClient, model: str) -> bool:
    """Return whether the server accepts a prompt of one token id."""
    asked = {"model": model, "prompt": [1], "max_tokens": 1, "stream": True}
    try:
        async with client.post("/v1/completions", asked, RequestContext(), {}):
            return True
    except InvalidArgument:
        return False
