"""`operators.hold_back`: what its users write in ten lines, and that nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex.subject import Subject

from operators.authoring import Stage, TextTail, hold_back, operator
from rx_backend import FinishReason, LLMEngineOutput
from rx_backend.protocols import usage
from tests.examples import examples
from tests.operators._help import Life, pushed, watch
from tests.operators.test_stop_on_text import chunks_of, ids_of, text_of


@operator
def redact(secret: str) -> Stage[Any, Any]:
    """Put three stars in place of a text."""

    def step(tail: TextTail) -> Iterator[Any]:
        while (place := tail.text.find(secret)) >= 0:
            yield from tail.take(place)
            yield from tail.replace(len(secret), "***")
        yield from tail.take_all_but(tail.partial_match(secret))

    yield from hold_back(step)


@operator
def hold(characters: int, limit: int = 4096) -> Stage[Any, Any]:
    """Hold back so many characters, whatever they are."""
    yield from hold_back(lambda tail: tail.take_all_but(characters), limit=limit)


SOURCES = st.lists(st.tuples(st.sampled_from([None, 0, 1]), chunks_of()), max_size=10)
ENDS = st.sampled_from([None, LookupError("gone")])


def indexed(source: list[tuple[int | None, LLMEngineOutput]], *, ends: bool) -> list[Any]:
    chunks: list[LLMEngineOutput] = []
    for index, chunk in source:
        chunk.index = index
        chunks.append(chunk)
    if ends:
        chunks += [LLMEngineOutput(finish_reason=FinishReason.EOS, index=n) for n in range(2)]
    return chunks


def of(answer: int, chunks: list[LLMEngineOutput]) -> list[LLMEngineOutput]:
    return [chunk for chunk in chunks if (chunk.index or 0) == answer]


@pytest.mark.rows("S1", "E3")
@examples(150)
@given(source=SOURCES, characters=st.integers(0, 6), ends=st.booleans(), error=ENDS)
def test_nothing_is_lost_or_duplicated(
    source: list[tuple[int | None, LLMEngineOutput]],
    characters: int,
    *,
    ends: bool,
    error: Exception | None,
) -> None:
    """Text, tokens and terminals come out once and in order, at any end, for each answer."""
    chunks = indexed(source, ends=ends)
    seen = pushed(chunks, hold(characters), error=error)
    assert seen.end == ("completed" if error is None else repr(error))
    for answer in range(2):
        own, out = of(answer, chunks), of(answer, seen.items)
        assert text_of(out) == text_of(own)
        assert ids_of(out) == ids_of(own)
        assert [c.finish_reason for c in out if c.finish_reason] == [FinishReason.EOS] * ends
        assert not ends or out[-1].finish_reason


@pytest.mark.rows("S1")
@given(texts=st.lists(st.text("ab", max_size=5), max_size=12), limit=st.integers(1, 6))
def test_held_text_is_bounded(texts: list[str], limit: int) -> None:
    """No more than so many characters and chunks wait, even where the operator takes nothing."""
    subject: Subject[Any] = Subject()
    seen, _ = watch(subject.pipe(hold(1000, limit)))
    for count, text in enumerate(texts, 1):
        subject.on_next(LLMEngineOutput([1], text=text))
        assert sum(map(len, texts[:count])) - len(text_of(seen.items)) <= limit
        assert count - len(ids_of(seen.items)) <= limit


@given(chunks=st.lists(chunks_of(), max_size=8), error=ENDS)
def test_a_redactor_across_chunks(chunks: list[LLMEngineOutput], error: Exception | None) -> None:
    """The secret is found across chunks, and its tokens are gone with it."""
    seen = pushed(chunks, redact("ab"), error=error)
    assert text_of(seen.items) == text_of(chunks).replace("ab", "***")
    if "ab" not in text_of(chunks):
        assert ids_of(seen.items) == ids_of(chunks)


@pytest.mark.rows("O4")
def test_a_failing_step_releases_no_held_text(life: Life) -> None:
    """What a redactor holds is not safe to hand out when it has failed."""

    @operator
    def broken() -> Stage[Any, Any]:
        def step(tail: TextTail) -> list[Any]:
            if "b" in tail.text:
                raise LookupError("broken")
            return []

        yield from hold_back(step)

    seen = life([LLMEngineOutput(text="a"), LLMEngineOutput(text="b")], broken())
    assert (seen.items, seen.end) == ([], "LookupError('broken')")


@operator
def shout() -> Stage[Any, Any]:
    """Hand out what is held in capitals, and without an end that is no sentence's."""

    def step(tail: TextTail) -> Iterator[Any]:
        done = tail.text.rfind(".") + 1
        for chunk in tail.take(len(tail.text) if tail.is_last else done):
            chunk.text = chunk.text and chunk.text.upper()
            yield chunk

    yield from hold_back(step)


@pytest.mark.rows("S1", "S6")
@pytest.mark.parametrize("error", [None, LookupError("gone")])
@pytest.mark.parametrize("has_terminal", [False, True])
def test_a_step_sees_the_held_text_at_any_end(
    life: Life, error: Exception | None, *, has_terminal: bool
) -> None:
    """At a terminal, at an end without one and before a failure: nothing comes out after it."""
    chunks = [LLMEngineOutput([n], text=text) for n, text in enumerate(("so. an", "d"))]
    chunks += [LLMEngineOutput.stop()] if has_terminal else []
    seen = life(chunks, shout(), error=error)
    assert text_of(seen.items) == "SO. AND"
    assert ids_of(seen.items) == [0, 1]
    assert seen.end == ("completed" if error is None else repr(error))


@pytest.mark.rows("E3")
@pytest.mark.parametrize("answers", [1, 2])
def test_an_answer_ended_by_a_step_before_a_failure(life: Life, answers: int) -> None:
    """It has its terminal; the failure is that of the answers that are open still."""

    @operator
    def held() -> Stage[Any, Any]:
        yield from hold_back(lambda tail: tail.end(1) if tail.is_last else [], answers=answers)

    seen = life([LLMEngineOutput([1], text="ab")], held(), error=LookupError("gone"))
    (end,) = seen.items
    assert (end.text, end.finish_reason) == ("a", FinishReason.STOP)
    assert seen.end == ("completed" if answers == 1 else "LookupError('gone')")


@pytest.mark.rows("O5")
@pytest.mark.parametrize("made", [None, LLMEngineOutput(text="a")], ids=["nothing", "a chunk"])
def test_a_step_must_return_chunks(life: Life, made: Any) -> None:
    """The error says what was expected of what."""

    @operator
    def forgetful() -> Stage[Any, Any]:
        yield from hold_back(lambda _: made)

    seen = life([LLMEngineOutput(text="a")], forgetful())
    got = type(made).__name__
    assert str(seen.error) == f"hold_back: step: expected an iterable of chunks, got {got}"


def test_a_terminal_outlives_its_text(life: Life) -> None:
    """Where its text is dropped or replaced, it comes out without."""
    end = LLMEngineOutput([1], text="ab", finish_reason=FinishReason.LENGTH)
    assert life([end], redact("ab")).items == [
        LLMEngineOutput(text="***"),
        LLMEngineOutput(finish_reason=FinishReason.LENGTH),
    ]


def test_an_answer_ends_once() -> None:
    """Also where its terminal, which has no text, is held after the last character that stays."""
    tail = TextTail()
    tail.add(LLMEngineOutput([1], text="ab"))
    tail.add(LLMEngineOutput.length())
    assert tail.end(2) == [
        LLMEngineOutput([1], text="ab"),
        LLMEngineOutput(finish_reason=FinishReason.STOP),
    ]


def test_parts_stay_with_the_beginning_of_their_text() -> None:
    """Where a chunk is cut, no part comes out twice."""
    tail = TextTail()
    tail.add(LLMEngineOutput([1, 2], text="ab", content_parts=[{"type": "image"}]))
    first, second = tail.take(1) + tail.rest()
    assert (first.content_parts, second.content_parts) == ([{"type": "image"}], None)


@given(
    words=st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 3), min_size=8, max_size=8),
    cuts=st.lists(st.integers(0, 5), max_size=12),
    drops=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_a_token_goes_with_its_first_character(
    words: list[str], sizes: list[int], cuts: list[int], drops: list[bool]
) -> None:
    """Wherever the text is cut, how often, and whether what is cut off is kept or thrown away."""
    tail, starts, begin = TextTail(), [0], 0
    for word in words:
        starts.append(starts[-1] + len(word))
    for size in sizes:
        made = words[begin : begin + size]
        ids = list(range(begin, begin + len(made)))
        tail.add(LLMEngineOutput(ids, tokens=list(made), text="".join(made)))
        begin += size
    place = 0
    for cut, is_dropped in zip(cuts, drops, strict=False):
        end = min(place + cut, starts[-1])
        before = tail.tokens_before(end - place)
        out = tail.drop(cut) if is_dropped else tail.take(cut)
        kept = range(0) if is_dropped else range(place, end)
        expected = [number for number, start in enumerate(starts[:-1]) if start in kept]
        assert [each for chunk in out for each in chunk.token_ids] == expected
        place = end
        assert tail.tokens_before(0) == before == sum(start < place for start in starts[:-1])
    rest = [each for chunk in tail.rest() for each in chunk.token_ids]
    assert rest == [number for number, start in enumerate(starts[:-1]) if start >= place]


def tail_of(chunk: LLMEngineOutput) -> TextTail:
    tail = TextTail()
    tail.add(chunk)
    return tail


def test_the_end_of_a_cut_terminal_goes_with_its_last_part() -> None:
    """Its reason and usage are not given out before the rest of its text."""
    chunk = LLMEngineOutput([1, 2], tokens=["a", "b"], text="ab", stop_reason=2)
    chunk.finish_reason, chunk.completion_usage = FinishReason.STOP, usage(1, 2)
    tail = tail_of(chunk)
    assert tail.partial_match("bc") == 0
    assert tail.take(1) == [LLMEngineOutput([1], tokens=["a"], text="a")]
    (last,) = tail.rest()
    assert (last.token_ids, last.text, last.stop_reason) == ([2], "b", 2)
    assert (last.finish_reason, last.completion_usage) == (FinishReason.STOP, usage(1, 2))


def test_tokens_whose_texts_are_not_the_chunks_text_stay_with_its_beginning() -> None:
    """There is no place to cut between them."""
    tail = tail_of(LLMEngineOutput([1, 2], tokens=["a", "x"], text="ab"))
    assert [chunk.token_ids for chunk in (*tail.take(1), *tail.rest())] == [[1, 2], []]


def test_a_whole_chunk_keeps_a_token_without_text() -> None:
    """A special token at its end has no text to go with."""
    tail = tail_of(LLMEngineOutput([1, 2], tokens=["a", ""], text="a"))
    (last,) = tail.end(1)
    assert (last.token_ids, last.finish_reason) == ([1, 2], FinishReason.STOP)


def test_a_step_is_called_for_text_and_once_at_the_end() -> None:
    """Not for chunks without text while nothing is held, nor for an answer that holds nothing."""
    calls: list[tuple[str, bool]] = []

    @operator
    def noting() -> Stage[Any, Any]:
        def step(tail: TextTail) -> list[Any]:
            calls.append((tail.text, tail.is_last))
            return tail.take_all_but(tail.partial_match("bc"))

        yield from hold_back(step)

    source = [LLMEngineOutput([1]), *(LLMEngineOutput(text=text) for text in "ab")]
    assert pushed(source, noting()).items == source
    assert calls == [("a", False), ("b", False), ("b", True)]
    calls.clear()
    assert pushed(source[:2], noting()).items == source[:2]
    assert calls == [("a", False)]
