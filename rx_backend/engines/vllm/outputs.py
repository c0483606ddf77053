"""What vLLM's ``AsyncLLM`` yields, as chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rx_backend.protocols import (
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    PromptTokensDetails,
    TopLogprob,
    usage,
)

__all__ = ("Answers",)

_LEAST_LOG_PROB = -9999.0
"""Stands for the logarithm of 0, which JSON has not."""


class Answers:
    """
    The answers to one request, as chunks.

    Args:
        request: The request.
    """

    def __init__(self, request: PreprocessedRequest) -> None:
        self._prompt_tokens = len(request.token_ids)
        self._top = request.output_options.logprobs
        self._open = set(range(request.sampling_options.n or 1))
        self._is_one = len(self._open) == 1
        self._made: Counter[int] = Counter()
        self._cached: int | None = None
        self._prompt_log_probs: Any = None

    def chunks(self, output: Any) -> Iterator[LLMEngineOutput]:
        """Yield the chunks of a ``RequestOutput``, which has a part for each of some answers."""
        if output.num_cached_tokens is not None:
            self._cached = output.num_cached_tokens
        if output.prompt_logprobs:
            self._prompt_log_probs = [_as_json(each) for each in output.prompt_logprobs]
        for part in output.outputs:
            self._made[part.index] += len(part.token_ids)
            chunk = LLMEngineOutput(list(part.token_ids), index=self._index(part.index))
            if part.logprobs is not None and self._top is not None:
                self._add_log_probs(chunk, part)
            if part.finish_reason is not None:
                self._open.discard(part.index)
                self._finish(chunk, part.index, FinishReason.parse(part.finish_reason))
                chunk.stop_reason = part.stop_reason
            yield chunk

    def cancelled(self) -> Iterator[LLMEngineOutput]:
        """Yield a terminal for each answer that has none."""
        for index in sorted(self._open):
            chunk = LLMEngineOutput(index=self._index(index))
            self._finish(chunk, index, FinishReason.CANCELLED)
            yield chunk
        self._open.clear()

    def _index(self, index: int) -> int | None:
        return None if self._is_one else index

    def _finish(self, chunk: LLMEngineOutput, index: int, reason: FinishReason) -> None:
        chunk.finish_reason = reason
        chunk.completion_usage = self._usage(index)
        if self._prompt_log_probs is not None:
            chunk.engine_data = {"prompt_logprobs": self._prompt_log_probs}

    def _usage(self, index: int) -> CompletionUsage:
        counts = usage(self._prompt_tokens, self._made[index])
        if self._cached is not None:
            counts.prompt_tokens_details = PromptTokensDetails(cached_tokens=self._cached)
        return counts

    def _add_log_probs(self, chunk: LLMEngineOutput, part: Any) -> None:
        pairs = list(zip(part.token_ids, part.logprobs, strict=True))
        chunk.log_probs = [_finite(found[token].logprob) for token, found in pairs]
        chunk.top_logprobs = [self._likeliest(found) for _, found in pairs]

    def _likeliest(self, found: dict[int, Any]) -> list[TopLogprob]:
        """Return the likeliest tokens; vLLM adds the sampled one, however unlikely."""
        tops = [
            TopLogprob(rank=each.rank, token_id=token, logprob=_finite(each.logprob))
            for token, each in found.items()
            if each.rank is not None and each.rank <= (self._top or 0)
        ]
        return sorted(tops, key=lambda top: top.rank)


def _finite(log_prob: float) -> float:
    return max(log_prob, _LEAST_LOG_PROB)


def _as_json(found: dict[int, Any] | None) -> dict[str, Any] | None:
    """Return what is known of a prompt token; of the first one, nothing."""
    if found is None:
        return None
    return {
        str(token): {"logprob": _finite(each.logprob), "rank": each.rank}
        for token, each in found.items()
    }
