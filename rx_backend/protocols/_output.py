"""The chunks that an engine yields."""

from __future__ import annotations

from typing import Any, Literal, Self

from msgspec import Struct

from rx_backend.protocols._finish_reason import FinishReason
from rx_backend.protocols._wire import U8, U32, Sparse, null

__all__ = (
    "CompletionTokensDetails",
    "CompletionUsage",
    "LLMEngineOutput",
    "PromptTokensDetails",
    "TopLogprob",
    "TraceLink",
    "usage",
)


class TraceLink(Struct, frozen=True, gc=False):
    """
    A span of another worker, sent with requests and chunks (rows T1-T5).

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
    """

    trace_id: str
    span_id: str


class PromptTokensDetails(Sparse, kw_only=True, omit_defaults=True):
    """Details of the prompt tokens, in tokens."""

    audio_tokens: U32 | None = null()
    cached_tokens: U32 | None = null()


class CompletionTokensDetails(Sparse, kw_only=True, omit_defaults=True):
    """Details of the generated tokens, in tokens."""

    accepted_prediction_tokens: U32 | None = null()
    audio_tokens: U32 | None = null()
    reasoning_tokens: U32 | None = null()
    rejected_prediction_tokens: U32 | None = null()


class CompletionUsage(Struct, omit_defaults=True, repr_omit_defaults=True):
    """The usage of a request, in tokens; `usage` computes the total."""

    prompt_tokens: U32
    completion_tokens: U32
    total_tokens: U32
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


def usage(prompt_tokens: int, completion_tokens: int) -> CompletionUsage:
    """
    Return the usage of a request with these counts of prompt and generated tokens.

    >>> usage(3, 2)
    CompletionUsage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    """
    return CompletionUsage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class TopLogprob(Sparse, kw_only=True, omit_defaults=True):
    """One of the likeliest tokens at a position; ``bytes`` is its text in UTF-8."""

    rank: U32
    token_id: U32
    token: str | None = null()
    logprob: float
    bytes: list[U8] | None = None


class LLMEngineOutput(Struct, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """
    One chunk: the tokens of a step, and on the last one the finish reason (rows E2, E3).

    The constructor checks nothing; `convert_output` does. The garbage collector does not track
    chunks, so a chunk must not be part of a reference cycle.

    Attributes:
        token_ids: New tokens; may be empty.
        tokens, text: The tokens as text, from engines that detokenize.
        cum_log_probs, log_probs: Natural logarithms; the list has one entry per token.
        top_logprobs: The likeliest tokens, one list per token.
        finish_reason: Set on the terminal only.
        stop_reason: The stop text or token that ended the stream.
        index: The answer that the chunk belongs to, if a request has several.
        worker_trace_link: Set by the adapter, not by engines (rows T3, T4).
        unknown: Wire keys that this version does not know.

    >>> LLMEngineOutput.token(7)
    LLMEngineOutput(token_ids=[7])
    >>> LLMEngineOutput.stop().with_usage(usage(3, 2)).completion_usage.total_tokens
    5
    """

    token_ids: list[U32] = []
    tokens: list[str | None] | None = None
    text: str | None = None
    output_type: Literal["text", "image", "video", "audio"] = "text"
    content_parts: list[dict[str, Any]] | None = None
    cum_log_probs: float | None = None
    log_probs: list[float] | None = None
    top_logprobs: list[list[TopLogprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    index: U32 | None = None
    disaggregated_params: Any = None
    encoder_result: dict[str, Any] | None = None
    worker_trace_link: TraceLink | None = None
    extra_args: Any = None
    completion_usage: CompletionUsage | None = None
    engine_data: Any = None
    routing_data: dict[str, Any] | None = None
    unknown: dict[str, Any] | None = None

    @classmethod
    def token(cls, token_id: int) -> Self:
        """Return an ordinary chunk of one token."""
        return cls([token_id])

    @classmethod
    def stop(cls) -> Self:
        """Return the terminal of a stream that ended naturally."""
        return cls(finish_reason=FinishReason.STOP)

    @classmethod
    def length(cls) -> Self:
        """Return the terminal of a stream that reached its token limit."""
        return cls(finish_reason=FinishReason.LENGTH)

    @classmethod
    def cancelled(cls) -> Self:
        """Return the terminal of a stream that was stopped (row E4)."""
        return cls(finish_reason=FinishReason.CANCELLED)

    @classmethod
    def error(cls, message: str) -> Self:
        """Return the terminal of a stream that failed."""
        return cls(finish_reason=FinishReason.error(message))

    def with_tokens(self, token_ids: list[int]) -> Self:
        """Set the tokens and return this chunk."""
        self.token_ids = token_ids
        return self

    def with_usage(self, completion_usage: CompletionUsage) -> Self:
        """Set the usage and return this chunk."""
        self.completion_usage = completion_usage
        return self
