"""End an answer at stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from operators._answers import Answers, MinTokens
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Stage
from operators._text_tail import TextTail, hold_back

__all__ = ("stop_on_text",)


def _check(stop: str | Sequence[str] | None, **_: object) -> None:
    given = cast("object", stop)
    if given is not None and not isinstance(given, str | Sequence):
        raise TypeError(f"stop_on_text: stop: expected a string or list of strings, got {given!r}")
    for text in cast("Sequence[object]", _texts(stop)):
        if not isinstance(text, str):
            raise TypeError(f"stop_on_text: stop: expected strings, got {text!r}")
        if not text:
            raise ValueError("stop_on_text: stop: expected non-empty strings, got ''")


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
    End an answer when one of some stop strings appears in its text (rows E3, S2, S8).

    For chunks with ``text``. The terminal has the finish reason ``stop`` and the stop string as its
    ``stop_reason``; when all answers have ended, the engine is closed and not pulled again. The
    match may span chunks and is removed with its tokens, so text that may begin one is held back
    until that is decided. To stop on ``bc``, where each chunk has its letter as text, and ``S`` has
    none::

        source  -a-b-a-b-c-|
        result  -a---(ba)---(S|)

    The first complete match ends the answer; of several that end at the same place, the longest
    counts. Held-back text comes out with the source's terminal, at its end, and before a failure.
    When a chunk is cut, a token goes with the first character of its text; without the text of each
    token (``tokens``), all go with the part that is kept. Each answer (``index``) is searched
    separately; further chunks of one that has ended are dropped.

    Args:
        stop: A string, or a list of strings. None, or an empty list: never, at no cost.
        include: Whether to keep the match; then nothing is held back.
        min_tokens: Don't stop before the answer has this many tokens, including those of the match;
            a text chunk without token ids counts as one. A match that is complete earlier is
            ignored.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError, ValueError: *stop* has another type or an empty string, or a number is out of
            range; when the operator is made.

    Phase: chunks; after operators that change their text.
    Errors: source errors pass unchanged, after the held-back text.
    On dispose: held-back text is dropped.

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
    # With *include*, the end of the text already handed out, in which a match may begin.
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
            yield from tail.take_all_but(tail.partial_match(*stops))

    return hold_back(step, limit=max(4096, longest), answers=answers, scope=scope)


def _first_match(
    stops: Iterable[str], before: str, tail: TextTail, min_tokens: int
) -> tuple[int, str] | None:
    """Return where in the tail's text the first match ends, and the stop string."""
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
