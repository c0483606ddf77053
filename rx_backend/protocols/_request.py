"""The request as a worker receives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import Struct, field

from rx_backend.protocols._output import PromptTokensDetails, TraceLink
from rx_backend.protocols._wire import I32, I64, U8, U16, U32, U64, Sparse, convert, null

__all__ = (
    "BootstrapInfo",
    "GuidedDecodingOptions",
    "OutputOptions",
    "PrefillResult",
    "PreprocessedRequest",
    "SamplingOptions",
    "StopConditions",
)


class StopConditions(Sparse, kw_only=True, omit_defaults=True):
    """
    When the engine must stop. Counts are in tokens; None means the engine's default.

    Visible stop tokens stay in the output, hidden ones do not.
    """

    max_tokens: U32 | None = null()
    stop: list[str] | None = null()
    stop_token_ids: list[U32] | None = null()
    stop_token_ids_visible: list[U32] | None = null()
    stop_token_ids_hidden: list[U32] | None = null()
    min_tokens: U32 | None = null()
    ignore_eos: bool | None = null()
    max_thinking_tokens: U32 | None = null()
    unknown: dict[str, Any] | None = None


class GuidedDecodingOptions(Sparse, kw_only=True, omit_defaults=True):
    """What the output must match: a JSON schema, a regex, a choice or a grammar."""

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    backend: str | None = None
    whitespace_pattern: str | None = None
    structural_tag: Any = None
    unknown: dict[str, Any] | None = None


class SamplingOptions(Sparse, kw_only=True, omit_defaults=True):
    """
    How tokens are sampled; None means the engine's default.

    The runtime keeps fractions in 32 bits: 0.7 arrives as 0.699999988079071.
    """

    n: U8 | None = null()
    best_of: U8 | None = null()
    presence_penalty: float | None = null()
    frequency_penalty: float | None = null()
    repetition_penalty: float | None = null()
    temperature: float | None = null()
    top_p: float | None = null()
    top_k: I32 | None = null()
    min_p: float | None = null()
    use_beam_search: bool | None = null()
    length_penalty: float | None = null()
    seed: I64 | None = null()
    include_stop_str_in_output: bool | None = null()
    guided_decoding: GuidedDecodingOptions | None = null()
    unknown: dict[str, Any] | None = None


class OutputOptions(Sparse, kw_only=True, omit_defaults=True):
    """What a chunk has besides its tokens; the counts are log probabilities per token."""

    no_stop_trim: bool | None = None
    logprobs: U32 | None = null()
    prompt_logprobs: U32 | None = null()
    skip_special_tokens: bool | None = null()
    formatted_prompt: bool | None = null()
    return_tokens_as_token_ids: bool | None = null()
    unknown: dict[str, Any] | None = None


class PrefillResult(Sparse, kw_only=True, omit_defaults=True):
    """The prefill worker's hand-off; only the engine reads ``disaggregated_params``."""

    disaggregated_params: Any
    prompt_tokens_details: PromptTokensDetails | None = None
    unknown: dict[str, Any] | None = None


class BootstrapInfo(Sparse, kw_only=True, omit_defaults=True):
    """The address at which prefill and decode engine transfer the KV cache."""

    bootstrap_host: str
    bootstrap_port: U16
    bootstrap_room: U64
    handoff_id: str | None = None
    unknown: dict[str, Any] | None = None


class PreprocessedRequest(Sparse, kw_only=True, omit_defaults=True):
    """
    A tokenised request.

    The three groups of options may be given as mappings. Fields of type ``dict`` and ``Any`` belong
    to routers and engines and are passed on unchanged, and so is ``unknown``, which keeps the wire
    keys that this version does not know.

    Attributes:
        model: Name of the model; empty in health probes.
        token_ids: The prompt.
        migration_link: Span of the previous worker of a migrated request (row T1).
        annotations: Events that the client requests, as ``name`` or ``name:value``.
        request_timestamp_ms: When the client sent the request, in ms since the epoch.
        is_probe: Whether it is a health check; ``_HEALTH_CHECK`` on the wire (row H1).

    >>> PreprocessedRequest(token_ids=[1], stop_conditions={"max_tokens": 3}).stop_conditions
    StopConditions(max_tokens=3)
    """

    model: str = field(default_factory=str)
    token_ids: list[U32]
    prompt_embeds: str | None = None
    multi_modal_data: dict[str, Any] | None = None
    multi_modal_uuids: dict[str, list[str | None]] | None = None
    mm_routing_info: dict[str, Any] | None = None
    stop_conditions: StopConditions = field(default_factory=StopConditions)
    sampling_options: SamplingOptions = field(default_factory=SamplingOptions)
    output_options: OutputOptions = field(default_factory=OutputOptions)
    eos_token_ids: list[U32] = field(default_factory=list[int])
    mdc_sum: str | None = null()
    annotations: list[str] = field(default_factory=list[str])
    routing: dict[str, Any] | None = None
    router_config_override: dict[str, Any] | None = null()
    prefill_result: PrefillResult | None = None
    encoder_result: dict[str, Any] | None = None
    migration_link: TraceLink | None = None
    bootstrap_info: BootstrapInfo | None = None
    extra_args: Any = None
    kv_hint: dict[str, Any] | None = None
    require_reasoning: bool = False
    router: dict[str, Any] | None = None
    agent_context: dict[str, Any] | None = None
    image_cache_scope: str | None = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    request_timestamp_ms: float | None = None
    is_probe: bool = field(name="_HEALTH_CHECK", default=False)
    unknown: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, kind in _OPTIONS:
            given: object = getattr(self, name)
            if type(given) is not kind and isinstance(given, Mapping):
                setattr(self, name, convert(cast("object", given), kind, f"$.{name}"))


_OPTIONS: tuple[tuple[str, type[Struct]], ...] = (
    ("stop_conditions", StopConditions),
    ("sampling_options", SamplingOptions),
    ("output_options", OutputOptions),
)
