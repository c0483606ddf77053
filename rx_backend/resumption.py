"""A request as the next engine gets it when the one before was lost, and what it gives in turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from msgspec.structs import replace

from operators import ResumePoint
from rx_backend.protocols import (
    CompletionUsage,
    LLMEngineOutput,
    PreprocessedRequest,
    TraceLink,
    usage,
)

__all__ = ("amended", "continued", "has_hand_off", "nothing_left", "obstacle")


def has_hand_off(request: PreprocessedRequest) -> bool:
    """Whether another worker keeps something for the one that takes the request, and for it alone."""
    handed = (request.prefill_result, request.bootstrap_info, request.encoder_result)
    return any(hand_off is not None for hand_off in handed)


def obstacle(request: PreprocessedRequest, token_ids: object) -> str | None:
    """
    Why *request* can't go on elsewhere after *token_ids*; None if it can.

    An engine begins with the state that a prompt gives it. Where there is more to an answer than
    the tokens so far, another engine would begin it anew.
    """
    sampling = request.sampling_options
    if request.is_probe:
        return "a health check is about the engine that it was sent to"
    if sampling.guided_decoding is not None:
        return "guided decoding: how far its grammar has come can't be moved"
    if (sampling.n or 1) > 1 or (sampling.best_of or 1) > 1 or sampling.use_beam_search:
        return "several choices: the tokens of one are no prompt for the others"
    if token_ids and request.prompt_embeds is not None:
        return "prompt_embeds: tokens can't be appended to a prompt of embeddings"
    return None


def continued(
    request: PreprocessedRequest, token_ids: list[int], link: TraceLink | None
) -> PreprocessedRequest:
    """
    The request for what is left: its prompt goes on with the tokens that were handed out.

    Counts of tokens to generate are smaller by as many. Log probabilities of the prompt are asked
    for only where nothing was handed out, since they came with the first tokens.

    Args:
        request: The request as it came; it stays as it is.
        token_ids: All tokens that were handed out.
        link: The span of the worker that had it (row T1); None leaves the request's own.

    >>> request = PreprocessedRequest(token_ids=[1, 2], stop_conditions={"max_tokens": 5})
    >>> left = continued(request, [7, 8], None)
    >>> left.token_ids, left.stop_conditions.max_tokens
    ([1, 2, 7, 8], 3)
    """
    conditions = request.stop_conditions
    done = len(token_ids)
    output = request.output_options
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


async def nothing_left(request: PreprocessedRequest) -> AsyncGenerator[LLMEngineOutput]:
    """The stream of a continued request that has all its tokens, and was lost before its end."""
    yield LLMEngineOutput.length().with_usage(usage(len(request.token_ids), 0))


def amended(chunk: LLMEngineOutput, point: ResumePoint) -> LLMEngineOutput:
    """
    A chunk of a continued request as one of the request: its figures are those of all parts.

    Usage counts the tokens that were handed out before as generated, and no longer as prompt; its
    details, which an engine only knows of its own part, are left out where they would be wrong. The
    cumulative log probability goes on from where it was, and is left out where that is unknown.
    """
    if chunk.completion_usage is None and chunk.cum_log_probs is None:
        return chunk
    done = len(point.token_ids)
    if not done:
        return chunk
    cum_log_probs = chunk.cum_log_probs
    if cum_log_probs is not None:
        before: float | None = getattr(point.last_item, "cum_log_probs", None)
        cum_log_probs = None if before is None else before + cum_log_probs
    return replace(
        chunk,
        completion_usage=_of_all_parts(chunk.completion_usage, done),
        cum_log_probs=cum_log_probs,
    )


def _of_all_parts(part: CompletionUsage | None, done: int) -> CompletionUsage | None:
    if part is None:
        return None
    whole = usage(max(part.prompt_tokens - done, 0), part.completion_tokens + done)
    details = part.prompt_tokens_details
    cached = None if details is None else details.cached_tokens
    if cached is not None and details is not None:
        details = replace(details, cached_tokens=min(cached, whole.prompt_tokens))
    whole.prompt_tokens_details = details
    return whole


def _less(tokens: int | None, done: int) -> int | None:
    return None if tokens is None else max(tokens - done, 0)
