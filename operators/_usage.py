"""Report what a request cost, in tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, TypeVar

from operators._answers import Answers, OpenAnswers, answers_of
from operators._chunk import answer_of, has_content
from operators._core.arguments import AtLeast
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Stage, emit
from operators._uncounted import warn_of_uncounted

__all__ = ("usage",)

U = TypeVar("U")

PromptTokens: TypeAlias = Annotated[int, AtLeast(0, "tokens")]


@same_type
@callbacks(takes="chunks")
def usage(
    prompt_tokens: PromptTokens,
    make: Callable[[int, int], U],
    *,
    on_end: Callable[[U], None] | None = None,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> Stage[Any, Any]:
    """
    Write ``completion_usage`` on the last terminal, and report it however the stream ends.

    Token ids are counted, not chunks, over all answers, as OpenAI does; text without token ids is
    not counted, and a warning is logged once per process. The last terminal comes out as a copy
    with the usage, unless the engine set one; other chunks pass unchanged. Tokens that the engine
    reported on the terminals of other answers are not included again, so that all usages add up to
    the total. With a prompt of 3 tokens, ``U`` is ``T`` with a usage of 3 and 2 tokens::

        source  -a-b-T|
        result  -a-b-U|
        on_end  ------3 + 2

    Args:
        prompt_tokens: How many tokens the prompt has.
        make: Makes a usage from the counts of prompt and generated tokens, including the total:
            ``rx_backend.protocols.usage``.
        on_end: Called once at the end, however the stream ends, with the usage of all answers from
            their terminals; without the last terminal (cancelled, dropped, failed) with the counts
            so far.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: *prompt_tokens* or *answers* is out of range; when the operator is made.
        TypeError: *make* or *on_end* is not callable; when the operator is made.

    Phase: chunks; after operators that end the stream or remove tokens.
    Errors: source errors pass unchanged, after *on_end*.
    On dispose: *on_end* is called.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput, protocols
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> counted = chunks.pipe(usage(3, protocols.usage))
    >>> _ = counted.subscribe(lambda chunk: print(chunk.completion_usage))
    None
    CompletionUsage(prompt_tokens=3, completion_tokens=1, total_tokens=4)
    """
    answers = answers_of(answers, scope)
    tokens, has_text = 0, False
    open_answers = OpenAnswers(answers)
    # Tokens reported by the terminals of other answers.
    told = 0
    reported: U | None = None
    out: Any = emit()
    try:
        while True:
            chunk = yield out
            if chunk.token_ids:
                tokens += len(chunk.token_ids)
            elif not has_text and has_content(chunk):
                has_text = True
            if chunk.finish_reason is not None:
                open_answers.end(answer_of(chunk))
                used = chunk.completion_usage
                if not open_answers.are_over:
                    told += 0 if used is None else used.completion_tokens
                elif used is not None:
                    reported = make(prompt_tokens, told + used.completion_tokens) if told else used
                else:
                    if has_text and not tokens:
                        warn_of_uncounted("usage")
                    chunk = copy.copy(chunk)
                    chunk.completion_usage = make(prompt_tokens, max(tokens - told, 0))
                    reported = make(prompt_tokens, tokens) if told else chunk.completion_usage
            out = chunk
    finally:
        if on_end is not None:
            on_end(make(prompt_tokens, tokens) if reported is None else reported)
