"""Hold back the end of each answer's text until an operator has decided about it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, NamedTuple

from operators._answers import OpenAnswers, answers_of
from operators._chunk import answer_of, has_content
from operators._core.own_copy import own_copy
from operators._core.scope import StreamScope
from operators._core.stage import Completed, Stage, complete_with, emit, fail_after
from operators._cut import cut_last, part_of

__all__ = ("TextTail", "hold_back")


def hold_back(
    step: Callable[[TextTail], Iterable[Any]],
    *,
    limit: int = 4096,
    answers: int | None = None,
    scope: StreamScope | None = None,
) -> Stage[Any, Any]:
    """
    Make the body of an operator that searches text across chunks.

    *step* is called for each chunk with text, after it was added to the :class:`TextTail` of its
    answer. It takes the chunks to hand out from the tail; the rest is held back until its next
    call. With the answer's terminal, at the end of the stream and before a failure of the source it
    is called for the last time (``tail.is_last``), and the rest then comes out by itself. A
    redactor::

        @operator
        def redact(secret: str) -> Stage[Any, Any]:
            def step(tail: TextTail) -> Iterator[Any]:
                while (place := tail.text.find(secret)) >= 0:
                    yield from tail.take(place)
                    yield from tail.replace(len(secret), "***")
                yield from tail.take_all_but(tail.partial_match(secret))

            return (yield from hold_back(step))

    Args:
        step: Processes an answer's tail. An exception fails the stream, and held text is dropped.
        limit: How many characters, and how many chunks, an answer may hold back; beyond that the
            oldest come out.
        answers: How many answers the request has; by default from the scope, else 1. When *step*
            has ended an answer with :meth:`TextTail.end`, and all others have ended too, the stream
            ends.
        scope: The scope of the stream, from the operator's own parameter ``scope``.
    """
    tails: dict[int, TextTail] = {}
    open_answers = OpenAnswers(answers_of(answers, scope))
    out: Any = emit()
    while True:
        try:
            chunk = yield out
        except Completed:
            yield emit(*_rest(tails.values(), step))
            return
        except Exception as error:
            made = _rest(tails.values(), step)
            cut = [tail.index for tail in tails.values() if tail.has_ended]
            ended = [open_answers.end(answer, cut=True) for answer in cut]
            yield complete_with(*made) if any(ended) else fail_after(error, *made)
            return
        answer = answer_of(chunk)
        tail = tails.get(answer)
        if tail is None:
            tail = tails[answer] = TextTail(answer)
        is_terminal = chunk.finish_reason is not None
        if answer in open_answers.ended:
            out = emit()
            continue
        if not is_terminal and tail.is_empty and not getattr(chunk, "text", None):
            tail.count(chunk)
            out = chunk
            continue
        tail.add(chunk)
        made = _made_by(step, tail)
        if is_terminal or tail.has_ended:
            made += tail.rest()
            if open_answers.end(answer, cut=tail.has_ended):
                del tails[answer]
                yield complete_with(*_rest(tails.values(), step), *made)
                return
        else:
            made += tail.overflow(limit)
        out = emit(*made)


def _made_by(step: Callable[[TextTail], Iterable[Any]], tail: TextTail) -> list[Any]:
    made = step(tail)
    try:
        chunks = iter(made)
    except TypeError:
        got = type(made).__name__
        raise TypeError(f"hold_back: step: expected an iterable of chunks, got {got}") from None
    return list(chunks)


def _rest(tails: Iterable[TextTail], step: Callable[[TextTail], Iterable[Any]]) -> list[Any]:
    """Return the held chunks of all answers at the end, after a last *step*."""
    made: list[Any] = []
    for tail in tails:
        if not tail.is_empty:
            tail.is_last = True
            made += [*_made_by(step, tail), *tail.rest()]
    return made


class TextTail:
    """
    The held-back chunks of one answer, as one text that is consumed from its beginning.

    Token ids and their data stay with their text. When a chunk is cut, a token goes with the first
    character of its text; without the text of each token (``tokens``), all go with the first part.
    The chunks handed out are copies, which the operator may change.

    Args:
        index: Which of the request's answers it is.

    Attributes:
        index: Which of the request's answers it is.
        text: The held text.
        is_last: There is no more text: the answer's terminal is held too, or the stream has ended.
        has_ended: :meth:`end` was called.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.text = ""
        self.is_last = False
        self.has_ended = False
        self._held: list[_Held] = []
        # The tokens of the chunks already handed out.
        self._tokens = 0

    @property
    def is_empty(self) -> bool:
        """Whether no chunk is held."""
        return not self._held

    def partial_match(self, *words: str) -> int:
        """
        Return how many characters at the end of the text may begin one of *words*.

        With :attr:`is_last` that is 0: nothing can follow.

        >>> from rx_backend import LLMEngineOutput
        >>> tail = TextTail()
        >>> tail.add(LLMEngineOutput(text="a <thi"))
        >>> tail.partial_match("<think>")
        4
        """
        if self.is_last:
            return 0
        text = self.text
        longest = min(len(text), max(map(len, words), default=1) - 1)
        for size in range(longest, 0, -1):
            end = text[-size:]
            if any(len(word) > size and word.startswith(end) for word in words):
                return size
        return 0

    def add(self, chunk: Any) -> None:
        """Hold a copy of *chunk*."""
        self._held.append(_Held(own_copy(chunk), _weight(chunk)))
        self.text += _text(chunk)
        self.is_last = self.is_last or chunk.finish_reason is not None

    def count(self, chunk: Any) -> None:
        """Count the tokens of a chunk that is not held."""
        self._tokens += _weight(chunk)

    def tokens_before(self, place: int) -> int:
        """
        Return how many tokens the answer has up to *place* in the text, including those handed out.

        A chunk whose content has no token ids counts as one.
        """
        tokens = self._tokens
        for held in self._held:
            if place <= 0:
                break
            tokens += _weight_to(held, place)
            place -= len(_text(held.chunk))
        return tokens

    def take(self, characters: int) -> list[Any]:
        """
        Return the chunks of the first *characters* of the text, and release them.

        The last one is cut if it extends further. Chunks without text go with the text before them,
        the terminal with the last of the text.
        """
        out: list[Any] = []
        left = max(0, min(characters, len(self.text)))
        self.text = self.text[left:]
        while self._held:
            first = self._held[0]
            size = len(_text(first.chunk))
            if size <= left:
                del self._held[0]
            elif left:
                first, self._held[0] = _cut(first, left)
            else:
                break
            self._tokens += first.weight
            out.append(first.chunk)
            left -= min(size, left)
        return out

    def take_all_but(self, characters: int) -> list[Any]:
        """Return all chunks except those of the last *characters* of the text."""
        return self.take(len(self.text) - characters)

    def replace(self, characters: int, text: str) -> list[Any]:
        """
        Return one chunk with *text* in place of the first *characters*, and without their tokens.

        It is a copy of the chunk in which they begin. A terminal among them is kept, without text.
        """
        taken = self.take(characters)
        if not taken:
            return []
        if taken[-1].finish_reason is not None:
            self._held.insert(0, _Held(part_of(taken[-1], 0, 0, None), 0))
        made = part_of(taken[0], 0, 0, text)
        _open_end(made)
        return [made] if text else []

    def drop(self, characters: int) -> list[Any]:
        """
        Drop the first *characters*, with their tokens; a terminal is kept, without text.

        The returned list is empty, for ``yield from`` as with the other methods.
        """
        return self.replace(characters, "")

    def end(self, kept: int, *, stop_reason: str | None = None) -> list[Any]:
        """
        Return the chunks of the first *kept* characters, the last one a ``stop`` terminal.

        The rest is dropped, and so are further chunks of the answer.

        Args:
            kept: How many characters to keep.
            stop_reason: What ended the answer, for chunks with a ``stop_reason``.
        """
        last = self._held[-1]
        newest = last.chunk
        before = len(self.text) - len(_text(newest))
        out = self.take(min(kept, before))
        if out and out[-1] is newest:
            out.pop()
        self.has_ended = True
        self._held.clear()
        self.text = ""
        end = _first_part(last, kept - before)
        return [*out, cut_last(end, len(end.token_ids), "stop", stop_reason)]

    def rest(self) -> list[Any]:
        """Return all held chunks."""
        return self.take(len(self.text))

    def overflow(self, limit: int) -> list[Any]:
        """Return what is held beyond *limit* characters, and beyond *limit* chunks."""
        surplus = self._held[: max(0, len(self._held) - limit)]
        characters = sum(len(_text(held.chunk)) for held in surplus)
        characters = max(characters, len(self.text) - limit)
        return self.take(characters) if surplus or characters > 0 else []


class _Held(NamedTuple):
    """
    A held chunk.

    Attributes:
        chunk: The chunk.
        weight: How many tokens it counts for.
        lead: How many characters at its beginning belong to a token already handed out.
    """

    chunk: Any
    weight: int
    lead: int = 0


def _text(chunk: Any) -> str:
    return getattr(chunk, "text", None) or ""


def _weight(chunk: Any) -> int:
    """Return how many tokens a chunk counts for."""
    return len(chunk.token_ids) or int(has_content(chunk))


def _weight_to(held: _Held, characters: int) -> int:
    """Return how many tokens a chunk counts for up to a place after its beginning."""
    if characters >= len(_text(held.chunk)) or not held.chunk.token_ids:
        return held.weight
    return _tokens_to(held, characters)


def _tokens_to(held: _Held, characters: int) -> int:
    """Return how many tokens of a chunk begin within its first *characters*."""
    chunk = held.chunk
    ids = len(chunk.token_ids)
    texts = [text or "" for text in getattr(chunk, "tokens", None) or ()]
    if len(texts) != ids or "".join(texts) != chunk.text[held.lead :]:
        return ids
    starts = accumulate(map(len, texts[:-1]), initial=held.lead)
    return sum(start < characters for start, _ in zip(starts, texts, strict=False))


def _first_part(held: _Held, characters: int) -> Any:
    """Copy a chunk with its first *characters*; it stays a terminal if it is one."""
    chunk, text = held.chunk, _text(held.chunk)
    if characters >= len(text) > 0:
        return copy.copy(chunk)
    tokens = _tokens_to(held, characters) if characters > 0 and chunk.token_ids else 0
    return part_of(chunk, 0, tokens, text[: max(0, characters)] or None)


def _cut(held: _Held, characters: int) -> tuple[_Held, _Held]:
    """Cut a chunk within its text; the fields of a terminal go with the second part."""
    chunk = held.chunk
    first = _first_part(held, characters)
    _open_end(first)
    tokens = len(first.token_ids)
    second = part_of(chunk, tokens, len(chunk.token_ids), chunk.text[characters:])
    if getattr(chunk, "content_parts", None) is not None:
        second.content_parts = None
    weight = _weight_to(held, characters)
    known = sum(len(text or "") for text in getattr(second, "tokens", None) or ())
    lead = max(0, len(second.text) - known) if second.token_ids else 0
    return _Held(first, weight), _Held(second, held.weight - weight, lead)


def _open_end(chunk: Any) -> None:
    """Remove the fields of a terminal from a copy of a chunk."""
    for name in ("finish_reason", "stop_reason", "completion_usage"):
        if getattr(chunk, name, None) is not None:
            setattr(chunk, name, None)
