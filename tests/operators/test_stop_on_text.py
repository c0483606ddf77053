"""`operators.stop_on_text`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex.subject import Subject

from operators import stop_on_text
from rx_backend import FinishReason, LLMEngineOutput
from tests.examples import examples
from tests.operators._help import Life, Seen, pushed, watch
from tests.operators._search import first_match, undecided

# Few different characters, so that stop strings overlap, contain one another, and begin again.
TEXT = st.text("ab#", max_size=4)
STOPS = st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=3)


@st.composite
def chunks_of(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXT) -> LLMEngineOutput:
    """Return a chunk of any engine: text alone, text with ids, ids whose texts are told too, or no text."""
    text = draw(texts)
    kind = draw(st.sampled_from(["text", "ids", "tokens", "no text"]))
    if kind == "text":
        return LLMEngineOutput(text=text)
    if kind == "no text":
        return LLMEngineOutput([9])
    if kind == "ids":
        return LLMEngineOutput([1, 2], text=text)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    tokens = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    ids = [len(token) for token in tokens]
    return LLMEngineOutput(
        ids, tokens=list(tokens), text=text, log_probs=[-float(i) for i in ids], cum_log_probs=-1.0
    )


def text_of(chunks: Sequence[LLMEngineOutput]) -> str:
    return "".join(chunk.text or "" for chunk in chunks)


def ids_of(chunks: Sequence[LLMEngineOutput]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


@pytest.mark.rows("S1", "S2", "S8")
@examples(200)
@given(
    stops=STOPS,
    source=st.lists(chunks_of(), max_size=8),
    how=st.sampled_from(["completed", "terminal", "failed"]),
    include=st.booleans(),
)
@example(stops=["ab", "b"], source=[LLMEngineOutput(text="#ab")], how="completed", include=False)
def test_the_result_is_that_of_a_search_of_the_whole_text(
    stops: list[str], source: list[LLMEngineOutput], how: str, *, include: bool
) -> None:
    """However text and tokens are cut into chunks, and whatever the end is."""
    if source and how == "terminal":
        source[-1].finish_reason = FinishReason.LENGTH
    before = copy.deepcopy(source)
    error = LookupError("gone") if how == "failed" else None
    seen = pushed(source, stop_on_text(stops, include=include), error=error)
    assert source == before
    text = text_of(source)
    match = first_match(stops, text)
    for chunk in seen.items:
        assert chunk.tokens is None or len(chunk.tokens) == len(chunk.token_ids)
        assert chunk.log_probs is None or chunk.log_probs == [-float(i) for i in chunk.token_ids]
    if match is None:
        assert text_of(seen.items) == text
        assert ids_of(seen.items) == ids_of(source)
        reasons = [chunk.finish_reason for chunk in seen.items if chunk.finish_reason]
        assert reasons == [chunk.finish_reason for chunk in source if chunk.finish_reason]
        assert seen.end == ("completed" if error is None else repr(error))
        return
    begin, end = match
    assert text_of(seen.items) == text[: match[include]]
    ids = ids_of(seen.items)
    assert ids == ids_of(source)[: len(ids)]
    reasons = [(chunk.finish_reason, chunk.stop_reason) for chunk in seen.items]
    assert reasons == [(None, None)] * (len(reasons) - 1) + [(FinishReason.STOP, text[begin:end])]
    assert seen.end == "completed"


@pytest.mark.rows("S1", "S4")
@examples(150)
@given(stops=STOPS, texts=st.lists(TEXT, max_size=8), include=st.booleans())
def test_no_text_is_held_longer_than_necessary(
    stops: list[str], texts: list[str], *, include: bool
) -> None:
    """After each chunk, all text is out that is decided; with ``include`` all is."""
    subject: Subject[Any] = Subject()
    seen, _ = watch(subject.pipe(stop_on_text(stops, include=include)))
    for count in range(1, len(texts) + 1):
        subject.on_next(LLMEngineOutput(text=texts[count - 1]))
        text = "".join(texts[:count])
        if first_match(stops, text) is not None:
            assert seen.end == "completed"
            return
        held = 0 if include else undecided(stops, text)
        assert text_of(seen.items) == text[: len(text) - held]


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_there_is_no_stop_before_min_tokens(life: Life, kind: str, include: bool) -> None:
    """A match whose end comes too early is text like any other."""
    words = ["a", "#", "b", "c", "#", "d"]
    if kind == "text":
        source = [LLMEngineOutput(text=word) for word in words]
    else:
        source = [LLMEngineOutput([1] * 6, tokens=list(words), text="".join(words))]
    seen = life(source, stop_on_text("#", min_tokens=3, include=include))
    assert text_of(seen.items) == ("a#bc#" if include else "a#bc")
    assert seen.items[-1].stop_reason == "#"


def test_a_match_that_came_too_early_is_ignored_for_good(life: Life) -> None:
    """Also while its text may still be the beginning of a longer match."""
    source = [LLMEngineOutput(text=word) for word in "a#bcd"]
    seen = life(source, stop_on_text(["#", "xxxx"], min_tokens=3, include=True))
    assert (text_of(seen.items), seen.end) == ("a#bcd", "completed")


def test_tokens_without_text_count_for_min_tokens(life: Life) -> None:
    """They come out as they are."""
    source = [LLMEngineOutput([1]), LLMEngineOutput([2]), LLMEngineOutput([3], text="#")]
    seen = life(source, stop_on_text("#", min_tokens=3))
    assert list(map(id, seen.items[:2])) == list(map(id, source[:2]))
    assert seen.items[-1].stop_reason == "#"


def test_tokens_and_log_probs_are_cut_with_their_text(life: Life) -> None:
    """A token goes with the first character of its text; the terminal keeps what is beside it."""
    chunk = LLMEngineOutput(
        [1, 2, 3],
        tokens=["ab", "c#", "#d"],
        text="abc##d",
        log_probs=[-1.0, -2.0, -4.0],
        cum_log_probs=-7.0,
        engine_data={"step": 1},
        index=0,
    )
    seen = life([chunk], stop_on_text("##"))
    assert seen == Seen(
        [
            LLMEngineOutput(
                [1, 2],
                tokens=["ab", "c#"],
                text="abc",
                log_probs=[-1.0, -2.0],
                cum_log_probs=-3.0,
                engine_data={"step": 1},
                finish_reason=FinishReason.STOP,
                stop_reason="##",
                index=0,
            )
        ],
        "completed",
    )
