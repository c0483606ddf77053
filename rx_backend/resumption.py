"""How far an answer has come, and the request for what is left of it."""

from __future__ import annotations

from array import array

from msgspec.structs import replace

from rx_backend.protocols import (
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    TraceLink,
    usage,
)

__all__ = ("NotResumable", "ResumeState", "continuation_request", "has_hand_off")


class NotResumable(Exception):
    """Why a lost request was not resumed: a cause of the error that it fails with."""


class ResumeState:
    """
    How far one request's answer has come, over all engines that had a part in it.

    Args:
        request: The request as it came.

    Attributes:
        token_ids: All tokens that were handed out.
        link: The last ``worker_trace_link`` of the engine at work.
        has_terminal: A terminal was handed out.
    """

    __slots__ = (
        "_blocker",
        "_cum_log_probs",
        "_cum_log_probs_before",
        "_done_before",
        "_request",
        "has_terminal",
        "link",
        "token_ids",
    )

    def __init__(self, request: PreprocessedRequest) -> None:
        self._request = request
        self._blocker = _blocker_of(request)
        self._cum_log_probs: float | None = None
        self._cum_log_probs_before: float | None = None
        self._done_before = 0
        self.token_ids: array[int] = array("Q")
        self.link: TraceLink | None = None
        self.has_terminal = False

    def next_part(self) -> None:
        """Note that what follows is another engine's."""
        self._done_before = len(self.token_ids)
        self._cum_log_probs_before = self._cum_log_probs
        self.link = None

    def add(self, chunk: LLMEngineOutput) -> LLMEngineOutput:
        """Note a chunk; return it as one of the whole answer, in which its figures are of all parts."""
        if self._done_before:
            chunk = self._rebased(chunk)
        if chunk.token_ids:
            self.token_ids.extend(chunk.token_ids)
            self._cum_log_probs = chunk.cum_log_probs
        elif chunk.text or chunk.content_parts:
            self._blocker = "chunks came that have no tokens to go on from"
        if chunk.index:
            self._blocker = _SEVERAL
        if chunk.worker_trace_link is not None:
            self.link = chunk.worker_trace_link
        if chunk.finish_reason is not None:
            self.has_terminal = True
        return chunk

    def _rebased(self, chunk: LLMEngineOutput) -> LLMEngineOutput:
        """
        Return a chunk of a later part with the figures of all parts.

        Details of the usage, which an engine knows of its own part alone, are left out where they
        would be wrong, and so is a cumulative log probability without one to go on from.
        """
        own, before = chunk.cum_log_probs, self._cum_log_probs_before
        if own is None and chunk.completion_usage is None:
            return chunk
        return replace(
            chunk,
            completion_usage=_of_all_parts(chunk.completion_usage, self._done_before),
            cum_log_probs=None if own is None or before is None else before + own,
        )

    def missing_terminal(self) -> LLMEngineOutput | None:
        """
        Return the terminal of an answer that lacks nothing else; None where more is to come.

        An answer is complete with an end token, except one that the request ignores, and with its
        last allowed token.
        """
        reason = self._end_reason()
        if reason is None:
            return None
        counts = usage(len(self._request.token_ids), len(self.token_ids))
        return LLMEngineOutput(finish_reason=reason).with_usage(counts)

    def _end_reason(self) -> FinishReason | None:
        request, conditions = self._request, self._request.stop_conditions
        done = len(self.token_ids)
        if not done or self._blocker in {_SEVERAL, _PROBE}:
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
        """Return why the answer can't go on at another engine; None if it can."""
        if self._blocker is None and self.token_ids and self._request.prompt_embeds is not None:
            return "prompt_embeds: tokens can't be appended to a prompt of embeddings"
        return self._blocker


_SEVERAL = "several choices: the tokens of one are no prompt for the others"
_PROBE = "a health check is about the engine that it was sent to"


def has_hand_off(request: PreprocessedRequest) -> bool:
    """Whether another worker keeps something for the engine that takes the request, and for no other."""
    handed = (request.prefill_result, request.bootstrap_info, request.encoder_result)
    return any(hand_off is not None for hand_off in handed)


def continuation_request(
    request: PreprocessedRequest, token_ids: list[int], link: TraceLink | None
) -> PreprocessedRequest:
    """
    Return the request for what is left: the tokens that were handed out are a part of its prompt.

    Counts of tokens to generate are smaller by as many. Log probabilities of the prompt are asked
    for only where nothing was handed out, since they came with the first tokens.

    Args:
        request: The request as it came; it stays as it is.
        token_ids: All tokens that were handed out.
        link: The span of the worker that had it (row T1); None leaves the request's own.

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


def _blocker_of(request: PreprocessedRequest) -> str | None:
    """An engine starts from a prompt: an answer with more state than its tokens can't be moved."""
    sampling = request.sampling_options
    if request.is_probe:
        return _PROBE
    if (sampling.n or 1) > 1 or (sampling.best_of or 1) > 1 or sampling.use_beam_search:
        return _SEVERAL
    if sampling.guided_decoding is not None:
        return "guided decoding: how far its grammar has come can't be moved"
    return None


def _of_all_parts(part: CompletionUsage | None, done: int) -> CompletionUsage | None:
    if part is None:
        return None
    whole = usage(max(part.prompt_tokens - done, 0), part.completion_tokens + done)
    details = part.prompt_tokens_details
    if details is not None and details.cached_tokens is not None:
        details = replace(details, cached_tokens=min(details.cached_tokens, whole.prompt_tokens))
    whole.prompt_tokens_details = details
    return whole


def _less(tokens: int | None, done: int) -> int | None:
    return None if tokens is None else max(tokens - done, 0)
