"""End an answer at stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from operators._answers import Answers, MinTokens
from operators._core.item_types import same_type
from operators._core.operator import callbacks
from operators._core.scope import StreamScope
from operators._core.stage import Stage
from operators._text_tail import TextTail, hold_back

__all__ = ("stop_on_text",)


def _check(stop: str | Sequence[str] | None, **_: object) -> None:
    given = cast("object", stop)
    if given is not None and not isinstance(given, str | Sequence):
        raise TypeError(f"stop_on_text: stop: expected a text or a list of texts, got {given!r}")
    for text in cast("Sequence[object]", _texts(stop)):
        if not isinstance(text, str):
            raise TypeError(f"stop_on_text: stop: expected texts, got {text!r}")
        if not text:
            raise ValueError("stop_on_text: stop: expected texts that are not empty, got ''")


@same_type
@callbacks(takes="chunks", check=_check)
def stop_on_text(
    stop: str | Sequence[str] | None,
    *,
    include: bool = False,
    min_tokens: MinTokens = 0,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> Stage[Any, Any] | None:
    """
    End an answer when one of some texts appears in it (rows E3, S2, S8).

    For chunks with ``text``. The terminal has the finish reason ``stop`` and the stop string as its
    ``stop_reason``; when all answers have ended, the engine is closed and not pulled again. The
    match may lie across chunks and is left out with its tokens, so what may begin one is held back
    until that is decided. To stop on ``bc``, where each chunk has its letter as text, and ``S`` has
    none::

        source  -a-b-a-b-c-|
        result  -a---(ba)---(S|)

    The match that is complete first ends the answer; of several that end at the same place, the
    longest counts. What is held back comes out with the source's terminal, at its end, and in front
    of a failure. Where a chunk is cut, a token goes with the first character of its text; without
    the text of each token (``tokens``), all go with the part that stays. Each answer (``index``) is
    searched by itself; what the source still has for one that has ended is dropped.

    Args:
        stop: A text, or a list of texts. None, or an empty list: never, at no cost.
        include: True: the match comes out too, and nothing is held back.
        min_tokens: No stop before the answer has so many tokens, those of the match included;
            a chunk of text without token ids counts as one. A match that is complete earlier is
            text like any other.
        answers: How many answers the request has, 1 at least; by default what the scope says, or 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError, ValueError: *stop* is something else, or has an empty text, or a number is out of
            range; when the operator is made.

    Phase: chunks; behind what changes their text.
    Errors: source errors pass unchanged, behind what is held back.
    On dispose: what is held back is dropped.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = [LLMEngineOutput(text=text) for text in ("one #", "#", "# two")]
    >>> _ = reactivex.from_iterable(chunks).pipe(stop_on_text("###")).subscribe(print)
    LLMEngineOutput(text='one ')
    LLMEngineOutput(finish_reason=FinishReason.STOP, stop_reason='###')
    """
    stops = _texts(stop)
    if not stops:
        return None
    longest = max(map(len, stops))
    # With *include*, the end of the text that is out already, in which a match may begin.
    passed: dict[int, str] = {}

    def step(tail: TextTail) -> Iterator[Any]:
        before = passed.get(tail.index, "")
        match = _first_match(stops, before, tail, min_tokens)
        if match is not None:
            end, text = match
            yield from tail.end(end if include else end - len(text), stop_reason=text)
        elif include:
            passed[tail.index] = (before + tail.text)[-longest:]
            yield from tail.rest()
        else:
            yield from tail.take_all_but(tail.begun(*stops))

    return hold_back(step, limit=max(4096, longest), answers=answers, scope=scope)


def _first_match(
    stops: Iterable[str], before: str, tail: TextTail, min_tokens: int
) -> tuple[int, str] | None:
    """Return where in the tail's text the first match ends, and of which text it is."""
    text = before + tail.text
    first: tuple[int, str] | None = None
    for stop in stops:
        place = text.find(stop)
        while place >= 0:
            end = place + len(stop) - len(before)
            if end > 0 and tail.tokens_before(end) >= min_tokens:
                if first is None or (end, -len(stop)) < (first[0], -len(first[1])):
                    first = end, stop
                break
            place = text.find(stop, place + 1)
    return first


def _texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
