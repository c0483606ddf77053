"""End an answer at stop tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias, cast

from operators._answers import Answers, MinTokens, OpenAnswers, answers_of
from operators._chunk import IS_TERMINAL, Chunk, answer_of
from operators._core.operator import callbacks, same_type
from operators._core.own_copy import own_copy
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks, complete_with, emit, fail_after
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
) -> Callbacks[Any, Any] | None:
    """
    End an answer when one of some token ids, or sequences of them, appears (rows E3, S2, S8).

    The terminal has the finish reason ``stop``; when all answers have ended, the engine is closed
    and not pulled again. The matched tokens are removed, so chunks that may begin a sequence are
    held back, as copies (row E6), until that is decided. A chunk left empty is dropped. To stop on
    ``b c``, where ``S`` has no tokens::

        source  -a-b-a-bc-|
        result  -a---(ba)--(S|)

    Held-back chunks come out with the source's terminal or at its end. The first complete sequence
    ends the answer; of several that end with the same token, the longest counts. It may span
    chunks; the rest of the last one is removed, with the log probabilities and the text of those
    tokens. If chunks have a ``stop_reason``, the terminal's is the stop token, or None for a
    sequence. Each answer (``index``) is searched separately; further chunks of one that has ended
    are dropped.

    Args:
        stop: A token id, or a list of token ids and of sequences of token ids: ``[2, [13, 13]]``
            stops on 2, and on 13 twice in a row. None, or an empty list: never, at no cost.
        include: Whether to keep the matched tokens; then nothing is held back.
        min_tokens: Don't stop before the answer has this many tokens, including the matched ones. A
            sequence that is complete earlier is ignored.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError, ValueError: *stop* has another type or an empty sequence, or a number is out of
            range; when the operator is made.

    Phase: chunks; after operators that change their tokens, and before those that hold back text,
        like :func:`limit_tokens`.
    Errors: source errors pass unchanged, after the held-back chunks.
    On dispose: held-back chunks are dropped.

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


def _looking(search: _Search, answers: OpenAnswers) -> Callbacks[Any, Any]:
    looks: dict[int, _Answer] = {}

    def look(chunk: Any) -> Any:
        index = answer_of(chunk)
        if index in answers.ended:
            return emit()
        answer = looks.get(index)
        if answer is None:
            answer = looks[index] = _Answer()
        end = search.end_in(chunk, answer)
        if end is None and chunk.finish_reason is None:
            out = search.let_out(chunk, answer)
            if not (answer.state or search.min_tokens):
                # No sequence has begun: no state is needed.
                del looks[index]
            return out
        if answers.end(index, cut=end is not None):
            return complete_with(*_held_back(looks.values()), end or chunk)
        return emit(*_held_back([looks.pop(index)]), end or chunk)

    return Callbacks(
        look,
        # With min_tokens, every chunk visits, because all tokens are counted.
        only=None if search.min_tokens else _MAY_MATTER,
        names={"looks": looks, "ended": answers.ended, "none_in": search.none_in},
        on_error=lambda error: fail_after(error, *_held_back(looks.values())),
        on_complete=lambda _: complete_with(*_held_back(looks.values())),
    )


class _Search:
    """
    The search parameters, shared by all answers of a stream.

    Attributes:
        min_tokens: How many tokens an answer must have before it may be stopped.
        none_in: Returns whether none of some tokens begins a sequence.
    """

    def __init__(self, table: StopTable, include: bool, min_tokens: int) -> None:
        self._table = table
        self._include = include
        self.min_tokens = min_tokens
        self.none_in = table.starts.isdisjoint

    def end_in(self, chunk: Any, answer: _Answer) -> Any:
        """Return *chunk* as a terminal if a sequence is complete in it, else None."""
        token_ids = chunk.token_ids
        ignored = self.min_tokens - 1 - answer.tokens
        answer.state, read, found = self._table.read(answer.state, token_ids, ignored=ignored)
        answer.tokens += read
        if not found:
            return None
        kept = read if self._include else answer.cut_back(read - found)
        stop_reason = token_ids[read - 1] if found == 1 else None
        return cut_last(chunk, kept, "stop", stop_reason)

    def let_out(self, chunk: Any, answer: _Answer) -> Any:
        """Return the chunks to hand out once *chunk* is added to an answer."""
        begun = 0 if self._include else self._table.begun[answer.state]
        if not begun and not answer.chunks:
            return chunk
        answer.hold_back(own_copy(chunk))
        return emit(*answer.let_out(begun))


# Once a sequence has begun, all chunks visit, else those that may begin one.
_MAY_MATTER = f"looks or ended or not none_in(item.token_ids) or {IS_TERMINAL}"


class _Answer:
    """
    The search state of one answer, and its held-back chunks.

    Attributes:
        state: The table's state after the last token.
        tokens: How many tokens were read.
        chunks: The chunks.
    """

    def __init__(self) -> None:
        self.state = 0
        self.tokens = 0
        self.chunks: deque[Any] = deque()
        self._held = 0

    def hold_back(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._held += len(chunk.token_ids)

    def let_out(self, begun: int) -> list[Any]:
        """Release the chunks before the last *begun* tokens."""
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
            tokens: Where it begins, counted from the next chunk; negative if within these.

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
    """Return all of *stop* as sequences."""
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
