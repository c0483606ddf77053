"""End the stream at stop tokens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar, cast

from operators._chunk import Chunk
from operators._core.checked import checked
from operators._core.operator import operator
from operators._core.stage import Completed, Hooks, Stage, emit, failing, visit_if
from operators._cut import cut, cut_last
from operators._stop_table import StopTable, stop_table

__all__ = ("StopTokens", "stop_on")

C = TypeVar("C", bound=Chunk)

StopTokens: TypeAlias = int | Collection[int | Sequence[int]] | None
"""A token id, or several token ids and sequences of token ids."""


def _check(stop: StopTokens, *, include: bool = False, reason: object = None) -> None:
    stop_table(_sequences(stop))


@checked(_check)
@operator
def stop_on(
    stop: StopTokens, *, include: bool = False, reason: object = None
) -> Stage[Any, Any] | Hooks[Any, Any]:
    """
    End the stream when one of some token ids, or sequences of them, appears (rows S2, S8).

    The terminal has the finish reason ``stop``; the engine is closed and not pulled again. The
    matched tokens are left out, so what may begin a sequence is held back until that is decided:
    it comes out, or the sequence is complete. Chunks are held back whole, and come out unchanged
    but for those that tokens are taken from, which are copies. A chunk of which nothing is left
    does not come out. To stop on ``b c``, where ``S`` has no tokens::

        source  -a-b-a-bc-|
        result  -a---(ba)--(S|)

    A source's terminal lets out what is held back, and so does its end. The sequence that is
    complete first ends the stream; of several that end with the same token, the longest counts. It
    may lie across chunks; the rest of the last one is left out, with the log probabilities and the
    text of those tokens. A chunk's ``stop_reason``, where it has one, becomes the stop token, or
    None for a sequence. Each choice (``index``) is looked through by itself and waits for no other;
    the first to stop ends the stream (row E3).

    Args:
        stop: A token id, or a list of token ids and of sequences of token ids: ``[2, [13, 13]]``
            stops on 2, and on 13 twice in a row. None, or an empty list: never, at no cost.
        include: True: the matched tokens come out too, and nothing is held back.
        reason: The finish reason. By default that of the terminal which the chunk's class makes by
            ``stop()``; for a class without one, the text ``stop``.

    Raises:
        TypeError, ValueError: *stop* is something else, or has an empty sequence; when the operator
            is made.

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
        return Hooks()
    return _looking(stop_table(sequences), include, reason)


def _looking(table: StopTable, include: bool, reason: object) -> Stage[Any, Any]:
    # Choices in which a sequence has begun; nothing is held back in others.
    begun: dict[int, _Choice] = {}
    numbers = itertools.count()
    try:
        chunk = yield visit_if(_MAY_STOP, begun=begun, none_in=table.starts.isdisjoint)
        while True:
            index: int = getattr(chunk, "index", None) or 0
            choice = begun.pop(index, None) or _Choice()
            choice.state, read = table.read(choice.state, chunk.token_ids)
            found = table.found[choice.state]
            if found:
                kept = read if include else choice.cut_back(read - found)
                stop_reason = chunk.token_ids[read - 1] if found == 1 else None
                end = cut_last(chunk, kept, "stop", reason, stop_reason)
                return emit(*_held_back(choice, *begun.values()), end)
            if chunk.finish_reason is not None:
                out = [*_held_back(choice, *begun.values()), chunk]
                begun.clear()
            else:
                if choice.state:
                    begun[index] = choice
                if include:
                    out = [chunk]
                else:
                    choice.hold_back(next(numbers), chunk)
                    out = choice.let_out(table.begun[choice.state])
            chunk = yield out[0] if len(out) == 1 else emit(*out)
    except Exception as error:
        return failing(error, *_held_back(*begun.values()))
    except Completed:
        return emit(*_held_back(*begun.values()))


_MAY_STOP = "begun or not none_in(item.token_ids)"


class _Choice:
    """
    Where one of several answers to a request is, and its chunks that are held back.

    Attributes:
        state: The table's state after the last token.
        chunks: The chunks, each with its number of arrival among all choices'.
    """

    __slots__ = ("_tokens", "chunks", "state")

    def __init__(self) -> None:
        self.state = 0
        self.chunks: deque[tuple[int, Any]] = deque()
        self._tokens = 0

    def hold_back(self, number: int, chunk: Chunk) -> None:
        self.chunks.append((number, chunk))
        self._tokens += len(chunk.token_ids)

    def let_out(self, begun: int) -> list[Any]:
        """Give up the chunks before the last *begun* tokens."""
        out: list[Any] = []
        while self.chunks:
            _, chunk = self.chunks[0]
            rest = self._tokens - len(chunk.token_ids)
            if rest < begun:
                break
            self._tokens = rest
            self.chunks.popleft()
            out.append(chunk)
        return out

    def cut_back(self, tokens: int) -> int:
        """
        Keep the tokens before a complete sequence.

        Args:
            tokens: Where it begins, counted from the next chunk; negative for within these.

        Returns:
            How many tokens of the next chunk stay.
        """
        kept = self._tokens + tokens
        chunks, self.chunks = self.chunks, deque()
        for number, chunk in chunks:
            length = len(chunk.token_ids)
            if length <= kept:
                self.chunks.append((number, chunk))
            elif kept:
                self.chunks.append((number, cut(chunk, kept)))
            kept = max(kept - length, 0)
        return kept


def _held_back(*choices: _Choice) -> list[Any]:
    """The chunks of *choices* in the order in which they came."""
    held = [entry for choice in choices for entry in choice.chunks]
    return [chunk for _, chunk in sorted(held, key=itemgetter(0))]


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
