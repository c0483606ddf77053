"""Hold back the end of each answer's text until it is decided."""

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
    Make the body of an operator that looks for something in text, across chunks.

    *step* is called with each chunk that has text, when it has been added to the :class:`TextTail`
    of its answer. It returns the chunks to hand out, which it takes from the tail; what it leaves
    there is held back until its next call. With the answer's terminal, at the end of the stream and
    in front of a failure of the source it is called for the last time (``tail.is_last``), and what
    it leaves there then comes out by itself. A redactor::

        @operator
        def redact(secret: str) -> Stage[Any, Any]:
            def step(tail: TextTail) -> Iterator[Any]:
                while (place := tail.text.find(secret)) >= 0:
                    yield from tail.take(place)
                    yield from tail.replace(len(secret), "***")
                yield from tail.take_all_but(tail.begun(secret))

            return (yield from hold_back(step))

    Args:
        step: Looks at an answer's tail. What it raises fails the stream, and nothing that is held
            comes out.
        limit: How many characters, and how many chunks, an answer may hold back; what is more comes
            out, the oldest first.
        answers: How many answers the request has; by default what the scope says, or 1. When *step*
            has ended an answer with :meth:`TextTail.end`, and all others have ended too, the stream
            ends.
        scope: The scope of the stream, which the operator has by a parameter of that name.
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
            made += tail.beyond(limit)
        out = emit(*made)


def _made_by(step: Callable[[TextTail], Iterable[Any]], tail: TextTail) -> list[Any]:
    made = step(tail)
    try:
        chunks = iter(made)
    except TypeError:
        got = type(made).__name__
        raise TypeError(f"hold_back: expected step to return chunks, got {got}") from None
    return list(chunks)


def _rest(tails: Iterable[TextTail], step: Callable[[TextTail], Iterable[Any]]) -> list[Any]:
    """Return what is held where no more text comes, as *step* makes it."""
    made: list[Any] = []
    for tail in tails:
        if not tail.is_empty:
            tail.is_last = True
            made += [*_made_by(step, tail), *tail.rest()]
    return made


class TextTail:
    """
    The chunks of one answer that are held back, as one text from which its beginning is taken.

    Token ids, and what runs beside them, travel with their text. Where a chunk is cut, a token goes
    with the first character of its text; without the text of each token (``tokens``), all go with
    the first part. What is handed out are copies, which the operator may change.

    Args:
        index: Which of the request's answers it is.

    Attributes:
        index: Which of the request's answers it is.
        text: The text that is held.
        is_last: No more text comes: the answer's terminal is held too, or the stream is at its end.
        has_ended: :meth:`end` was called.
    """

    __slots__ = ("_held", "_tokens", "has_ended", "index", "is_last", "text")

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.text = ""
        self.is_last = False
        self.has_ended = False
        self._held: list[_Held] = []
        # The tokens of the chunks that are out.
        self._tokens = 0

    @property
    def is_empty(self) -> bool:
        """Whether no chunk is held."""
        return not self._held

    def begun(self, *words: str) -> int:
        """
        Return how many characters at the end of the text may begin one of *words*.

        Where no more text comes it is decided: nothing is begun then.

        >>> from rx_backend import LLMEngineOutput
        >>> tail = TextTail()
        >>> tail.add(LLMEngineOutput(text="a <thi"))
        >>> tail.begun("<think>")
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
        Return how many tokens the answer has up to a place in the text, those handed out included.

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
        Return the chunks that the first *characters* of the text are in, and hold them no longer.

        The last one is cut where it goes beyond. Chunks without text go with the text before them,
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
        """Return all chunks but those that the last *characters* of the text are in."""
        return self.take(len(self.text) - characters)

    def replace(self, characters: int, text: str) -> list[Any]:
        """
        Return one chunk with *text* in place of the first *characters*, and without their tokens.

        It is a copy of the chunk that they begin in. A terminal stays behind it, without text.
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
        Throw the first *characters* away, with their tokens; a terminal stays, without text.

        There is no chunk to hand out: the list is empty, for ``yield from`` as with the others.
        """
        return self.replace(characters, "")

    def end(self, kept: int, *, stop_reason: str | None = None) -> list[Any]:
        """
        Return the chunks of the first *kept* characters, the last being a terminal by ``stop``.

        What else is held is thrown away, and so is what the source still has for the answer.

        Args:
            kept: How many characters stay.
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
        """Return everything that is held."""
        return self.take(len(self.text))

    def beyond(self, limit: int) -> list[Any]:
        """Return what is held beyond *limit* characters, and beyond *limit* chunks."""
        surplus = self._held[: max(0, len(self._held) - limit)]
        characters = sum(len(_text(held.chunk)) for held in surplus)
        characters = max(characters, len(self.text) - limit)
        return self.take(characters) if surplus or characters > 0 else []


class _Held(NamedTuple):
    """
    A chunk that is held.

    Attributes:
        chunk: The chunk.
        weight: How many tokens it counts for.
        lead: How many characters at its beginning belong to a token that is out already.
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
    """Return how many tokens a chunk counts for up to a place in its text, which is not its beginning."""
    if characters >= len(_text(held.chunk)) or not held.chunk.token_ids:
        return held.weight
    return _tokens_to(held, characters)


def _tokens_to(held: _Held, characters: int) -> int:
    """Return how many tokens of a chunk begin within so many characters of its text."""
    chunk = held.chunk
    ids = len(chunk.token_ids)
    texts = [text or "" for text in getattr(chunk, "tokens", None) or ()]
    if len(texts) != ids or "".join(texts) != chunk.text[held.lead :]:
        return ids
    starts = accumulate(map(len, texts[:-1]), initial=held.lead)
    return sum(start < characters for start, _ in zip(starts, texts, strict=False))


def _first_part(held: _Held, characters: int) -> Any:
    """Copy a chunk with so many characters of its text; it stays a terminal if it is one."""
    chunk, text = held.chunk, _text(held.chunk)
    if characters >= len(text) > 0:
        return copy.copy(chunk)
    tokens = _tokens_to(held, characters) if characters > 0 and chunk.token_ids else 0
    return part_of(chunk, 0, tokens, text[: max(0, characters)] or None)


def _cut(held: _Held, characters: int) -> tuple[_Held, _Held]:
    """Cut a chunk within its text; what marks a terminal goes with the second part."""
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
    """Take from a copy of a chunk what marks it as a terminal."""
    for name in ("finish_reason", "stop_reason", "completion_usage"):
        if getattr(chunk, name, None) is not None:
            setattr(chunk, name, None)
