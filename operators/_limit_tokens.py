"""End an answer after a number of tokens."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any, TypeAlias

from operators._answers import Answers, OpenAnswers, answers_of
from operators._chunk import IS_TERMINAL, answer_of, has_content
from operators._core.arguments import AtLeast
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks, complete_with, emit
from operators._cut import cut_last
from operators._uncounted import warn_of_uncounted

__all__ = ("limit_tokens",)

Limit: TypeAlias = Annotated[int, AtLeast(1, "token")]


@same_type
@callbacks(takes="chunks")
def limit_tokens(
    limit: Limit | None,
    *,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> Callbacks[Any, Any] | None:
    """
    End an answer after *limit* tokens, with finish reason ``length`` (rows E3, S2, S8).

    Token ids are counted, not chunks, per answer (``index``). The chunk that reaches the limit is
    the answer's last; when all answers have ended, the engine is closed and not pulled again. It
    comes out as a copy with the finish reason, without any tokens beyond the limit, their log
    probabilities and their text. With a limit of 2, ``B`` is ``b`` with the finish reason::

        source  -a-b-c-|
        result  -a-(B|)

    The engine's own terminal passes unchanged if it does not exceed the limit; otherwise it gets
    the finish reason ``length``. Its ``completion_usage`` is not changed. Further chunks of an
    answer that has ended are dropped. Text without token ids is not limited; a warning is logged
    once per process.

    Args:
        limit: How many tokens an answer may have, at least 1; None for no limit, at no cost per
            chunk.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: *limit* or *answers* is below 1; when the operator is made.

    Phase: chunks; after operators that change their tokens, and before those that hold back text,
        such as ``stop_on_text``: a token comes out with the first part of its text, and the rest
        would be lost at the limit.
    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput(token_ids=[8, 9, 10]))
    >>> _ = chunks.pipe(limit_tokens(3)).subscribe(print)
    LLMEngineOutput(token_ids=[7])
    LLMEngineOutput(token_ids=[8, 9], finish_reason=FinishReason.LENGTH)
    """
    if limit is None:
        return None
    return _limited(limit, OpenAnswers(answers_of(answers, scope)))


def _limited(limit: int, answers: OpenAnswers) -> Callbacks[Any, Any]:
    texts: set[int] = set()
    rooms: defaultdict[int, _Room] = defaultdict(lambda: _Room(limit))

    def look(chunk: Any) -> Any:
        answer, tokens = answer_of(chunk), len(chunk.token_ids)
        room, is_terminal = rooms[answer], chunk.finish_reason is not None
        if not tokens and has_content(chunk):
            texts.add(answer)
        if is_terminal and room.left == limit and not tokens and answer in texts:
            warn_of_uncounted("limit_tokens")
        if answer in answers.ended:
            return emit()
        if tokens < room.left and not is_terminal:
            room.left -= tokens
            return chunk
        is_cut = tokens > room.left or not is_terminal
        last = cut_last(chunk, room.left, "length") if is_cut else chunk
        return complete_with(last) if answers.end(answer, cut=tokens >= room.left) else last

    names = {"is_last": rooms[0].take_one, "ended": answers.ended}
    return Callbacks(look, only=_IS_UNUSUAL, names=names)


class _Room:
    """How many tokens one answer may still have."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take_one(self) -> bool:
        """Take room for one token, unless it is the last; return whether it is."""
        if self.left == 1:
            return True
        self.left -= 1
        return False


# With a single answer the condition itself counts a chunk of one token; any other chunk, and the
# one with the last token, visits.
_IS_UNUSUAL = (
    f"len(item.token_ids) != 1 or {IS_TERMINAL} or getattr(item, 'index', None) or ended"
    " or is_last()"
)
