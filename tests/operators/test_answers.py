"""Operators that end an answer, on requests of several answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import limit_tokens, stop_on, stop_on_text
from rx_backend import FinishReason, LLMEngineOutput
from tests.operators._help import fused

LETTERS = "ab#"


def chunk_of(index: int | None, letters: str, ends: bool) -> LLMEngineOutput:
    """Return a chunk of so many letters, each of which is a token."""
    return LLMEngineOutput(
        [LETTERS.index(letter) for letter in letters],
        tokens=list(letters),
        text=letters,
        index=index,
        finish_reason=FinishReason.EOS if ends else None,
    )


CHUNKS = st.lists(
    st.builds(
        chunk_of, st.sampled_from([None, 0, 1, 2]), st.text(LETTERS, max_size=4), st.booleans()
    ),
    max_size=16,
)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3)
LIMITS = st.integers(1, 6)

Ending = Callable[[int], Any]


def limiting(limit: int) -> Ending:
    return lambda answers: limit_tokens(limit, answers=answers)


def stopping(stops: list[str], include: bool, least: int) -> Ending:
    ids = [[LETTERS.index(letter) for letter in stop] for stop in stops]
    return lambda answers: stop_on(ids, include=include, min_tokens=least, answers=answers)


def stopping_on_text(stops: list[str], include: bool, least: int) -> Ending:
    return lambda answers: stop_on_text(stops, include=include, min_tokens=least, answers=answers)


STOPPING = STOPS, st.booleans(), st.integers(0, 6)


@pytest.mark.rows("E3", "S1", "S8")
@pytest.mark.parametrize(
    "endings",
    [
        pytest.param(st.builds(limiting, LIMITS), id="limit_tokens"),
        pytest.param(st.builds(stopping, *STOPPING), id="stop_on"),
        pytest.param(st.builds(stopping_on_text, *STOPPING), id="stop_on_text"),
    ],
)
@given(data=st.data(), chunks=CHUNKS)
def test_each_answer_ends_by_itself(
    endings: st.SearchStrategy[Ending], data: st.DataObject, chunks: list[LLMEngineOutput]
) -> None:
    """Of three answers each is what it would be alone, and the last end is that of the stream."""
    ending = data.draw(endings)
    seen = fused(copy.deepcopy(chunks), ending(3), ends=False)
    cut = ended = 0
    for index in range(3):
        own = [chunk for chunk in chunks if (chunk.index or 0) == index]
        ends = [place for place, chunk in enumerate(own, 1) if chunk.finish_reason]
        alone = fused(copy.deepcopy(own[: ends[0]] if ends else own), ending(1), ends=False)
        out = [chunk for chunk in seen.items if (chunk.index or 0) == index]
        # What waits when another answer ends the stream comes out, as at any end.
        assert out[: len(alone.items)] == alone.items
        assert len(out) == len(alone.items) or seen.end == "completed"
        cut += alone.end == "completed"
        ended += any(chunk.finish_reason for chunk in out)
    # Where every answer has an end of the engine's own, the end of the stream is left to it.
    assert seen.end == ("completed" if cut and ended == 3 else "open")
