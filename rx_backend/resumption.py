"""The progress of an answer, and the request for the rest of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from msgspec.structs import replace

from operators.assembly import OpenAnswers
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    TraceLink,
    usage,
)

__all__ = ("ResumeState", "continuation_request", "has_hand_off")


@dataclass(slots=True, eq=False)
class ResumeState:
    """
    The progress of one request's answer, over all engines that worked on it.

    Attributes:
        request: The original request.
        token_ids: All tokens that were handed out.
        link: The last ``worker_trace_link`` of the active engine.
        answers: Which answers have ended: their terminal was handed out.
    """

    request: PreprocessedRequest
    token_ids: array[int] = field(default_factory=lambda: array("Q"))
    link: TraceLink | None = None
    answers: OpenAnswers = field(init=False)
    _blocker: str | None = None
    _cum_log_probs: float | None = None
    # Totals of the engines before the active one.
    _tokens_before: int = 0
    _log_probs_before: float | None = None

    def __post_init__(self) -> None:
        self.answers = OpenAnswers(self.request.sampling_options.n or 1)

    def begin_part(self) -> None:
        """Start the part of another engine."""
        self._tokens_before = len(self.token_ids)
        self._log_probs_before = self._cum_log_probs
        self.link = None

    def add(self, chunk: LLMEngineOutput) -> LLMEngineOutput:
        """Record a chunk; return it with figures that cover the whole answer."""
        if self._tokens_before and (chunk.completion_usage or chunk.cum_log_probs is not None):
            chunk = self._rebased(chunk)
        if chunk.token_ids:
            self.token_ids.extend(chunk.token_ids)
            self._cum_log_probs = chunk.cum_log_probs
        elif chunk.text or chunk.content_parts:
            self._blocker = "its chunks have no token ids to continue from"
        if chunk.index:
            self._blocker = _SEVERAL
        if chunk.worker_trace_link is not None:
            self.link = chunk.worker_trace_link
        if chunk.finish_reason is not None:
            self.answers.end(chunk.index or 0)
        return chunk

    def _rebased(self, chunk: LLMEngineOutput) -> LLMEngineOutput:
        """
        Return a chunk of a later part with the figures of all parts.

        Details of the usage that an engine knows for its own part only are dropped, and so is a
        cumulative log probability if an earlier part had none.
        """
        own, before = chunk.cum_log_probs, self._log_probs_before
        whole = part = chunk.completion_usage
        if part is not None:
            prompt_tokens = max(part.prompt_tokens - self._tokens_before, 0)
            whole = usage(prompt_tokens, part.completion_tokens + self._tokens_before)
            details = part.prompt_tokens_details
            if details is not None and details.cached_tokens is not None:
                details = replace(details, cached_tokens=min(details.cached_tokens, prompt_tokens))
            whole.prompt_tokens_details = details
        total = None if own is None or before is None else before + own
        return replace(chunk, completion_usage=whole, cum_log_probs=total)

    def missing_terminal(self) -> LLMEngineOutput | None:
        """
        Return the terminal of an answer in which only that is missing; None if there are more
        tokens to generate.

        An end token completes an answer, unless the request ignores it, and so does the last token
        that the request allows.
        """
        reason = self._end_reason()
        if reason is None:
            return None
        counts = usage(len(self.request.token_ids), len(self.token_ids))
        return LLMEngineOutput(finish_reason=reason).with_usage(counts)

    def _end_reason(self) -> FinishReason | None:
        request, conditions = self.request, self.request.stop_conditions
        done = len(self.token_ids)
        if not done or self.blocker() in {_SEVERAL, _PROBE}:
            return None
        last = self.token_ids[-1]
        if done >= (conditions.min_tokens or 0):
            if last in request.eos_token_ids and not conditions.ignore_eos:
                return FinishReason.EOS
            stops = (conditions.stop_token_ids, conditions.stop_token_ids_visible)
            if any(last in (stop_ids or ()) for stop_ids in stops):
                return FinishReason.STOP
        has_all = conditions.max_tokens is not None and done >= conditions.max_tokens
        return FinishReason.LENGTH if has_all else None

    def blocker(self) -> str | None:
        """Return why no other engine can continue the answer; None if one can."""
        request, sampling = self.request, self.request.sampling_options
        if request.is_probe:
            return _PROBE
        if (sampling.n or 1) > 1 or (sampling.best_of or 1) > 1 or sampling.use_beam_search:
            return _SEVERAL
        if sampling.guided_decoding is not None:
            return "guided decoding: the state of its grammar can't be moved"
        if self._blocker is None and self.token_ids and request.prompt_embeds is not None:
            return "prompt_embeds: tokens can't be appended to a prompt of embeddings"
        if self._blocker is None and has_hand_off(request):
            return "its hand-off from another worker was for the lost engine"
        return self._blocker


_SEVERAL = "several choices: the tokens of one can't be the prompt of the others"
_PROBE = "a health check concerns the engine that it was sent to"


def has_hand_off(request: PreprocessedRequest) -> bool:
    """Return whether another worker holds state for the one engine that takes the request."""
    handed = (request.prefill_result, request.bootstrap_info, request.encoder_result)
    return any(hand_off is not None for hand_off in handed)


def continuation_request(
    request: PreprocessedRequest, token_ids: list[int], link: TraceLink | None
) -> PreprocessedRequest:
    """
    Return the request for the rest of an answer; its prompt ends with the tokens handed out so far.

    Counts of tokens to generate are reduced accordingly. Log probabilities of the prompt are
    requested only if nothing was handed out, since they come with the first tokens.

    Args:
        request: The original request, which is not changed.
        token_ids: All tokens that were handed out.
        link: The previous worker's span (row T1); None keeps the request's own.

    >>> request = PreprocessedRequest(token_ids=[1, 2], stop_conditions={"max_tokens": 5})
    >>> left = continuation_request(request, [7, 8], None)
    >>> left.token_ids, left.stop_conditions.max_tokens
    ([1, 2, 7, 8], 3)
    """
    conditions, output, done = request.stop_conditions, request.output_options, len(token_ids)
    return replace(
        request,
        token_ids=[*request.token_ids, *token_ids],
        stop_conditions=replace(
            conditions,
            max_tokens=_less(conditions.max_tokens, done),
            min_tokens=_less(conditions.min_tokens, done),
            max_thinking_tokens=_less(conditions.max_thinking_tokens, done),
        ),
        output_options=replace(output, prompt_logprobs=None) if token_ids else output,
        migration_link=request.migration_link if link is None else link,
    )


def _less(tokens: int | None, done: int) -> int | None:
    return None if tokens is None else max(tokens - done, 0)
