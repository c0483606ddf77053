"""Hypothesis strategies for what travels on the wire."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from rx_backend.errors import KINDS, BackendError
from rx_backend.protocols import (
    BootstrapInfo,
    CompletionTokensDetails,
    CompletionUsage,
    FinishReason,
    GuidedDecodingOptions,
    LLMEngineOutput,
    OutputOptions,
    PrefillResult,
    PreprocessedRequest,
    PromptTokensDetails,
    SamplingOptions,
    StopConditions,
    TopLogprob,
    TraceLink,
)

__all__ = ("errors", "finish_reasons", "letters", "outputs", "requests", "texts", "unknown_keys")


def whole(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


# Fractions that 32 bits hold: the runtime rounds the others.
fractions = st.floats(-8, 8, width=16)
# Any character would cost seconds, for the table of all that there are.
letters = st.sampled_from("aZ09 _-:./'\"\\\n\t\0\x7f\u00e9\u2028\u6f22\U0001f600")
texts = st.text(letters, max_size=5)
scalars = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | fractions | texts
objects = st.dictionaries(texts, scalars | st.lists(scalars, max_size=2), max_size=2)
ids = st.lists(whole(32), max_size=3)
unknown_keys = st.dictionaries(
    texts.map("x_{}".format) | st.just("unknown"), scalars | objects, min_size=1, max_size=2
)

finish_reasons = st.sampled_from(
    [
        FinishReason.EOS,
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.CANCELLED,
        FinishReason.CONTENT_FILTER,
    ]
) | texts.map(FinishReason.error)
links = st.builds(TraceLink, texts, texts)
prompt_details = st.builds(PromptTokensDetails, cached_tokens=st.none() | whole(32))
completion_details = st.builds(CompletionTokensDetails, reasoning_tokens=st.none() | whole(32))


def some(
    kind: type[Any],
    needed: dict[str, st.SearchStrategy[Any]] | None = None,
    /,
    **optional: st.SearchStrategy[Any],
) -> st.SearchStrategy[Any]:
    """Make instances of *kind* with what is needed and any of the optional fields set."""

    def build(fields: dict[str, Any]) -> object:
        return kind(**fields)

    return st.fixed_dictionaries(needed or {}, optional=optional).map(build)


usages = st.builds(
    CompletionUsage,
    whole(32),
    whole(32),
    whole(32),
    st.none() | prompt_details,
    st.none() | completion_details,
)
top_logprobs = st.builds(
    TopLogprob,
    rank=whole(32),
    token_id=whole(32),
    token=st.none() | texts,
    logprob=fractions,
    bytes=st.none() | st.lists(whole(8), max_size=3),
)


def outputs(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[LLMEngineOutput]:
    """Make chunks with any of their fields set."""
    return some(
        LLMEngineOutput,
        token_ids=ids,
        tokens=st.lists(st.none() | texts, max_size=2),
        text=texts,
        output_type=st.sampled_from(["text", "image", "video", "audio"]),
        content_parts=st.just([{"type": "text", "text": "t"}]),
        cum_log_probs=fractions,
        log_probs=st.lists(fractions, max_size=2),
        top_logprobs=st.lists(st.lists(top_logprobs, max_size=2), max_size=2),
        finish_reason=finish_reasons,
        stop_reason=texts | whole(31),
        index=whole(32),
        disaggregated_params=objects,
        encoder_result=objects,
        worker_trace_link=links,
        extra_args=objects,
        completion_usage=usages,
        engine_data=objects,
        routing_data=st.just({"timing": {"request_received_ms": 5}}),
        **more,
    )


def requests(more: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[PreprocessedRequest]:
    """
    Make requests with any of their fields set.

    Args:
        more: Unknown keys for the request and for each of its parts.
    """
    rest: dict[str, st.SearchStrategy[Any]] = {} if more is None else {"unknown": more}
    guided = some(
        GuidedDecodingOptions, json=objects, regex=texts, choice=st.lists(texts, max_size=2), **rest
    )
    stop = some(
        StopConditions,
        max_tokens=whole(32),
        stop=st.lists(texts, max_size=2),
        stop_token_ids=ids,
        stop_token_ids_visible=ids,
        stop_token_ids_hidden=ids,
        min_tokens=whole(32),
        ignore_eos=st.booleans(),
        max_thinking_tokens=whole(32),
        **rest,
    )
    sampling = some(
        SamplingOptions,
        n=whole(8),
        best_of=whole(8),
        presence_penalty=fractions,
        frequency_penalty=fractions,
        repetition_penalty=fractions,
        temperature=fractions,
        top_p=fractions,
        top_k=st.integers(-1, 2**31 - 1),
        min_p=fractions,
        use_beam_search=st.booleans(),
        length_penalty=fractions,
        seed=st.integers(-(2**63), 2**63 - 1),
        include_stop_str_in_output=st.booleans(),
        guided_decoding=guided,
        **rest,
    )
    output = some(
        OutputOptions,
        no_stop_trim=st.booleans(),
        logprobs=whole(32),
        prompt_logprobs=whole(32),
        skip_special_tokens=st.booleans(),
        formatted_prompt=st.booleans(),
        return_tokens_as_token_ids=st.booleans(),
        **rest,
    )
    prefill = some(
        PrefillResult,
        {"disaggregated_params": objects},
        prompt_tokens_details=prompt_details,
        **rest,
    )
    bootstrap = some(
        BootstrapInfo,
        {"bootstrap_host": texts, "bootstrap_port": whole(16), "bootstrap_room": whole(64)},
        **rest,
    )
    return some(
        PreprocessedRequest,
        {"token_ids": ids},
        model=texts,
        prompt_embeds=texts,
        multi_modal_data=st.just({"image_url": [{"Url": "https://host/a.png"}, {"UuidOnly": "b"}]}),
        multi_modal_uuids=st.just({"image_url": ["a", None]}),
        stop_conditions=stop,
        sampling_options=sampling,
        output_options=output,
        eos_token_ids=ids,
        mdc_sum=texts,
        annotations=st.lists(texts, max_size=2),
        routing=st.just({"dp_rank": 1, "priority": -1, "cache_salt": "s"}),
        prefill_result=prefill,
        encoder_result=objects,
        migration_link=links,
        bootstrap_info=bootstrap,
        extra_args=objects,
        require_reasoning=st.booleans(),
        agent_context=st.just({"session_id": "s"}),
        image_cache_scope=texts,
        mm_processor_kwargs=objects,
        media_io_kwargs=objects,
        request_timestamp_ms=fractions,
        is_probe=st.booleans(),
        **rest,
    )


def _caused(chain: list[BackendError]) -> BackendError:
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    return chain[0]


def _error(kind: str, message: str) -> BackendError:
    return KINDS[kind](message)


errors = st.lists(
    st.builds(_error, st.sampled_from(sorted(KINDS)), texts), min_size=1, max_size=4
).map(_caused)
