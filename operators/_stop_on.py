"""End an answer at stop tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias, cast

from operators._answers import Answers, MinTokens, OpenAnswers, answers_of
from operators._chunk import IS_TERMINAL, Chunk, answer_of
from operators._core.item_types import same_type
from operators._core.operator import callbacks
from operators._core.own_copy import own_copy
from operators._core.scope import StreamScope
from operators._core.stage import Completed, Stage, StageResult, emit, fail_after, when
from operators._cut import cut_last, first_tokens
from operators._stop_table import StopTable, stop_table

__all__ = ("StopTokens", "stop_on")

StopTokens: TypeAlias = int | Collection[int | Sequence[int]] | None
"""A token id, or several token ids and sequences of token ids."""


def _check(stop: StopTokens, **_: object) -> None:
    stop_table(_sequences(stop))


@same_type
@callbacks(takes="chunks", check=_check)
def stop_on(
    stop: StopTokens,
    *,
    include: bool = False,
    min_tokens: MinTokens = 0,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> Stage[Any, Any] | None:
    """
    End an answer when one of some token ids, or sequences of them, appears (rows E3, S2, S8).

    The terminal has the finish reason ``stop``; when all answers have ended, the engine is closed
    and not pulled again. The matched tokens are left out, so what may begin a sequence is held back
    until that is decided, in whole chunks, as copies of the operator's own (row E6). A chunk of
    which nothing is left does not come out. To stop on ``b c``, where ``S`` has no tokens::

        source  -a-b-a-bc-|
        result  -a---(ba)--(S|)

    What is held back comes out with the source's terminal, and at its end. The sequence that is
    complete first ends the answer; of several that end with the same token, the longest counts. It
    may lie across chunks; the rest of the last one is left out, with the log probabilities and the
    text of those tokens. A chunk's ``stop_reason``, where it has one, becomes the stop token, or
    None for a sequence. Each answer (``index``) is searched by itself and waits for no other; what
    the source still has for one that has ended is dropped.

    Args:
        stop: A token id, or a list of token ids and of sequences of token ids: ``[2, [13, 13]]``
            stops on 2, and on 13 twice in a row. None, or an empty list: never, at no cost.
        include: Whether the matched tokens come out too; then nothing is held back.
        min_tokens: No stop before the answer has so many tokens, the matched ones included. A
            sequence that is complete earlier is text like any other.
        answers: How many answers the request has, 1 at least; by default what the scope says, or 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError, ValueError: *stop* is something else, or has an empty sequence, or a number is
            out of range; when the operator is made.

    Phase: chunks; behind what changes their tokens, and in front of what holds back text, as
        :func:`limit_tokens` is.
    Errors: source errors pass unchanged, behind what is held back.
    On dispose: what is held back is dropped.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = [LLMEngineOutput(token_ids=ids) for ids in ([7], [8, 13], [13, 9])]
    >>> _ = reactivex.from_iterable(chunks).pipe(stop_on([2, [13, 13]])).subscribe(print)
    LLMEngineOutput(token_ids=[7])
    LLMEngineOutput(token_ids=[8])
    LLMEngineOutput(finish_reason=FinishReason.STOP)
    """
    sequences = _sequences(stop)
    if not sequences:
        return None
    search = _Search(stop_table(sequences), include, min_tokens)
    return _looking(search, OpenAnswers(answers_of(answers, scope)))


def _looking(search: _Search, answers: OpenAnswers) -> Stage[Any, Any]:
    looks: dict[int, _Answer] = {}
    # Where it matters how many tokens an answer has, all are counted.
    out: Any = emit() if search.min_tokens else search.visits(looks, answers.ended)
    while True:
        try:
            chunk = yield out
        except Completed:
            return emit(*_held_back(looks.values()))
        except Exception as error:
            return fail_after(error, *_held_back(looks.values()))
        index = answer_of(chunk)
        if index in answers.ended:
            out = emit()
            continue
        answer = looks.get(index)
        if answer is None:
            answer = looks[index] = _Answer()
        end = search.end_in(chunk, answer)
        if end is None and chunk.finish_reason is None:
            out = search.let_out(chunk, answer)
            if not (answer.state or search.min_tokens):
                # No sequence has begun: it is as if nothing had been seen of it.
                del looks[index]
            continue
        if answers.end(index, cut=end is not None):
            return emit(*_held_back(looks.values()), end or chunk)
        out = emit(*_held_back([looks.pop(index)]), end or chunk)


class _Search:
    """
    What to stop on, and how: the same for all answers of a stream.

    Attributes:
        min_tokens: How many tokens an answer has before it may be stopped.
    """

    __slots__ = ("_include", "_table", "min_tokens")

    def __init__(self, table: StopTable, include: bool, min_tokens: int) -> None:
        self._table = table
        self._include = include
        self.min_tokens = min_tokens

    def visits(self, looks: Collection[int], ended: Collection[int]) -> StageResult:
        """Return which chunks to look at: all while a sequence has begun, else those with a start."""
        none_in = self._table.starts.isdisjoint
        return when(_MAY_MATTER, looks=looks, ended=ended, none_in=none_in)

    def end_in(self, chunk: Any, answer: _Answer) -> Any:
        """Return the terminal that *chunk* becomes where a sequence is complete in it, else None."""
        token_ids = chunk.token_ids
        if not answer.state and self._table.starts.isdisjoint(token_ids):
            answer.tokens += len(token_ids)
            return None
        ignored = self.min_tokens - 1 - answer.tokens
        answer.state, read, found = self._table.read(answer.state, token_ids, ignored=ignored)
        answer.tokens += read
        if not found:
            return None
        kept = read if self._include else answer.cut_back(read - found)
        stop_reason = token_ids[read - 1] if found == 1 else None
        return cut_last(chunk, kept, "stop", stop_reason)

    def let_out(self, chunk: Any, answer: _Answer) -> Any:
        """Return what of an answer comes out now that *chunk* has come."""
        begun = 0 if self._include else self._table.begun[answer.state]
        if not begun and not answer.chunks:
            return chunk
        answer.hold_back(own_copy(chunk))
        return emit(*answer.let_out(begun))


_MAY_MATTER = f"looks or ended or not none_in(item.token_ids) or {IS_TERMINAL}"


class _Answer:
    """
    How far one answer has been searched, and its chunks that are held back.

    Attributes:
        state: The table's state after the last token.
        tokens: How many tokens were read.
        chunks: The chunks.
    """

    __slots__ = ("_held", "chunks", "state", "tokens")

    def __init__(self) -> None:
        self.state = 0
        self.tokens = 0
        self.chunks: deque[Any] = deque()
        self._held = 0

    def hold_back(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._held += len(chunk.token_ids)

    def let_out(self, begun: int) -> list[Any]:
        """Give up the chunks before the last *begun* tokens."""
        out: list[Any] = []
        while self.chunks:
            rest = self._held - len(self.chunks[0].token_ids)
            if rest < begun:
                break
            self._held = rest
            out.append(self.chunks.popleft())
        return out

    def cut_back(self, tokens: int) -> int:
        """
        Keep the tokens before a complete sequence.

        Args:
            tokens: Where it begins, counted from the next chunk; negative for within these.

        Returns:
            How many tokens of the next chunk stay.
        """
        kept = self._held + tokens
        chunks, self.chunks = self.chunks, deque()
        for chunk in chunks:
            length = len(chunk.token_ids)
            if length <= kept:
                self.chunks.append(chunk)
            elif kept:
                self.chunks.append(first_tokens(chunk, kept))
            kept = max(kept - length, 0)
        return kept


def _held_back(answers: Iterable[_Answer]) -> list[Any]:
    """Return the chunks of *answers*, one answer after another."""
    return [chunk for answer in answers for chunk in answer.chunks]


def _sequences(stop: StopTokens) -> frozenset[tuple[int, ...]]:
    """All of *stop* as sequences."""
    given = cast("object", stop)
    if given is None:
        return frozenset()
    if isinstance(given, int):
        given = [given]
    return frozenset(map(_sequence, _entries(given)))


def _sequence(entry: object) -> tuple[int, ...]:
    sequence = (entry,) if isinstance(entry, int) else tuple(_entries(entry))
    if not sequence:
        raise ValueError(
            "stop_on: stop: expected sequences of at least one token, got an empty one"
        )
    for token_id in sequence:
        if type(token_id) is not int or not 0 <= token_id < 1 << 32:
            raise ValueError(f"stop_on: stop: expected token ids, got {token_id!r}")
    return cast("tuple[int, ...]", sequence)


def _entries(given: object) -> Collection[object]:
    if isinstance(given, str | bytes) or not isinstance(given, Collection):
        raise TypeError(f"stop_on: stop: expected token ids or sequences of them, got {given!r}")
    return cast("Collection[object]", given)
