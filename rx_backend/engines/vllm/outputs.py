"""Chunks from the outputs of vLLM's ``AsyncLLM``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rx_backend.engines.answer_progress import AnswerProgress
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    PromptTokensDetails,
    TopLogprob,
)

__all__ = ("Answers",)

_LEAST_LOG_PROB = -9999.0
"""Replaces the logarithm of 0, which JSON can't represent."""


class Answers:
    """
    The answers to one request, as chunks.

    Args:
        request: The request.
    """

    def __init__(self, request: PreprocessedRequest) -> None:
        self._progress = AnswerProgress(request)
        self._top = request.output_options.logprobs
        self._cached: int | None = None
        self._prompt_log_probs: Any = None

    def chunks(self, output: Any) -> Iterator[LLMEngineOutput]:
        """Yield the chunks of a ``RequestOutput``, which has a part for some of the answers."""
        if output.num_cached_tokens is not None:
            self._cached = output.num_cached_tokens
        if output.prompt_logprobs:
            self._prompt_log_probs = [_as_json(each) for each in output.prompt_logprobs]
        for part in output.outputs:
            index = self._progress.index(part.index)
            chunk = LLMEngineOutput(list(part.token_ids), index=index)
            if part.logprobs is not None and self._top is not None:
                self._add_log_probs(chunk, part)
            if part.finish_reason is not None:
                chunk.finish_reason = FinishReason.parse(part.finish_reason)
                chunk.stop_reason = part.stop_reason
            self._progress.add(chunk)
            if part.finish_reason is not None:
                self._finish(chunk.with_usage(self._progress.usage(part.index)))
            yield chunk

    def cancelled(self) -> Iterator[LLMEngineOutput]:
        """Yield a terminal for each answer that has none."""
        for terminal in self._progress.cancelled():
            self._finish(terminal)
            yield terminal

    def _finish(self, terminal: LLMEngineOutput) -> None:
        """Add the prompt's log probabilities and cached tokens."""
        if self._prompt_log_probs is not None:
            terminal.engine_data = {"prompt_logprobs": self._prompt_log_probs}
        if self._cached is not None and terminal.completion_usage is not None:
            details = PromptTokensDetails(cached_tokens=self._cached)
            terminal.completion_usage.prompt_tokens_details = details

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
    """Return the entry of a prompt token; the first token has none."""
    if found is None:
        return None
    return {
        str(token): {"logprob": _finite(each.logprob), "rank": each.rank}
        for token, each in found.items()
    }
